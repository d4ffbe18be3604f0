"""`clf-run --stream`: its options, and how it ends."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from clf_runtime.command import say
from clf_runtime.errors import EXIT_OK, EXIT_SOME_FAILED
from clf_runtime.session import silence_log
from clf_runtime.streams.labels import LabelOptions
from clf_runtime.streams.reader import read_descriptor
from clf_runtime.streams.run import StreamOptions, StreamRun

_NOT_FOR_STREAMS = ("images", "recursive", "batch_size", "output", "resume", "annotate", "server")
_DEFAULT_SMOOTH_S = 0.5  # with --on-change
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min)")
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0}


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
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        is_given = source is click.core.ParameterSource.COMMANDLINE
        if is_given and parameter.name in _NOT_FOR_STREAMS:
            name = parameter.opts[0] if isinstance(parameter, click.Option) else "an IMAGE"
            raise click.UsageError(
                f"{name} cannot be used with --stream, which reads stdin and writes jsonl to stdout."
            )
        if is_given and parameter.name == "output_format" and given["output_format"] != "jsonl":
            raise click.UsageError(f"--stream prints jsonl, not {given['output_format']}.")
    default_s = _DEFAULT_SMOOTH_S if given["on_change"] else 0.0
    return StreamOptions(
        model=model,
        device=given["device"],
        threads=given["threads"],
        max_image_bytes=given["max_image_bytes"],
        keeps_latest=given["keeps_latest"],
        labels=LabelOptions(
            top=given["top"],
            threshold=given["threshold"],
            smooth_s=default_s if given["smooth"] is None else _parse_duration(given["smooth"]),
            only_changes=given["on_change"],
        ),
    )


def _parse_duration(text: str) -> float:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise click.UsageError(f"--smooth {text}: not a time; expected 500ms, 2s or 1min, for example.")
    return float(found[1]) * _SECONDS[found[2]]


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _warn(message: str) -> None:
    say(f"clf-run: {message}")
