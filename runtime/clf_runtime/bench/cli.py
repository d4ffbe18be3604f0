"""`clf-bench`: how fast models are on this machine, side by side. Parses, calls, prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import click

from clf_runtime import __version__
from clf_runtime.artifacts import ONNX, ONNX_FP16, ONNX_INT8
from clf_runtime.command import ARTIFACTS_OPTION, execute, say
from clf_runtime.errors import EXIT_OK

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    "clf-bench",
    epilog="""\b
Examples:
  clf-bench
  clf-bench photos -r --model model.onnx --model model.int8.onnx
  clf-bench --device cuda --format json > bench.json
  clf-bench --rounds 10 --plot bench.svg

\b
Exit codes: 0 all done, 2 wrong usage, 3 model or images refused,
4 this machine cannot do it, 130 Ctrl-C.""",
)
@click.argument("images", nargs=-1, metavar="[IMAGE|DIR]...")
@ARTIFACTS_OPTION
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    metavar="FILE",
    help="An exported model; several for side by side.  [default: every ONNX file in --artifacts]",
)
@click.option("--recursive", "-r", is_flag=True, help="Look into the folders of a folder too.")
@click.option("--device", metavar="auto|cpu|cuda[:N]|NAME", default="auto", show_default=True, help="As of clf-run.")
@click.option("--threads", type=click.IntRange(1), help="Cores to use.  [default: all that this process may]")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Images run at once.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="How often all is measured.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600),
    default=1.0,
    show_default=True,
    help="How long throughput, latency and stages are measured, each, in a round.",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="A table, or everything.",
)
@click.option("--plot", metavar="FILE", help="Draw it too, as .png or .svg; needs matplotlib.")
@click.version_option(__version__, prog_name="clf-bench")
def command(
    images: tuple[str, ...],
    artifacts: str,
    models: tuple[str, ...],
    recursive: bool,
    device: str,
    threads: int | None,
    batch_size: int,
    rounds: int,
    seconds: float,
    output_format: str,
    plot: str | None,
) -> int:
    """Measure cold start, latency, throughput, memory and stages of models, in turn.

    With the images named, or those of the self-test that each model carries.
    """
    from pathlib import Path

    from clf_runtime.bench import measure, report

    if plot is not None:
        from clf_runtime.bench import plot as plotting

        plotting.check(Path(plot))
    options = measure.BenchOptions(
        tuple(map(Path, models)) or _all_in(Path(artifacts)),
        images,
        recursive,
        device,
        threads,
        batch_size,
        rounds,
        seconds,
    )
    measured = measure.measure(options, _noticed)
    for warning in dict.fromkeys(each.warning for each in measured if each.warning):
        say(f"clf-bench: {warning}")
    click.echo(report.as_json(options, measured) if output_format == "json" else report.table(measured))
    if plot is not None:
        plotting.draw(measured, Path(plot))
        say(f"clf-bench: {plot}")
    return EXIT_OK


def main() -> NoReturn:
    """Run the command; the entry point."""
    execute(command)


def _all_in(folder: Path) -> tuple[Path, ...]:
    return tuple(folder / name for name in (ONNX, ONNX_FP16, ONNX_INT8) if (folder / name).exists()) or (folder / ONNX,)


def _noticed(what: str) -> None:
    import sys

    if sys.stderr.isatty():  # a person waits
        say(f"clf-bench: {what}")
