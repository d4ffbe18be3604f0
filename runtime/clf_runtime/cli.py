"""`clf-run`: classify images with an exported model. Parses, calls, prints.

Heavy modules are imported inside the command, so that `--help` only takes the time to import click.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import click

from clf_runtime import __version__
from clf_runtime.artifacts import ONNX
from clf_runtime.command import (
    ARTIFACTS_OPTION,
    MAX_IMAGE_BYTES_OPTION,
    REQUIRE_SIGNATURE_OPTION,
    Duration,
    execute,
    raise_if_given,
    say,
)
from clf_runtime.errors import EXIT_INVALID, EXIT_OK, EXIT_SOME_FAILED, escape

if TYPE_CHECKING:
    from pathlib import Path

    from clf_runtime.run import RunOptions, RunStatistics

# By default Python collects garbage 100 times while it imports numpy and onnxruntime: 4 % of the time of one image.
_OBJECTS_BETWEEN_COLLECTIONS = 20_000


@click.command(
    "clf-run",
    epilog="""\b
Examples:
  clf-run img.jpg
  clf-run artifacts/samples --top 3
  clf-run photos -r --format jsonl > results.jsonl
  clf-run photos -r --format csv --output results.csv --resume
  clf-run photos --threshold 0.8 --annotate annotated
  cat img.jpg | clf-run - --model model.onnx
  ffmpeg -i rtsp://camera/1 -f mjpeg - | clf-run --stream --on-change
  find photos -name '*.jpg' -print0 | clf-run @-
  clf-run --watch incoming --output results.jsonl --move-to done
  clf-run --self-test
  clf-run --doctor --model model.onnx --device cuda

