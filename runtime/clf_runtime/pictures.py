"""From what was named on the command line to the pictures to classify, in a fixed order."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clf_runtime.errors import PictureRefused
from clf_runtime.preprocess import SUFFIXES

STDIN = "-"


@dataclass(frozen=True)
class Named:
    """One picture to classify: the name that its record carries, and what to decode."""

    name: str
    source: str | bytes | PictureRefused


def named_pictures(arguments: Iterable[str], recursive: bool) -> Iterator[Named]:
    """Give a picture for each file, and one for each picture file in each folder, sorted by name.

    A file is tried whatever it is called; in a folder the suffix decides, and hidden files are passed over.
    A name with nothing behind it is given all the same: its record will say so, in its place.
    """
    for argument in arguments:
        if argument == STDIN:
            yield Named(STDIN, sys.stdin.buffer.read())
        elif not Path(argument).is_dir():
            yield Named(argument, argument)
        else:
            yield from _in_folder(argument, recursive)


def _in_folder(folder: str, recursive: bool) -> Iterator[Named]:
    found = False
    try:
        for path in _files(folder, recursive):
            found = True
            yield Named(path, path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        kind = "no-permission" if isinstance(error, PermissionError) else "unreadable"
        yield Named(folder, PictureRefused(kind, reason))
        return
    if not found:
        hint = "" if recursive else "; -r looks into its folders too"
        yield Named(folder, PictureRefused("empty", f"it is a folder without pictures{hint}"))


def _files(folder: str, recursive: bool) -> Iterator[str]:
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        if entry.name.startswith("."):
            continue
        if recursive and entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path, recursive)
        elif Path(entry.name).suffix.lower() in SUFFIXES and (not entry.is_dir() or not recursive):
            yield entry.path
