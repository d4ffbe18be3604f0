"""`clf-deploy`: the group of its commands. Each is in the `command.py` of its subpackage.

Heavy modules are imported inside the commands, so that `--help` only takes the time to import click.
"""

from __future__ import annotations

from typing import NoReturn

import click

from clf_deploy.signing.command import keygen, sign, verify
from clf_runtime import __version__
from clf_runtime.command import execute


@click.group(
    "clf-deploy",
    epilog="""\b
Examples:
  clf-deploy keygen fleet.pem
  clf-deploy sign artifacts/model.onnx --key fleet.pem
  clf-deploy verify model.onnx --require-signature fleet.pub.pem

\b
Exit codes: 0 success, 2 usage error, 3 the model is rejected, 4 this machine
cannot do it, 130 interrupted.""",
)
@click.version_option(__version__, prog_name="clf-deploy")
def command() -> None:
    """Bring models to devices."""


for _subcommand in (keygen, sign, verify):
    command.add_command(_subcommand)


def main() -> NoReturn:
    """Run the command; the entry point."""
    execute(command)
