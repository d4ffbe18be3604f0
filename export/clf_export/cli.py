"""`clf-export`: a finished model to exported files, each with a parity check. Parses, calls, prints."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NoReturn

import click

from clf_export.formats import FORMATS, PRECISIONS, select_targets
from clf_export.progress import Progress
from clf_runtime import __version__
from clf_runtime.command import ARTIFACTS_OPTION, execute, say
from clf_runtime.errors import escape
from clf_runtime.onnx_file import RUNTIMES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clf_deploy.signing.sign import Signer
    from clf_export.record import ExportedFile

_HEADER = (
    *("file", "size", "max |Δ logit|", "flipped", "accuracy", "images"),
    *("latency", "eager PyTorch", "onnxruntime"),
)


@click.command(
    "clf-export",
    epilog="""\b
Examples:
  clf-export
  clf-export --format onnx --format torchscript --format pt2
  clf-export --precision fp32 --precision int8 --max-drop 0.2
  clf-export -a artifacts/mnist --data-root ~/data --overwrite
  clf-export --sign fleet.pem

\b
Exit codes: 0 success, 2 usage error, 3 invalid model or data, or a failed parity
check (no file is written then), 4 this machine cannot do it, 130 interrupted.""",
)
@ARTIFACTS_OPTION
@click.option(
    "--format",
    "-f",
    "formats",
    type=click.Choice(FORMATS),
    multiple=True,
    default=["onnx"],
    show_default=True,
    help="File format; repeat for several. clf-run takes onnx.",
)
@click.option(
    "--precision",
    "-p",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    default=["fp32"],
    show_default=True,
    help="Precision; repeat for several. fp16 (for GPUs) and int8 are ONNX only.",
)
@click.option(
    "--min-runtime",
    metavar="VERSION",
    default=RUNTIMES[0][0],
    show_default=True,
    help="Oldest onnxruntime that must read the ONNX files.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    default=0.5,
    show_default=True,
    metavar="PP",
    help="Accuracy drop in percentage points that fp16 and int8 may cost.",
)
@click.option("--data", "-d", metavar="NAME|DIR", help="Images the model was trained on.  [default: as in training]")
@click.option(
    "--data-root",
    metavar="DIR",
    envvar="CLF_DATA_ROOT",
    help="Folder of named data sets.  [default: that of the training]",
)
@click.option(
    "--trust-factory",
    metavar="PACKAGE.MODULE:FACTORY",
    help="Run this function of your own to build the network; needed where model.json names it.",
)
@click.option(
    "--sign",
    metavar="KEY.pem",
    help="Sign the ONNX files with this private key; CLF_KEY_PASSWORD is its password, if any.",
)
@click.option(
    "--serial",
    type=click.IntRange(0, 2**63 - 1),
    metavar="N",
    help="Serial number of the files: devices refuse a lower one than they have had.  "
    "[default: with --sign the time in seconds, else none]",
)
@click.option("--overwrite", is_flag=True, help="Replace exported files.")
@click.version_option(__version__, prog_name="clf-export")
def command(
    artifacts: str,
    formats: tuple[str, ...],
    precisions: tuple[str, ...],
    min_runtime: str,
    max_drop: float,
    data: str | None,
    data_root: str | None,
    trust_factory: str | None,
    sign: str | None,
    serial: int | None,
    overwrite: bool,
) -> None:
    """Export a finished model, and verify each file on the test split before it gets its name."""
    import time
    from pathlib import Path

    from clf_export.exporting import ExportOptions, export
    from clf_train.allocator import keep_freed_memory

    keep_freed_memory()  # eager PyTorch needs half the time with it
    options = ExportOptions(
        min_runtime=min_runtime,
        max_drop=max_drop,
        data=data,
        data_root=data_root,
        trust_factory=trust_factory,
        overwrite=overwrite,
        signer=None if sign is None else _open_signer(sign),
        serial=int(time.time()) if serial is None and sign is not None else serial,
    )
    progress = Progress()
    try:
        with progress:
            export(Path(artifacts), select_targets(formats, precisions), options, progress)
    finally:
        # Also for the files that were finished before an error or an interruption.
        if progress.exported:
            click.echo(_format_table(progress.exported))
    option = "" if artifacts == "artifacts" else f" -a {shlex.quote(artifacts)}"
    say(f"next: clf-run{option} {shlex.quote(f'{artifacts}/samples')}")


def main() -> NoReturn:
    """Run the command; the entry point."""
    execute(command)


def _open_signer(key: str) -> Signer:
    """Read the key first: a wrong one must not cost the time of an export."""
    import os
    from pathlib import Path

    from clf_deploy.signing.sign import Signer

    return Signer(Path(key), os.environ.get("CLF_KEY_PASSWORD"))


def _format_table(exported: Sequence[ExportedFile]) -> str:
    rows = [_HEADER, *(tuple(map(escape, _format_row(file))) for file in exported)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _format_row(file: ExportedFile) -> tuple[str, ...]:
    parity, oldest = file.parity, file.model.oldest_onnxruntime
    return (
        str(file.path),
        f"{file.size_bytes / 1e6:.2f} MB",
        f"{parity.max_difference:.1e}",
        str(parity.flipped),
        f"{parity.accuracy:.2%}",
        f"{parity.accuracy_images:,}",
        _format_latency(file.latency_ms),
        _format_latency(file.eager_latency_ms),
        f"{oldest}+" if oldest else "-",
    )


def _format_latency(latency_ms: float | None) -> str:
    return "-" if latency_ms is None else f"{latency_ms:.2f} ms"
