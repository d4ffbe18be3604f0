"""`clf-run --watch`: its options, and how it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import click

from clf_runtime.command import is_given, raise_if_given, say
from clf_runtime.session import silence_log
from clf_runtime.sinks.output import check_target
from clf_runtime.watch.run import WatchOptions, WatchRun

_NOT_FOR_FOLDERS = ("images", "resume", "annotate", "stream", "server")


def watch_folder(context: click.Context, model: Path) -> NoReturn:
    """Classify the files that arrive in a folder, until a signal ends it; print a summary.

    Args:
        context: The options of `clf-run`.
        model: The model file.

    Raises:
        click.UsageError: The options contradict each other.
        ClfError: See `WatchRun`.
    """
    options = _parse(context, model)
    silence_log()
    run = WatchRun(options, _warn)
    try:
        run.execute()
    finally:
        _warn(f"{run.statistics.images:,} images, {run.statistics.failures:,} failed, on {run.statistics.provider}")


def _parse(context: click.Context, model: Path) -> WatchOptions:
    given = context.params
    raise_if_given(context, _NOT_FOR_FOLDERS, "cannot be used with --watch")
    if is_given(context, "output_format") and given["output_format"] != "jsonl":
        raise click.UsageError(f"--watch writes jsonl, not {given['output_format']}.")
    if given["output"] is None:
        raise click.UsageError("--watch needs a file for the results: name it with --output.")
    folder, move_to = given["watch"], given["move_to"]
    if not os.path.isdir(folder):  # noqa: PTH112 (a string is needed)
        raise click.UsageError(f"--watch {folder}: no such folder.")
    if move_to is not None:
        _check_move_to(folder, Path(move_to), given["recursive"])
    return WatchOptions(
        model=model,
        device=given["device"],
        threads=given["threads"],
        max_image_bytes=given["max_image_bytes"],
        require_signature=tuple(map(Path, given["require_signature"])),
        batch_size=given["batch_size"],
        top=given["top"],
        threshold=given["threshold"],
        folder=folder,
        recursive=given["recursive"],
        output=check_target(Path(given["output"])),
        move_to=None if move_to is None else Path(move_to),
    )


def _check_move_to(folder: str, move_to: Path, recursive: bool) -> None:
    try:
        move_to.mkdir(exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"--move-to {move_to}: {error.strerror}.") from None
    inside = move_to.resolve().is_relative_to(Path(folder).resolve())
    if move_to.resolve() == Path(folder).resolve() or (recursive and inside):
        raise click.UsageError(f"--move-to {move_to}: is watched itself; name a folder outside of {folder}.")
    if move_to.stat().st_dev != Path(folder).stat().st_dev:
        raise click.UsageError(f"--move-to {move_to}: on another file system than {folder}; name a folder on the same.")


def _warn(message: str) -> None:
    say(f"clf-run: {message}")
