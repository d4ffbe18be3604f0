"""`clf-deploy verify`."""

from __future__ import annotations

import click

from clf_runtime.errors import escape


@click.command("verify")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
def verify(models: tuple[str, ...]) -> None:
    """Verify the digests of exported models. Prints a line for each."""
    from pathlib import Path

    from clf_runtime import onnx_file

    for model in models:
        file = onnx_file.read(Path(model))
        click.echo(escape(f"{model}: sha256 {file.sha256}"))
