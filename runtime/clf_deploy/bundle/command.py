"""`clf-deploy bundle`."""

from __future__ import annotations

import click

from clf_runtime.artifacts import ONNX
from clf_runtime.command import ARTIFACTS_OPTION, say


@click.command("bundle", short_help="Pack a model with everything that runs it.")
@ARTIFACTS_OPTION
@click.option("--model", metavar="FILE", help="The model.  [default: model.onnx of --artifacts]")
@click.option(
    "--platform", required=True, metavar="NAME", help="Of the devices: linux-aarch64 (64-bit Arm) or linux-x86_64."
)
@click.option("--python", required=True, metavar="3.N", help="Version of Python on the devices.")
@click.option(
    "--extra",
    "extras",
    multiple=True,
    metavar="NAME",
    help="Extra of clf-edge that is installed there; repeat it.  [default: cpu, serve; verify if the model is signed]",
)
@click.option(
    "--constraint", metavar="FILE", help="Versions of the dependencies, as pip's constraint files.  [default: newest]"
)
@click.option("--output", "-o", required=True, metavar="FILE.clfb", help="The bundle.")
def bundle(
    artifacts: str,
    model: str | None,
    platform: str,
    python: str,
    extras: tuple[str, ...],
    constraint: str | None,
    output: str,
) -> None:
    """Pack a model with everything that runs it into one file, which installs without a network.

    The same inputs give the same bytes.
    """
    from pathlib import Path

    from clf_deploy.bundle.build import BundleOptions, build_bundle, default_extras
    from clf_deploy.bundle.platforms import Target

    file = Path(model) if model is not None else Path(artifacts) / ONNX
    options = BundleOptions(
        file,
        Target(platform, python),
        extras or default_extras(file),
        Path(constraint) if constraint is not None else None,
    )
    manifest = build_bundle(options, Path(output))
    size = Path(output).stat().st_size
    signed = "signed" if manifest.signature else "not signed"
    say(f"clf-deploy: wrote {output}: {size / 1e6:.1f} MB, {len(manifest.parts)} files, the model is {signed}")
