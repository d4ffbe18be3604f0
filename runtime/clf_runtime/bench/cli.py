"""`clf-bench`: measure models on this machine, side by side. Parses, calls, prints."""

from __future__ import annotations

from typing import NoReturn

import click

from clf_runtime import __version__
from clf_runtime.artifacts import find_onnx_files
from clf_runtime.command import ARTIFACTS_OPTION, execute, say
from clf_runtime.errors import EXIT_OK


@click.command(
    "clf-bench",
    epilog="""\b
Examples:
  clf-bench
  clf-bench photos -r --model model.onnx --model model.int8.onnx
  clf-bench --device cuda --format json > bench.json
  clf-bench --rounds 10 --plot bench.svg

\b
Exit codes: 0 success, 2 usage error, 3 invalid model or images,
4 this machine cannot do it, 130 interrupted.""",
)
@click.argument("images", nargs=-1, metavar="[IMAGE|DIR]...")
@ARTIFACTS_OPTION
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    metavar="FILE",
    help="Exported model; may be repeated.  [default: all ONNX files in --artifacts]",
)
@click.option("--recursive", "-r", is_flag=True, help="Include subfolders.")
@click.option("--device", metavar="auto|cpu|cuda[:N]|NAME", default="auto", show_default=True, help="As in clf-run.")
@click.option("--threads", type=click.IntRange(1), help="Number of cores.  [default: all available to this process]")
@click.option(
    "--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Number of images per inference call."
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Number of measurements.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600),
    default=1.0,
    show_default=True,
    help="Duration of each measurement of throughput, latency and stages, per round.",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="A table, or all figures.",
)
@click.option("--plot", metavar="FILE", help="Also draw the results, as .png or .svg; needs matplotlib.")
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

    The images are those given, or those of the self-test inside each model.
    """
    from pathlib import Path

    from clf_runtime.bench import measure, report

    if plot is not None:
        from clf_runtime.bench import plot as plotting

        plotting.check_target(Path(plot))
    options = measure.BenchOptions(
        models=tuple(map(Path, models)) or find_onnx_files(Path(artifacts)),
        images=images,
        recursive=recursive,
        device=device,
        threads=threads,
        batch_size=batch_size,
        rounds=rounds,
        seconds=seconds,
    )
    results = measure.measure(options, _show_progress)
    for warning in dict.fromkeys(result.warning for result in results if result.warning):
        say(f"clf-bench: {warning}")
    click.echo(report.to_json(options, results) if output_format == "json" else report.table(results))
    if plot is not None:
        plotting.draw(results, Path(plot))
        say(f"clf-bench: wrote {plot}")
    return EXIT_OK


def main() -> NoReturn:
    """Run the command; the entry point."""
    execute(command)


def _show_progress(message: str) -> None:
    import sys

    if sys.stderr.isatty():
        say(f"clf-bench: {message}")
