"""`clf-run`: classify images with an exported model. Parses, calls, prints.

Everything heavy is imported inside the command, so that `--help` costs what click costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import click

from clf_runtime import __version__
from clf_runtime.artifacts import ONNX
from clf_runtime.command import ARTIFACTS_OPTION, execute, say
from clf_runtime.errors import EXIT_INVALID, EXIT_OK, EXIT_SOME_FAILED

if TYPE_CHECKING:
    from pathlib import Path

    from clf_runtime.run import RunOptions, RunStatistics

# By default Python looks for garbage 100 times while numpy and onnxruntime are imported: 4 % of one answer's time.
_OBJECTS_BETWEEN_COLLECTIONS = 20_000


@click.command(
    "clf-run",
    epilog="""\b
Examples:
  clf-run img.jpg
  clf-run artifacts/samples --top 3
  clf-run photos -r --format jsonl > answers.jsonl
  clf-run photos -r --format csv --output answers.csv --resume
  clf-run photos --threshold 0.8 --annotate annotated
  cat img.jpg | clf-run - --model model.onnx
  find photos -name '*.jpg' -print0 | clf-run @-
  clf-run --self-test
  clf-run --doctor --model model.onnx --device cuda

\b
Exit codes: 0 all done, 1 some images failed, 2 wrong usage, 3 model refused,
4 this machine cannot do it, 130 Ctrl-C.""",
)
@click.argument("images", nargs=-1, metavar="IMAGE|DIR|@LIST|-...")
@ARTIFACTS_OPTION
@click.option("--model", "-m", metavar="FILE", help="The exported model.  [default: model.onnx in --artifacts]")
@click.option("--top", "-k", type=click.IntRange(1), default=1, show_default=True, help="How many labels to give.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="P",
    help="Label answers with a score below P as unknown.  [default: none]",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "jsonl", "json", "csv"]),
    default="text",
    show_default=True,
    help="How answers are written. In text, failures go to stderr; else they keep their place.",
)
@click.option("--output", "-o", metavar="FILE", help="Write to FILE, complete or not at all, instead of stdout.")
@click.option("--resume", is_flag=True, help="Go on with the --output of a run that was cut off.")
@click.option("--annotate", metavar="DIR", help="Write the images with their answers drawn on into DIR.")
@click.option("--recursive", "-r", is_flag=True, help="Look into the folders of a folder too.")
@click.option(
    "--device",
    metavar="auto|cpu|cuda[:N]|NAME",
    default="auto",
    show_default=True,
    help="What is named works or fails: cuda, or another execution provider of onnxruntime, such as openvino, "
    "tensorrt, coreml. auto takes CUDA where it works.",
)
@click.option("--threads", type=click.IntRange(1), help="Cores to use.  [default: all that this process may]")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Images run at once.")
@click.option("--self-test", is_flag=True, help="Replay the proof inside the model on this machine.")
@click.option("--info", is_flag=True, help="Say what the model is, and where it would run here.")
@click.option("--doctor", is_flag=True, help="Say what this machine has, and what would be wrong with the model here.")
@click.version_option(__version__, prog_name="clf-run")
def command(
    images: tuple[str, ...],
    artifacts: str,
    model: str | None,
    top: int,
    threshold: float,
    output_format: str,
    output: str | None,
    resume: bool,
    annotate: str | None,
    recursive: bool,
    device: str,
    threads: int | None,
    batch_size: int,
    self_test: bool,
    info: bool,
    doctor: bool,
) -> int:
    """Classify images: files, folders, lists of them in @LIST, or - for one on stdin.

    Prints PATH, LABEL and PROBABILITY, separated by tabs, in the order of what was named.
    """
    from pathlib import Path

    path = Path(model) if model is not None else Path(artifacts) / ONNX
    if doctor:
        return _print_doctor(path, model is not None, output_format, device)
    if info:
        return _print_info(path, output_format, device)
    if self_test:
        return _print_self_test(path, output_format, device, threads)
    if not images:
        raise click.UsageError("Nothing to classify: name an image or a folder, or - for stdin.")
    if resume and output is None:
        raise click.UsageError("--resume goes on with a file: name it with --output.")
    from clf_runtime.run import RunOptions

    return _answer(
        RunOptions(
            model=path,
            images=images,
            recursive=recursive,
            top=top,
            threshold=threshold,
            output_format=output_format,
            device=device,
            threads=threads,
            batch_size=batch_size,
            output=None if output is None else Path(output),
            resume=resume,
            annotate=None if annotate is None else Path(annotate),
        )
    )


def main() -> NoReturn:
    """Run the command; the entry point."""
    import gc

    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    execute(command, leave_at_once=True)


def _print_info(path: Path, output_format: str, device: str) -> int:
    from clf_runtime import onnx_file
    from clf_runtime.diagnostics import info

    file = onnx_file.read(path)
    where = info.here(file, device)
    if output_format == "text":
        click.echo(info.table(file, where))
    else:
        import json

        click.echo(json.dumps(info.description(file, where), indent=None if output_format == "jsonl" else 1))
    return EXIT_OK


def _print_self_test(path: Path, output_format: str, device: str, threads: int | None) -> int:
    from clf_runtime.classifier import Classifier
    from clf_runtime.diagnostics.selftest import run_self_test

    classifier = Classifier.load(path, device=device, threads=threads)
    if classifier.warning:
        say(f"clf-run: {classifier.warning}")
    result = run_self_test(classifier)
    if output_format == "text":
        click.echo(f"{path}: {result}")
    else:
        import json
        from dataclasses import asdict

        click.echo(json.dumps({"path": str(path), "passed": result.passed, **asdict(result)}))
    return EXIT_OK if result.passed else EXIT_INVALID


def _print_doctor(path: Path, asked_for: bool, output_format: str, device: str) -> int:
    from clf_runtime.diagnostics import doctor

    found = doctor.examine(path, asked_for, device)
    click.echo(doctor.table(found) if output_format == "text" else doctor.as_json(found))
    return doctor.exit_code(found)


def _answer(options: RunOptions) -> int:
    import sys

    from clf_runtime.progress import Terminal
    from clf_runtime.run import answer

    # Names are bytes to the system: what is not UTF-8 goes out as it came in.
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")  # type: ignore[union-attr]
    terminal = Terminal(options)
    try:
        statistics = answer(options, _write, terminal)
    finally:
        terminal.clear()
    say(_summary(statistics))
    return EXIT_SOME_FAILED if statistics.failures else EXIT_OK


def _write(line: str) -> None:
    import sys

    sys.stdout.write(line)
    sys.stdout.flush()


def _summary(statistics: RunStatistics) -> str:
    from clf_runtime.progress import per_second

    parts = [
        f"{statistics.images:,} {'image' if statistics.images == 1 else 'images'}",
        f"{statistics.failures:,} failed",
    ]
    if statistics.before:
        parts[0] += f" ({statistics.before:,} of them by the run before)"
    if statistics.images > statistics.before:
        parts.append(per_second(statistics.rate()))
    return f"clf-run: {', '.join(parts)}, on {statistics.provider}"
