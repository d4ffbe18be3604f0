"""`clf-run --stream`: its options, and how it ends."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from clf_runtime.command import is_given, raise_if_given, say
from clf_runtime.errors import EXIT_OK, EXIT_SOME_FAILED
from clf_runtime.session import silence_log
from clf_runtime.streams.labels import LabelOptions
from clf_runtime.streams.reader import read_descriptor
from clf_runtime.streams.run import StreamOptions, StreamRun

_NOT_FOR_STREAMS = ("images", "recursive", "batch_size", "output", "resume", "annotate", "server")
_DEFAULT_SMOOTH_S = 0.5  # with --on-change


def classify_stream(context: click.Context, model: Path) -> int:
    """Classify the frames on stdin, print a summary, and return the exit code.

    Args:
        context: The options of `clf-run`.
        model: The model file.

    Raises:
        click.UsageError: The options contradict each other, or stdin is a terminal.
        ClfError: See `StreamRun`.
    """
    options = _parse(context, model)
    if sys.stdin.isatty():
        raise click.UsageError("--stream reads frames from stdin, which is a terminal; pipe a camera into it.")
    silence_log()
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    run = StreamRun(options, _write, _warn)
    try:
        run.execute(read_descriptor(sys.stdin.fileno()))
    finally:
        _warn(str(run.statistics))
    return EXIT_SOME_FAILED if run.statistics.damaged else EXIT_OK


def _parse(context: click.Context, model: Path) -> StreamOptions:
    given = context.params
    raise_if_given(
        context, _NOT_FOR_STREAMS, "cannot be used with --stream, which reads stdin and writes jsonl to stdout"
    )
    if is_given(context, "output_format") and given["output_format"] != "jsonl":
        raise click.UsageError(f"--stream prints jsonl, not {given['output_format']}.")
    default_s = _DEFAULT_SMOOTH_S if given["on_change"] else 0.0
    return StreamOptions(
        model=model,
        device=given["device"],
        threads=given["threads"],
        max_image_bytes=given["max_image_bytes"],
        require_signature=tuple(map(Path, given["require_signature"])),
        keeps_latest=given["keeps_latest"],
        labels=LabelOptions(
            top=given["top"],
            threshold=given["threshold"],
            smooth_s=default_s if given["smooth"] is None else given["smooth"],
            only_changes=given["on_change"],
        ),
    )


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _warn(message: str) -> None:
    say(f"clf-run: {message}")
