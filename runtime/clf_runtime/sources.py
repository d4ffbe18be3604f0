"""From the arguments of the command line to the images to classify, in a fixed order."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from clf_runtime.errors import ImageError
from clf_runtime.image_files import (
    HEAD_BYTES,
    MAX_IMAGE_BYTES,
    SUFFIXES,
    detect_format,
    image_error_from_os_error,
)

if TYPE_CHECKING:
    from clf_runtime.preprocess import ImageInput

    Content: TypeAlias = ImageInput | ImageError

STDIN = "-"
LIST_PREFIX = "@"
_PATTERN_CHARACTERS = frozenset("*?[")

# A list is read in pieces; one without a name in it is no list, and may be endless.
_PIECE_BYTES = 1 << 16


@dataclass(frozen=True)
class ImageSource:
    """One image to classify.

    Attributes:
        name: The path that its result carries.
        content: What to decode, or why there is nothing to decode.
    """

    name: str
    content: Content


def find_images(arguments: Iterable[str], recursive: bool, max_bytes: int = MAX_IMAGE_BYTES) -> Iterator[ImageSource]:
    """Yield one image for each file, and one for each image file in each folder, sorted by name.

    A file is used whatever its name is. In a folder the suffix decides, and hidden files are skipped. An argument that
    does not exist is a list (@FILE) or a pattern that the shell did not expand; otherwise it is yielded as it is, and
    its result reports in its place that it does not exist.

    Args:
        arguments: Files, folders, lists, patterns, or `-` for an image on stdin.
        recursive: Whether to include subfolders.
        max_bytes: The largest image to read from stdin.
    """
    for argument in arguments:
        if argument == STDIN:
            yield ImageSource(STDIN, _read_stdin(max_bytes))
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
    return argument == STDIN or (argument.startswith(LIST_PREFIX) and not os.path.isfile(argument[1:]))  # noqa: PTH113


def _read_stdin(max_bytes: int) -> bytes | ImageError:
    """Read an image to its end, and of anything else only its first bytes, because it may be infinite."""
    try:
        head = sys.stdin.buffer.read(HEAD_BYTES)
        content = head if detect_format(head) is None else head + sys.stdin.buffer.read(max_bytes)
    except OSError as error:
        return image_error_from_os_error(error)
    if len(content) > max_bytes:
        return ImageError("too-large", f"more than {max_bytes / 1e6:,.0f} MB on stdin; name a file")
    return content


def _expand_path(path: str, recursive: bool) -> Iterator[ImageSource]:
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises if a name is too long or may not be looked up)
        yield from _expand_folder(path, recursive)
    else:
        yield ImageSource(path, path)


def _expand_pattern(pattern: str, recursive: bool) -> Iterator[ImageSource]:
    import glob  # most runs do not need it

    try:
        paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (Path.glob drops a leading ./)
    except RecursionError:
        yield ImageSource(pattern, ImageError("unreadable", "the folders are nested too deeply for **; use -r"))
        return
    for path in paths:
        yield from _expand_path(path, recursive)
    if not paths:
        yield ImageSource(pattern, ImageError("not-found", "no file has this name, and none matches the pattern"))


def _expand_list(argument: str, recursive: bool) -> Iterator[ImageSource]:
    """Yield the images of a list: one name per line, or separated by zero bytes if it begins with such names."""
    is_empty = True
    try:
        with _open_list(argument) as file:
            for name in _read_names(file):
                is_empty = False
                yield from _expand_path(os.fsdecode(name), recursive)
    except OSError as error:
        yield ImageSource(argument, image_error_from_os_error(error))
    except ImageError as error:
        yield ImageSource(argument, error)
    else:
        if is_empty:
            yield ImageSource(argument, ImageError("empty", "the list contains no names"))


def _open_list(argument: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if argument == LIST_PREFIX + STDIN:
        return contextlib.nullcontext(sys.stdin.buffer)
    return Path(argument[1:]).open("rb")


def _read_names(file: BinaryIO) -> Iterator[bytes]:
    """Yield the names in a list while it is read. Raises ImageError if 64 KiB of it contain no name."""
    piece = file.read(_PIECE_BYTES).removeprefix(codecs.BOM_UTF8)
    separator = b"\0" if b"\0" in piece else b"\n"
    line_end = b"" if separator == b"\0" else b"\r"
    rest = b""
    while piece:
        *complete, rest = (rest + piece).split(separator)
        names = [name for line in complete if (name := line.removesuffix(line_end))]
        yield from names
        if not names and len(piece) == _PIECE_BYTES:
            raise ImageError("unreadable", f"{_PIECE_BYTES:,} bytes without a name; expected one name per line")
        piece = file.read(_PIECE_BYTES)
    if rest:
        yield rest


def _expand_folder(folder: str, recursive: bool) -> Iterator[ImageSource]:
    is_empty = True
    for source in _folder_images(folder, recursive):
        is_empty = False
        yield source
    if is_empty:
        hint = "" if recursive else "; use -r to include its subfolders"
        yield ImageSource(folder, ImageError("empty", f"the folder contains no images{hint}"))


def _folder_images(folder: str, recursive: bool) -> Iterator[ImageSource]:
    """Yield the images in a folder, and in their place the folders that cannot be read."""
    # Not recursive: folders may be nested more deeply than Python calls functions.
    open_folders = [_scan(folder)]
    while open_folders:
        entry = next(open_folders[-1], None)
        if entry is None:
            open_folders.pop()
        elif isinstance(entry, ImageSource):
            yield entry
        elif recursive and is_folder(entry, follow_symlinks=False):
            open_folders.append(_scan(entry.path))
        elif Path(entry.name).suffix.lower() in SUFFIXES and (not recursive or not is_folder(entry)):
            yield ImageSource(entry.path, entry.path)


def _scan(folder: str) -> Iterator[os.DirEntry[str] | ImageSource]:
    """Yield the entries of a folder that are not hidden, by name, after the error that ended its listing, if any."""
    entries = []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if not entry.name.startswith("."):
                    entries.append(entry)
    except OSError as error:
        yield ImageSource(folder, image_error_from_os_error(error))
    yield from sorted(entries, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str], follow_symlinks: bool = True) -> bool:
    """Return whether an entry of a folder is a folder; links in a circle are none."""
    try:
        return entry.is_dir(follow_symlinks=follow_symlinks)
    except OSError:
        return False  # opening it reports what is wrong
