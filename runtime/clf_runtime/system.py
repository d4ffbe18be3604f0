"""What differs between Linux, macOS and Windows: flushing and mapping files, locks, and whether a process runs."""

from __future__ import annotations

import contextlib
import errno
import os
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

# File systems without locks: some network and FUSE mounts.
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}

# On Windows a locked byte cannot be read by others; this one lies behind the end of any file of ours.
_LOCKED_BYTE = 1 << 30

# Of the Windows API.
_SYNCHRONIZE, _ACCESS_DENIED, _WAIT_TIMEOUT = 0x100000, 5, 0x102


def is_windows() -> bool:
    """Return whether this is Windows."""
    return os.name == "nt"


def sync(path: Path) -> None:
    """Flush a file or a folder to disk, before anything refers to it. Raises OSError."""
    if is_windows() and path.is_dir():
        return  # Windows cannot flush a folder, and flushes a file only through a descriptor that may write
    descriptor = os.open(path, os.O_RDWR if is_windows() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def map_file(file: BinaryIO) -> memoryview:
    """Return the content of an open file that is not empty, mapped into memory where that does no harm.

    On Windows a mapped file can be neither replaced nor removed, so there the file is read.
    """
    if is_windows():
        file.seek(0)
        return memoryview(file.read())
    import mmap

    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def open_locked(path: Path) -> FileIO | None:
    """Open or create a file, for reading and appending, and lock it until it is closed.

    Returns None if another process has locked it. Where the file system has no locks, the file is only opened.

    Raises:
        OSError: It cannot be opened.
    """
    while True:
        file: FileIO = path.open("a+b", buffering=0)
        try:
            if not _lock(file):
                file.close()
                return None
            # The process that had locked it may have removed it since it was opened here.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def close_locked(file: FileIO, path: Path, remove: bool) -> None:
    """Close a file of `open_locked`, and remove it if asked to and possible: one that stays does no harm."""
    with contextlib.suppress(OSError):
        if remove and not is_windows():
            path.unlink(missing_ok=True)  # while it is locked: afterwards it may be the file of another process
    file.close()
    with contextlib.suppress(OSError):
        if remove and is_windows():  # where an open file cannot be removed
            path.unlink(missing_ok=True)


def is_running(process_id: int) -> bool:
    """Return whether a process with this id exists."""
    if is_windows():
        return _is_running_on_windows(process_id)  # there, signal 0 is Ctrl-C
    try:
        os.kill(process_id, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _lock(file: FileIO) -> bool:
    """Lock a file; return whether no other process has locked it."""
    if is_windows():
        import msvcrt

        locking: Any = msvcrt
        file.seek(_LOCKED_BYTE)
        try:
            locking.locking(file.fileno(), locking.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        import fcntl
    except ImportError:  # WebAssembly
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
    return True


def _is_running_on_windows(process_id: int) -> bool:
    kernel = _load_kernel32()
    process = kernel.OpenProcess(_SYNCHRONIZE, False, process_id)
    if not process:
        return bool(kernel.GetLastError() == _ACCESS_DENIED)  # it exists, and belongs to somebody else
    try:
        return bool(kernel.WaitForSingleObject(process, 0) == _WAIT_TIMEOUT)
    finally:
        kernel.CloseHandle(process)


def _load_kernel32() -> Any:
    """Return the functions of the Windows API, with the types of those that take or return a handle."""
    import ctypes

    kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009 (the attribute exists only on Windows)
    kernel.OpenProcess.restype = ctypes.c_void_p
    kernel.WaitForSingleObject.argtypes = (ctypes.c_void_p, ctypes.c_ulong)
    kernel.CloseHandle.argtypes = (ctypes.c_void_p,)
    return kernel
