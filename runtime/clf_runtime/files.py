"""Files that appear under their name complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary file name beside `path`; what is written there becomes `path` when the block ends.

    Whatever `path` held before stays until then, and for good when the block raises. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _naming(path):
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Write `content` to `path`, complete or not at all. Raises OSError."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def atomic_folder(folder: Path, last: str, obsolete: tuple[str, ...]) -> Iterator[Path]:
    """Give an empty temporary folder inside `folder`; its entries become `folder`'s when the block ends.

    `last` is the name whose presence says that all the others are there: the old one goes first, the new
    one comes last, so a folder that has it is whole at every moment. `obsolete` names what a former
    content left and the new one does not have. Raises OSError.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file; expected a folder, or nothing yet", str(folder))
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    staging = folder / f".staging.{os.getpid()}"
    try:
        staging.mkdir()
        with _naming(folder):
            yield staging
        for entry in sorted(staging.rglob("*")):
            sync(entry)
        (folder / last).unlink(missing_ok=True)
        for name in obsolete:
            (folder / name).unlink(missing_ok=True)
        for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == last):
            _move(entry, folder / entry.name)
        sync(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):  # it is not empty: all went well
                folder.rmdir()


def _sweep(folder: Path) -> None:
    """Remove what processes left that were killed."""
    for left in folder.glob(".staging.*"):
        number = left.name.rpartition(".")[2]
        if number.isdigit() and not _is_running(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    for left in folder.glob(".*.tmp"):
        number = left.name.split(".")[-2]
        if number.isdigit() and not _is_running(int(number)):
            left.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A full disk is told by a write, which does not say of which file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
    """Have the operating system put a file or a folder on disk before anything refers to it."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle to flush for a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(entry: Path, target: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(target, ignore_errors=True)
    entry.replace(target)
