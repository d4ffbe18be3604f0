"""From what was named on the command line to the images to classify, in a fixed order."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clf_runtime.errors import ImageError
from clf_runtime.preprocess import HEAD_BYTES, SUFFIXES, ImageInput, detect_format, image_error_from_os_error

STDIN = "-"
LIST = "@"
_PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class ImageSource:
    """One image to classify: the name that its record carries, and what to decode."""

    name: str
    source: ImageInput | ImageError


def find_images(arguments: Iterable[str], recursive: bool) -> Iterator[ImageSource]:
    """Give an image for each file, and one for each image file in each folder, sorted by name.

    A file is tried whatever it is called; in a folder the suffix decides, and hidden files are passed over.
    A name with nothing behind it is given all the same: its record will say so, in its place. Only then is it
    looked at as a list (@FILE) or as a pattern that no shell has expanded.
    """
    for argument in arguments:
        if argument == STDIN:
            yield ImageSource(STDIN, _from_stdin())
        elif os.path.lexists(argument):
            yield from _named(argument, recursive)
        elif argument.startswith(LIST):
            yield from _listed(argument, recursive)
        elif _PATTERN & set(argument):
            yield from _matching(argument, recursive)
        else:
            yield ImageSource(argument, argument)


def is_read_once(argument: str) -> bool:
    """Say whether a second look at this argument would find nothing: stdin, or a list that comes through a pipe."""
    return argument == STDIN or (argument.startswith(LIST) and not Path(argument[1:]).is_file())


def _from_stdin() -> bytes:
    """Read an image to its end; of anything else only as much as shows what it is, since it may have none."""
    head = sys.stdin.buffer.read(HEAD_BYTES)
    return head if detect_format(head) is None else head + sys.stdin.buffer.read()


def _named(name: str, recursive: bool) -> Iterator[ImageSource]:
    if Path(name).is_dir():
        yield from _in_folder(name, recursive)
    else:
        yield ImageSource(name, name)


def _matching(pattern: str, recursive: bool) -> Iterator[ImageSource]:
    import glob  # most runs do without

    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (Path.glob drops a leading ./)
    for name in names:
        yield from _named(name, recursive)
    if not names:
        yield ImageSource(pattern, ImageError("not-found", "nothing has this name, and nothing matches it"))


def _listed(argument: str, recursive: bool) -> Iterator[ImageSource]:
    """Give what a list names: a file or a folder on each line, or up to each zero byte where it has one."""
    try:
        content = sys.stdin.buffer.read() if argument == LIST + STDIN else Path(argument[1:]).read_bytes()
    except OSError as error:
        yield ImageSource(argument, image_error_from_os_error(error))
        return
    content = content.removeprefix(codecs.BOM_UTF8)
    names = content.split(b"\0") if b"\0" in content else content.replace(b"\r\n", b"\n").split(b"\n")
    for name in filter(None, names):
        yield from _named(os.fsdecode(name), recursive)
    if not any(names):
        yield ImageSource(argument, ImageError("empty", "it is a list without names"))


def _in_folder(folder: str, recursive: bool) -> Iterator[ImageSource]:
    found = False
    try:
        for path in _files(folder, recursive):
            found = True
            yield ImageSource(path, path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        kind = "no-permission" if isinstance(error, PermissionError) else "unreadable"
        yield ImageSource(folder, ImageError(kind, reason))
        return
    if not found:
        hint = "" if recursive else "; -r looks into its folders too"
        yield ImageSource(folder, ImageError("empty", f"it is a folder without images{hint}"))


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
