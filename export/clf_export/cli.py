"""`clf-export`: state_dict to exported files, with proof. Parses, calls, prints."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NoReturn

import click

from clf_export.formats import FORMATS, PRECISIONS, targets_of
from clf_runtime import __version__
from clf_runtime.command import ARTIFACTS_OPTION, execute, say
from clf_runtime.onnx_file import RUNTIMES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clf_export.record import Exported

_HEADER = ("file", "size", "max |Δ logit|", "flipped", "accuracy", "images", "latency", "eager", "onnxruntime")


@click.command(
    "clf-export",
    epilog="""\b
Examples:
  clf-export
  clf-export --format onnx --format torchscript --format pt2
  clf-export --precision fp32 --precision int8 --max-drop 0.2
  clf-export -a artifacts/mnist --data-root ~/data --overwrite

\b
Exit codes: 0 done, 2 wrong usage, 3 model or data refused, or a proof failed
(then no file is left), 4 this machine cannot do it, 130 Ctrl-C.""",
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
    help="May be given more than once. clf-run takes onnx.",
)
@click.option(
    "--precision",
    "-p",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    default=["fp32"],
    show_default=True,
    help="May be given more than once; fp16 (for GPUs) and int8 are made as ONNX.",
)
@click.option(
    "--min-runtime",
    metavar="VERSION",
    default=RUNTIMES[0][0],
    show_default=True,
    help="The oldest onnxruntime that must read the ONNX files.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    default=0.5,
    show_default=True,
    metavar="POINTS",
    help="Percentage points of accuracy that fp16 and int8 may lose.",
)
@click.option("--data", "-d", metavar="NAME|DIR", help="The images of the training.  [default: where they were]")
@click.option(
    "--data-root", metavar="DIR", envvar="CLF_DATA_ROOT", help="Where data sets by name lie.  [default: likewise]"
)
@click.option(
    "--trust-factory",
    "model",
    metavar="PACKAGE.MODULE:FACTORY",
    help="The function of your own that builds the network, if one does.",
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
    model: str | None,
    overwrite: bool,
) -> None:
    """Export a finished model, and prove each file on real held-out images before it gets its name."""
    from pathlib import Path

    from clf_export.exporting import export

    exported = export(
        Path(artifacts),
        targets_of(formats, precisions),
        min_runtime=min_runtime,
        max_drop=max_drop,
        data=data,
        data_root=data_root,
        trusted=model,
        overwrite=overwrite,
        say=say,
    )
    click.echo(_table(exported))
    where = "" if artifacts == "artifacts" else f" -a {shlex.quote(artifacts)}"
    say(f"next: clf-run{where} {shlex.quote(f'{artifacts}/samples')}")


def main() -> NoReturn:
    """Run the command; the entry point."""
    execute(command)


def _table(exported: Sequence[Exported]) -> str:
    rows = [_HEADER]
    for each in exported:
        parity = each.parity
        rows.append(
            (
                str(each.path),
                f"{each.size_bytes / 1e6:.2f} MB",
                f"{parity.max_difference:.1e}",
                str(parity.flipped),
                f"{parity.accuracy:.2%}",
                f"{parity.accuracy_images:,}",
                f"{each.latency_ms:.2f} ms",
                f"{each.eager_latency_ms:.2f} ms",
                f"{each.oldest_onnxruntime}+" if each.oldest_onnxruntime else "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
