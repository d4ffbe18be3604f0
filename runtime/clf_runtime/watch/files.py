"""Files in a watched folder: which version of them there is, and whether it is complete."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from clf_runtime.sources import ImageSource, find_images

# A file of which nothing else is known is complete if it does not change for as long.
SETTLE_S = 2.0


@dataclass(frozen=True)
class FileVersion:
    """A file with one content: one that is written again is another version.

    Attributes:
        path: Its path, below the watched folder as it was named.
        size_bytes: Its size.
        modified_ns: When it was modified.
    """

    path: str
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: str) -> FileVersion | None:
        """Return the version of a file that is there now; None if there is no regular file."""
        try:
            status = os.stat(path)  # noqa: PTH116 (a Path takes twice as long)
        except (OSError, ValueError):
            return None
        return cls(path, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def list_versions(folder: str, recursive: bool) -> Iterator[FileVersion]:
    """Yield the image files in a folder, sorted by name. Raises OSError if it cannot be listed."""
    os.scandir(folder).close()
    for source in find_images([folder], recursive):
        version = _version_of(source)
        if version is not None:
            yield version


def _version_of(source: ImageSource) -> FileVersion | None:
    return FileVersion.of(source.content) if isinstance(source.content, str) else None


class CompletionCheck:
    """Tells which files nobody writes any more.

    A file is complete if the file system reported that it was closed or moved here, or that it was created and no
    process on this machine has it open for writing; and without such a report, if it has not changed for some seconds.
    An empty file is one that somebody is going to write, unless it stays empty.
    """

    def __init__(self) -> None:
        """Begin without a file."""
        self._seen: dict[FileVersion, float] = {}  # when it was seen first

    def select(
        self, versions: Iterable[FileVersion], created: set[str], closed: set[str], now: float
    ) -> list[FileVersion]:
        """Return the versions that are complete.

        Args:
            versions: All files that have no result yet.
            created: Files that were reported as created.
            closed: Files that were reported as closed or moved here.
            now: The time, by `time.monotonic`.
        """
        seen, complete = {}, []
        for version in versions:
            since = self._seen.get(version, now)
            is_written = is_open_for_writing(version.path)
            is_reported = version.path in closed or (version.path in created and is_written is False)
            if not is_written and ((is_reported and version.size_bytes) or now - since >= SETTLE_S):
                complete.append(version)
            else:
                seen[version] = since
        self._seen = seen
        return complete


def is_open_for_writing(path: str) -> bool | None:
    """Return whether a process on this machine has a file open for writing; None if that is unknown.

    Linux grants a lease for reading only if nobody writes: on its own file systems, to the owner of the file.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        # Who opens the file for writing just now waits until the lease is released, and this process gets a signal:
        # one that is ignored, unlike the default.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False
