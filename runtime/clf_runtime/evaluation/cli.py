"""`clf-eval`: evaluate exported models on labeled images. Parses, calls, prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, cast

import click

from clf_runtime import __version__
from clf_runtime.artifacts import find_onnx_files
from clf_runtime.command import ARTIFACTS_OPTION, REQUIRE_SIGNATURE_OPTION, execute, say
from clf_runtime.errors import EXIT_INVALID, EXIT_OK, EXIT_SOME_FAILED

if TYPE_CHECKING:
    from pathlib import Path

    from clf_runtime.evaluation.evaluate import EvalOptions
    from clf_runtime.evaluation.results import Evaluation
    from clf_runtime.evaluation.selection import SplitChoice

_FAILURES_SHOWN = 10


@click.command(
    "clf-eval",
    epilog="""\b
Examples:
  clf-eval --data photos
  clf-eval model.onnx model.int8.onnx --data photos --html eval.html
  clf-eval model.onnx --data labels.csv --label-column species --format json > eval.json
  clf-eval model.onnx --data photos/test --device cuda --min-accuracy 95

\b
Exit codes: 0 success, 1 some images were not evaluated, 2 usage error,
3 invalid model or data, or an accuracy below --min-accuracy,
4 this machine cannot do it, 130 interrupted.""",
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@ARTIFACTS_OPTION
@click.option(
    "--data",
    required=True,
    metavar="DIR|ARCHIVE|MANIFEST|SHARDS",
    help="Labeled images: a folder with a folder of images for each class, an archive of one, a manifest, or shards.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test", "all"]),
    help="Which images.  [default: test if the data has it, otherwise validation, otherwise all]",
)
@click.option("--image-column", metavar="NAME", help="Column of a table with the image, or its path.")
@click.option("--label-column", metavar="NAME", help="Column of a table with the label.")
@click.option("--split-column", metavar="NAME", help="Column of a table with the split.")
@click.option(
    "--top", "-k", type=click.IntRange(1), default=5, show_default=True, help="Also count labels among the first K."
)
@click.option("--device", metavar="auto|cpu|cuda[:N]|NAME", default="auto", show_default=True, help="As in clf-run.")
@click.option("--threads", type=click.IntRange(1), help="Number of cores.  [default: all available to this process]")
@click.option(
    "--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Number of images per inference call."
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Tables, or everything.",
)
@click.option("--output", "-o", metavar="FILE", help="Write the results to FILE, atomically, instead of stdout.")
@click.option("--html", metavar="FILE", help="Also write a page with confusion matrices and the mistaken images.")
@click.option(
    "--min-accuracy",
    type=click.FloatRange(0, 100),
    metavar="PCT",
    help="Fail with exit code 3 if the accuracy of a model is lower.",
)
@REQUIRE_SIGNATURE_OPTION
@click.version_option(__version__, prog_name="clf-eval")
def command(
    models: tuple[str, ...],
    artifacts: str,
    data: str,
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    split_column: str | None,
    top: int,
    device: str,
    threads: int | None,
    batch_size: int,
    output_format: str,
    output: str | None,
    html: str | None,
    min_accuracy: float | None,
    require_signature: tuple[str, ...],
) -> int:
    """Evaluate exported models on labeled images: accuracy, classes, confusions, calibration and mistakes.

    Without MODEL, all ONNX files in --artifacts are evaluated. Several models are compared with the first one.
    """
    from pathlib import Path

    from clf_runtime.evaluation.evaluate import EvalOptions
    from clf_runtime.labeled import Columns
    from clf_runtime.sinks.output import check_target

    target = None if output is None else check_target(Path(output))
    page = None if html is None else check_target(Path(html), "--html")
    if target is not None and target == page:
        raise click.UsageError("--output and --html name the same file.")
    options = EvalOptions(
        models=tuple(map(Path, models)) or find_onnx_files(Path(artifacts)),
        data=Path(data),
        columns=Columns(image_column, label_column, split_column),
        split=cast("SplitChoice | None", split),
        device=device,
        threads=threads,
        batch_size=batch_size,
        top=top,
        require_signature=tuple(map(Path, require_signature)),
    )
    evaluation = _evaluate(options)
    _write_results(evaluation, output_format, target)
    if page is not None:
        _write_page(evaluation, page)
        say(f"clf-eval: wrote {html}")
    return _exit_code(evaluation, min_accuracy)


def main() -> NoReturn:
    """Run the command; the entry point."""
    execute(command)


def _evaluate(options: EvalOptions) -> Evaluation:
    from clf_runtime.evaluation.evaluate import evaluate
    from clf_runtime.evaluation.terminal import TerminalCallbacks
    from clf_runtime.session import silence_log

    silence_log()
    callbacks = TerminalCallbacks()
    try:
        return evaluate(options, callbacks)
    finally:
        callbacks.clear()


def _write_results(evaluation: Evaluation, output_format: str, target: Path | None) -> None:
    from clf_runtime.evaluation.record import to_json
    from clf_runtime.evaluation.table import format_evaluation
    from clf_runtime.files import atomic_write

    text = to_json(evaluation) if output_format == "json" else format_evaluation(evaluation)
    if target is None:
        click.echo(text)
    else:
        atomic_write(target, f"{text}\n".encode("utf-8", "backslashreplace"))


def _write_page(evaluation: Evaluation, path: Path) -> None:
    from clf_runtime.evaluation.page import html_from_evaluation
    from clf_runtime.files import atomic_write

    atomic_write(path, html_from_evaluation(evaluation).encode("utf-8", "backslashreplace"))


def _exit_code(evaluation: Evaluation, min_accuracy: float | None) -> int:
    """Print what failed, and return the exit code."""
    failures = evaluation.failures
    for failure in failures[:_FAILURES_SHOWN]:
        say(f"clf-eval: {failure}")
    if failures:
        more = f" (the first {_FAILURES_SHOWN} are above)" if len(failures) > _FAILURES_SHOWN else ""
        say(f"clf-eval: {len(failures):,} of {len(evaluation.images):,} images cannot be read{more}")
    code = EXIT_OK if evaluation.is_complete else EXIT_SOME_FAILED
    for result in evaluation.results:
        if min_accuracy is not None and 100 * result.metrics.accuracy < min_accuracy:
            say(f"clf-eval: {result.name}: accuracy {100 * result.metrics.accuracy:.4g} %, expected {min_accuracy:g} %")
            code = EXIT_INVALID
    return code
