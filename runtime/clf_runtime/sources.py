"""From the arguments of the command line to the images to classify, in a fixed order."""

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
LIST_PREFIX = "@"
_PATTERN_CHARACTERS = frozenset("*?[")

Content = ImageInput | ImageError


@dataclass(frozen=True)
class ImageSource:
    """One image to classify.

    Attributes:
        name: The path that its result carries.
        content: What to decode, or why there is nothing to decode.
    """

    name: str
    content: Content


def find_images(arguments: Iterable[str], recursive: bool) -> Iterator[ImageSource]:
    """Yield one image for each file, and one for each image file in each folder, sorted by name.

    A file is used whatever its name is. In a folder the suffix decides, and hidden files are skipped. An argument that
    does not exist is a list (@FILE) or a pattern that the shell did not expand; otherwise it is yielded as it is, and
    its result reports in its place that it does not exist.

    Args:
        arguments: Files, folders, lists, patterns, or `-` for an image on stdin.
        recursive: Whether to include subfolders.
    """
    for argument in arguments:
        if argument == STDIN:
            yield ImageSource(STDIN, _read_stdin())
        elif os.path.lexists(argument):
            yield from _expand_path(argument, recursive)
        elif argument.startswith(LIST_PREFIX):
            yield from _expand_list(argument, recursive)
        elif _PATTERN_CHARACTERS & set(argument):
            yield from _expand_pattern(argument, recursive)
        else:
            yield ImageSource(argument, argument)


def is_read_once(argument: str) -> bool:
    """Return whether an argument can be read only once: stdin, or a list that comes through a pipe."""
    return argument == STDIN or (argument.startswith(LIST_PREFIX) and not Path(argument[1:]).is_file())


def _read_stdin() -> bytes:
    """Read an image to its end, and of anything else only its first bytes, because it may be infinite."""
    head = sys.stdin.buffer.read(HEAD_BYTES)
    return head if detect_format(head) is None else head + sys.stdin.buffer.read()


def _expand_path(path: str, recursive: bool) -> Iterator[ImageSource]:
    if Path(path).is_dir():
        yield from _expand_folder(path, recursive)
    else:
        yield ImageSource(path, path)


def _expand_pattern(pattern: str, recursive: bool) -> Iterator[ImageSource]:
    import glob  # most runs do not need it

    paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (Path.glob drops a leading ./)
    for path in paths:
        yield from _expand_path(path, recursive)
    if not paths:
        yield ImageSource(pattern, ImageError("not-found", "no file has this name, and none matches the pattern"))


def _expand_list(argument: str, recursive: bool) -> Iterator[ImageSource]:
    """Yield the images of a list: one name per line, or separated by zero bytes if it contains any."""
    try:
        content = sys.stdin.buffer.read() if argument == LIST_PREFIX + STDIN else Path(argument[1:]).read_bytes()
    except OSError as error:
        yield ImageSource(argument, image_error_from_os_error(error))
        return
    content = content.removeprefix(codecs.BOM_UTF8)
    names = content.split(b"\0") if b"\0" in content else content.replace(b"\r\n", b"\n").split(b"\n")
    for name in filter(None, names):
        yield from _expand_path(os.fsdecode(name), recursive)
    if not any(names):
        yield ImageSource(argument, ImageError("empty", "the list contains no names"))


def _expand_folder(folder: str, recursive: bool) -> Iterator[ImageSource]:
    is_empty = True
    try:
        for path in _image_files(folder, recursive):
            is_empty = False
            yield ImageSource(path, path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        kind = "no-permission" if isinstance(error, PermissionError) else "unreadable"
        yield ImageSource(folder, ImageError(kind, reason))
        return
    if is_empty:
        hint = "" if recursive else "; use -r to include its subfolders"
        yield ImageSource(folder, ImageError("empty", f"the folder contains no images{hint}"))


def _image_files(folder: str, recursive: bool) -> Iterator[str]:
    with os.scandir(folder) as entries:
        sorted_entries = sorted(entries, key=lambda entry: entry.name)
    for entry in sorted_entries:
        if entry.name.startswith("."):
            continue
        if recursive and entry.is_dir(follow_symlinks=False):
            yield from _image_files(entry.path, recursive)
        elif Path(entry.name).suffix.lower() in SUFFIXES and (not entry.is_dir() or not recursive):
            yield entry.path
