"""Atomic writes: a file or a folder appears under its name complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there becomes `path` when the block ends.

    An existing file stays until then, and stays for good if the block raises. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _adding_filename(path):
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically. Raises OSError."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def atomic_folder(folder: Path, last: str, obsolete: tuple[str, ...]) -> Iterator[Path]:
    """Yield an empty temporary folder inside `folder`; its entries are moved to `folder` when the block ends.

    Args:
        folder: The folder; created if it does not exist.
        last: The entry whose presence means that all others are complete: the old one is removed first, and the new one
            is moved last.
        obsolete: Entries of the earlier content to remove.

    Raises:
        OSError: `folder` is a file, or something cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "this is a file; expected a folder or an unused name", str(folder))
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    staging = folder / f".staging.{os.getpid()}"
    try:
        staging.mkdir()
        with _adding_filename(folder):
            yield staging
        for entry in sorted(staging.rglob("*")):
            sync(entry)
        with _deferring_interrupts():
            (folder / last).unlink(missing_ok=True)
            for name in obsolete:
                (folder / name).unlink(missing_ok=True)
            for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == last):
                _move(entry, folder / entry.name)
            sync(folder)
    finally:
        with _deferring_interrupts():
            shutil.rmtree(staging, ignore_errors=True)
            if is_new:
                with contextlib.suppress(OSError):  # not empty: it was written
                    folder.rmdir()


@contextlib.contextmanager
def _deferring_interrupts() -> Iterator[None]:
    """Deliver Ctrl-C and SIGTERM after the block, which must not end halfway."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of processes that were killed."""
    for abandoned in folder.glob(".staging.*"):
        process_id = abandoned.name.rpartition(".")[2]
        if process_id.isdigit() and not _is_running(int(process_id)):
            shutil.rmtree(abandoned, ignore_errors=True)
    for abandoned in folder.glob(".*.tmp"):
        process_id = abandoned.name.split(".")[-2]
        if process_id.isdigit() and not _is_running(int(process_id)):
            abandoned.unlink(missing_ok=True)


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def _adding_filename(path: Path) -> Iterator[None]:
    """Add the file name to an OSError that has none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
    """Flush a file or a folder to disk, before anything refers to it. Raises OSError."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot flush a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(entry: Path, target: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(target, ignore_errors=True)
    entry.replace(target)
