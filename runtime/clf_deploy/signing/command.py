"""`clf-deploy keygen`, `sign` and `verify`."""

from __future__ import annotations

import click

from clf_runtime.command import REQUIRE_SIGNATURE_OPTION, say
from clf_runtime.errors import escape


@click.command("keygen", short_help="Create a key pair.")
@click.argument("name", metavar="NAME.pem")
@click.option(
    "--curve", type=click.Choice(["P-256", "P-384", "P-521"]), default="P-256", show_default=True, help="The curve."
)
def keygen(name: str, curve: str) -> None:
    """Create a key pair: NAME.pem signs models and stays on the workstation, NAME.pub.pem verifies them on devices."""
    from pathlib import Path

    from clf_deploy.signing.sign import create_key

    private, public = create_key(Path(name), curve)
    say(f"clf-deploy: wrote {private} (keep it secret, and keep a copy) and {public}")


@click.command("sign", short_help="Sign exported models.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--key", required=True, metavar="KEY.pem", help="Private key; CLF_KEY_PASSWORD is its password, if any.")
def sign(models: tuple[str, ...], key: str) -> None:
    """Sign exported models: MODEL.sig is written beside each, as OpenSSF Model Signing specifies."""
    import os
    from pathlib import Path

    from clf_deploy.signing.sign import Signer
    from clf_runtime import onnx_file

    signer = Signer(Path(key), os.environ.get("CLF_KEY_PASSWORD"))
    for model in map(Path, models):
        say(f"clf-deploy: wrote {signer.sign(model)}")
        if onnx_file.read(model).spec.serial is None:
            say(
                f"clf-deploy: {model} has no serial number, so devices cannot tell it from an older one; --serial of "
                "clf-export gives it one"
            )


@click.command("verify", short_help="Verify digests and signatures.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@REQUIRE_SIGNATURE_OPTION
def verify(models: tuple[str, ...], require_signature: tuple[str, ...]) -> None:
    """Verify the digests of exported models and, with --require-signature or a policy, their signatures.

    Prints a line for each model. None is opened by onnxruntime.
    """
    from pathlib import Path

    from clf_runtime import onnx_file

    for model in models:
        file = onnx_file.read_trusted(Path(model), tuple(map(Path, require_signature)))
        serial = "" if file.spec.serial is None else f", serial {file.spec.serial}"
        click.echo(escape(f"{model}: sha256 {file.sha256}{serial}"))