\b
Exit codes: 0 success, 1 some images failed, 2 usage error, 3 invalid model,
4 this machine cannot do it, 130 interrupted.""",
)
@click.argument("images", nargs=-1, metavar="IMAGE|DIR|@LIST|-...")
@ARTIFACTS_OPTION
@click.option("--model", "-m", metavar="FILE", help="Exported model.  [default: model.onnx in --artifacts]")
@click.option("--top", "-k", type=click.IntRange(1), default=1, show_default=True, help="Number of labels per image.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="P",
    help="Replace labels with a score below P by unknown.  [default: none]",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "jsonl", "json", "csv"]),
    default="text",
    show_default=True,
    help="Output format. In text, failures are printed on stderr; in the others, in their place.",
)
@click.option("--output", "-o", metavar="FILE", help="Write the results to FILE, atomically, instead of stdout.")
@click.option("--resume", is_flag=True, help="Resume the --output of an interrupted run.")
@click.option("--annotate", metavar="DIR", help="Write copies of the images with their labels into DIR.")
@click.option("--recursive", "-r", is_flag=True, help="Include subfolders.")
@click.option(
    "--device",
    metavar="auto|cpu|cuda[:N]|NAME",
    default="auto",
    show_default=True,
    help="auto uses CUDA if it works. A named device runs or the command fails: cuda, or another execution provider "
    "of onnxruntime, such as openvino, tensorrt or coreml.",
)
@click.option("--threads", type=click.IntRange(1), help="Number of cores.  [default: all available to this process]")
@click.option(
    "--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Number of images per inference call."
)
@MAX_IMAGE_BYTES_OPTION
@REQUIRE_SIGNATURE_OPTION
@click.option("--stream", is_flag=True, help="Classify the frames of a camera or a video on stdin; prints jsonl.")
@click.option(
    "--latest/--every",
    "keeps_latest",
    default=True,
    help="With --stream: drop frames that the model is too slow for, or let the camera wait.  [default: latest]",
)
@click.option("--on-change", is_flag=True, help="With --stream: print only changes of the smoothed label.")
@click.option(
    "--smooth", type=Duration(), help="With --stream: smooth over TIME.  [default: 500ms with --on-change, else 0s]"
)
@click.option("--watch", metavar="FOLDER", help="Classify the files that arrive in FOLDER; appends jsonl to --output.")
@click.option("--move-to", metavar="DIR", help="With --watch: move classified files into DIR.")
@click.option(
    "--server",
    metavar="URL|unix:PATH",
    help="Let a running clf-serve classify. The environment variable CLF_TOKEN holds its token, if it needs one.",
)
@click.option("--self-test", is_flag=True, help="Verify on this machine that the model returns the logits of PyTorch.")
@click.option("--info", is_flag=True, help="Describe the model, and show where its graph runs on this machine.")
@click.option("--doctor", is_flag=True, help="Check this machine and the model, and show how to fix problems.")
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
    max_image_bytes: int,
    require_signature: tuple[str, ...],
    stream: bool,
    keeps_latest: bool,
    on_change: bool,
    smooth: float | None,
    watch: str | None,
    move_to: str | None,
    server: str | None,
    self_test: bool,
    info: bool,
    doctor: bool,
) -> int:
    """Classify images: files, folders, lists of them in @LIST, or - for an image on stdin.

    Prints path, label and probability, separated by tabs, in the order of the arguments.
    """
    from pathlib import Path

    path = Path(model) if model is not None else Path(artifacts) / ONNX
    keys = tuple(map(Path, require_signature))
    if doctor:
        return _print_doctor(path, model is not None, output_format, device, keys)
    if info:
        return _print_info(path, output_format, device, keys)
    if self_test:
        return _print_self_test(path, output_format, device, threads, keys)
    context = click.get_current_context()
    _check_options(context)
    if watch is not None:
        from clf_runtime.watch import command as watch_command

        watch_command.watch_folder(context, path)
    if stream:
        from clf_runtime.streams import command as stream_command

        return stream_command.classify_stream(context, path)
    from clf_runtime.run import RunOptions

    return _classify(
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
            max_image_bytes=max_image_bytes,
            output=None if output is None else Path(output),
            resume=resume,
            annotate=None if annotate is None else Path(annotate),
            server=server,
            require_signature=keys,
        )
    )


# What a service decides by its own options.
_OPTIONS_OF_A_SERVICE = ("model", "device", "threads", "batch_size", "annotate", "require_signature")


def _check_options(context: click.Context) -> None:
    """Raise click.UsageError if the options contradict each other."""
    given = context.params
    if given["watch"] is None and given["move_to"] is not None:
        raise click.UsageError("--move-to needs --watch.")
    if not given["stream"] and (given["on_change"] or given["smooth"] is not None or not given["keeps_latest"]):
        raise click.UsageError("--every, --on-change and --smooth need --stream.")
    if not (given["images"] or given["stream"] or given["watch"] is not None):
        raise click.UsageError("No images: name an image or a folder, or - for stdin.")
    if given["server"] is not None:
        raise_if_given(context, _OPTIONS_OF_A_SERVICE, "does not go with --server, whose images the service classifies")
    if given["resume"] and given["output"] is None and not given["stream"]:
        raise click.UsageError("--resume needs the file of the interrupted run: name it with --output.")


def main() -> NoReturn:
    """Run the command; the entry point."""
    import gc

    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    execute(command, exit_immediately=True)


def _print_info(path: Path, output_format: str, device: str, keys: tuple[Path, ...]) -> int:
    from clf_runtime import onnx_file
    from clf_runtime.diagnostics import info

    file = onnx_file.read_trusted(path, keys)
    placement = info.find_placement(file, device)
    if output_format == "text":
        click.echo(info.table(file, placement))
    else:
        import json

        click.echo(json.dumps(info.to_dict(file, placement), indent=None if output_format == "jsonl" else 1))
    return EXIT_OK


def _print_self_test(path: Path, output_format: str, device: str, threads: int | None, keys: tuple[Path, ...]) -> int:
    from clf_runtime.classifier import Classifier
    from clf_runtime.diagnostics.selftest import run_self_test
    from clf_runtime.session import silence_log

    silence_log()
    classifier = Classifier.load(path, device=device, threads=threads, require_signature=keys)
    if classifier.warning:
        say(f"clf-run: {classifier.warning}")
    result = run_self_test(classifier)
    if output_format == "text":
        click.echo(escape(f"{path}: {result}"))
    else:
        import json

        click.echo(json.dumps({"path": str(path), **result.to_dict()}))
    return EXIT_OK if result.passed else EXIT_INVALID


def _print_doctor(path: Path, is_named: bool, output_format: str, device: str, keys: tuple[Path, ...]) -> int:
    from clf_runtime.diagnostics import doctor

    findings = doctor.examine(path, is_named, device, keys)
    click.echo(doctor.table(findings) if output_format == "text" else doctor.to_json(findings))
    return doctor.exit_code(findings)


def _classify(options: RunOptions) -> int:
    import sys

    from clf_runtime.progress import TerminalCallbacks
    from clf_runtime.run import Run

    if options.server is None:
        from clf_runtime.session import silence_log

        silence_log()
    # File names are bytes: those that are not UTF-8 are printed unchanged.
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")  # type: ignore[union-attr]
    callbacks = TerminalCallbacks(options)
    try:
        statistics = Run(options, _write, callbacks).execute()
    finally:
        callbacks.clear()
    say(_summarize(statistics))
    return EXIT_SOME_FAILED if statistics.failures else EXIT_OK


def _write(text: str) -> None:
    import sys

    sys.stdout.write(text)
    sys.stdout.flush()


def _summarize(statistics: RunStatistics) -> str:
    from clf_runtime.progress import format_rate

    images = f"{statistics.images:,} {'image' if statistics.images == 1 else 'images'}"
    if statistics.resumed:
        images += f" ({statistics.resumed:,} by the interrupted run)"
    parts = [images, f"{statistics.failures:,} failed"]
    if statistics.images > max(statistics.resumed, statistics.failures):  # otherwise it is the rate of error messages
        parts.append(format_rate(statistics.rate()))
    return f"clf-run: {', '.join(parts)}, on {statistics.provider}"
