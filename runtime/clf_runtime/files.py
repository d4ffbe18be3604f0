"""Atomic writes: a file appears under its name complete, or not at all."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from clf_runtime.errors import MachineError, format_reason
from clf_runtime.system import sync


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there becomes `path` when the block ends.

    An existing file stays until then, and stays for good if the block raises.

    Raises:
        MachineError: the file is complete, but may be lost in a power failure.
        OSError: it cannot be written; an existing file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with adding_filename(path):
            yield temporary
            sync(temporary)
            replace(temporary, path)
    except OSError as error:
        if str(error.filename) == str(temporary):  # a name that means nothing to the user
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # it is hidden, and removed by the next process that writes the folder
            temporary.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically. Raises MachineError, OSError as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def replace(complete: Path, path: Path) -> None:
    """Rename a complete file, and flush its folder.

    Raises:
        MachineError: it has its new name, but may be lost in a power failure.
        OSError: it cannot be renamed; both files are unchanged.
    """
    complete.replace(path)
    try:
        sync(path.parent)
    except OSError as error:
        raise MachineError(
            f"{path}: written completely, but its folder could not be flushed to disk "
            f"({format_reason(error)}), so a power failure may undo it; check the disk"
        ) from None


@contextlib.contextmanager
def deferring_interrupts() -> Iterator[None]:
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


@contextlib.contextmanager
def adding_filename(path: Path) -> Iterator[None]:
    """Add the file name to an OSError that has none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
