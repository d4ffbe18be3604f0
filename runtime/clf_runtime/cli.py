"""`clf-run`: classify pictures with an exported model. Parses, calls, prints.

Everything heavy is imported inside the command, so that `--help` costs what click costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import click

from clf_runtime import __version__
from clf_runtime.artifacts import ONNX
from clf_runtime.command import ARTIFACTS_OPTION, run, say
from clf_runtime.errors import EXIT_DONE, EXIT_REFUSED, EXIT_SOME_FAILED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from clf_runtime.predictions import Result


@click.command(
    "clf-run",
    epilog="""\b
Examples:
  clf-run img.jpg
  clf-run artifacts/samples --top 3
  clf-run photos -r --format jsonl > answers.jsonl
  cat img.jpg | clf-run - --model model.onnx
  clf-run --self-test

\b
Exit codes: 0 all done, 1 some pictures failed, 2 wrong usage, 3 model refused,
4 this machine cannot do it, 130 Ctrl-C.""",
)
@click.argument("pictures", nargs=-1, metavar="IMAGE|DIR|-...")
@ARTIFACTS_OPTION
@click.option("--model", "-m", metavar="FILE", help="The exported model.  [default: model.onnx in --artifacts]")
@click.option("--top", "-k", type=click.IntRange(1), default=1, show_default=True, help="How many labels to give.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "jsonl", "json", "csv"]),
    default="text",
    show_default=True,
    help="How answers are written to stdout. In text, failures go to stderr; else they keep their place.",
)
@click.option("--recursive", "-r", is_flag=True, help="Look into the folders of a folder too.")
@click.option(
    "--device",
    metavar="auto|cpu|cuda[:N]",
    default="auto",
    show_default=True,
    help="cuda works or fails; auto takes it where it works.",
)
@click.option("--threads", type=click.IntRange(1), help="Cores to use.  [default: all that this process may]")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Pictures run at once.")
@click.option("--self-test", is_flag=True, help="Replay the proof inside the model on this machine.")
@click.option("--info", is_flag=True, help="Say what the model is, without running it.")
@click.version_option(__version__, prog_name="clf-run")
def command(
    pictures: tuple[str, ...],
    artifacts: str,
    model: str | None,
    top: int,
    output_format: str,
    recursive: bool,
    device: str,
    threads: int | None,
    batch_size: int,
    self_test: bool,
    info: bool,
) -> int:
    """Classify pictures: files, folders, or - for one on stdin.

    Prints PATH, LABEL and PROBABILITY, separated by tabs, in the order of what was named.
    """
    path = _model_path(model, artifacts)
    if info:
        return _print_info(path, output_format)
    if self_test:
        return _print_self_test(path, device, threads)
    if not pictures:
        raise click.UsageError("Nothing to classify: name a picture or a folder, or - for stdin.")
    return _print_predictions(path, pictures, recursive, top, output_format, device, threads, batch_size)


def main() -> NoReturn:
    """Run the command; the entry point."""
    run(command)


def _model_path(model: str | None, folder: str) -> Path:
    from pathlib import Path

    return Path(model) if model is not None else Path(folder) / ONNX


def _print_info(path: Path, output_format: str) -> int:
    from clf_runtime import info, onnx_file

    file = onnx_file.read(path)
    if output_format == "text":
        click.echo(info.table(file))
    else:
        import json

        click.echo(json.dumps(info.description(file), indent=None if output_format == "jsonl" else 1))
    return EXIT_DONE


def _print_self_test(path: Path, device: str, threads: int | None) -> int:
    from clf_runtime.classifier import Classifier
    from clf_runtime.selftest import replay

    outcome = replay(Classifier.load(path, device=device, threads=threads))
    click.echo(
        f"{path}: {'passed' if outcome.passed else 'FAILED'}: {outcome.pictures} pictures on {outcome.provider}, "
        f"max |difference of a logit| {outcome.max_difference:.1e} ({outcome.worst}), "
        f"tolerance {outcome.tolerance:.0e}, labels flipped {outcome.flipped}"
    )
    return EXIT_DONE if outcome.passed else EXIT_REFUSED


def _print_predictions(
    path: Path,
    arguments: tuple[str, ...],
    recursive: bool,
    top: int,
    output_format: str,
    device: str,
    threads: int | None,
    batch_size: int,
) -> int:
    import sys
    from itertools import chain, islice

    from clf_runtime.classifier import Classifier
    from clf_runtime.machine import usable_cores
    from clf_runtime.pictures import named_pictures
    from clf_runtime.predictions import lines

    found = named_pictures(arguments, recursive)
    first = list(islice(found, 2))
    cores = threads or usable_cores()
    # One picture gets every core; of many, each gets its own.
    classifier = Classifier.load(path, device=device, threads=cores, workers=cores if len(first) > 1 else 1)
    count = _Count()
    results = classifier.predict_named(chain(first, found), batch_size=batch_size, top=top)
    # Names are bytes to the system: what is not UTF-8 goes out as it came in.
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")  # type: ignore[union-attr]
    for line in lines(count.counted(results, told=output_format == "text"), output_format):
        sys.stdout.write(line)
        sys.stdout.flush()
    say(
        f"clf-run: {count.pictures} {'picture' if count.pictures == 1 else 'pictures'}, "
        f"{count.failures} failed, on {classifier.provider}"
    )
    return EXIT_SOME_FAILED if count.failures else EXIT_DONE


class _Count:
    """Counts results as they pass, and tells of failures where the output format has no place for them."""

    def __init__(self) -> None:
        self.pictures = 0
        self.failures = 0

    def counted(self, results: Iterable[Result], told: bool) -> Iterator[Result]:
        from clf_runtime.predictions import Failure

        for result in results:
            self.pictures += 1
            if isinstance(result, Failure):
                self.failures += 1
                if told:
                    say(f"clf-run: {result}")
            yield result
