"""`clf-deploy`: the group of its commands. Each is in the `command.py` of its subpackage.

Heavy modules are imported inside the commands, so that `--help` only takes the time to import click.
"""

from __future__ import annotations

from typing import NoReturn

import click

from clf_deploy.bundle.command import bundle
from clf_deploy.signing.command import keygen, sign, verify
from clf_deploy.store.command import activate, gc, install, rollback, status
from clf_runtime import __version__
from clf_runtime.command import execute


@click.group(
    "clf-deploy",
    no_args_is_help=False,
    epilog="""\b
Examples:
  clf-deploy keygen fleet.pem
  clf-deploy sign artifacts/model.onnx --key fleet.pem
  clf-deploy verify model.onnx --require-signature fleet.pub.pem
  clf-deploy bundle --platform linux-aarch64 --python 3.11 -o x.clfb
  clf-deploy install model.onnx --require-signature fleet.pub.pem --probation 10min
  clf-deploy status --format json
  clf-deploy rollback

\b
Exit codes: 0 success, 2 usage error, 3 the model is rejected, 4 this machine
cannot do it, 130 interrupted.""",
)
@click.version_option(__version__, prog_name="clf-deploy")
def command() -> None:
    """Bring models to devices."""


for _subcommand in (keygen, sign, verify, bundle, install, activate, rollback, status, gc):
    command.add_command(_subcommand)


def main() -> NoReturn:
    """Run the command; the entry point."""
    execute(command)
