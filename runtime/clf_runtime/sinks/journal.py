"""The journal of a run: how far its output is complete, so that a killed run can be resumed.

The first line is the identity of the run, as JSON. Each further line is a checkpoint, up to which everything is
written: images, failures, bytes of results, SHA-256 of the images' names, SHA-256 of the results, and whether it is the
last one. After a power failure a line may exist without the results it describes, so a line counts only if its digest
matches them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import IO, Any

from clf_runtime.errors import DataError, MachineError

_PIECE_BYTES = 1 << 20
_SHA256_OF_NOTHING = hashlib.sha256().hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a run, up to which everything is written."""

    images: int = 0
    failures: int = 0
    size_bytes: int = 0
    names: str = _SHA256_OF_NOTHING
    content: str = _SHA256_OF_NOTHING
    is_last: bool = False

    def to_line(self) -> bytes:
        """Return the line of the journal."""
        values = (self.images, self.failures, self.size_bytes, self.names, self.content, int(self.is_last))
        return " ".join(map(str, values)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Checkpoint | None:
        """Parse a line of the journal. Return None if it is damaged."""
        try:
            images, failures, size_bytes, names, content, is_last = line.decode("ascii").split(" ")
            flag = {"0\n": False, "1\n": True}[is_last]
            return cls(int(images), int(failures), int(size_bytes), names, content, flag)
        except (ValueError, KeyError):
            return None


@dataclass
class ResumePoint:
    """Where a run can be resumed."""

    checkpoint: Checkpoint = field(default_factory=Checkpoint)  # the last one that matches the results
    content: Any = field(default_factory=hashlib.sha256)  # the running SHA-256 of the results up to it
    journal_bytes: int = 0  # up to it


class Journal:
    """The journal's file, locked for this process."""

    def __init__(self, path: Path, file: FileIO, output: Path) -> None:
        """Store an open, locked file. Use `open` to open one."""
        self._path = path
        self._file = file
        self._output = output

    @classmethod
    def open(cls, path: Path, output: Path) -> Journal:
        """Open or create a journal, and lock it.

        Args:
            path: The journal.
            output: The file of the results, for error messages.

        Raises:
            MachineError: Another process has locked it.
            OSError: It cannot be opened.
        """
        file = path.open("a+b", buffering=0)
        try:
            _lock(file, output)
        except BaseException:
            file.close()
            raise
        return cls(path, file, output)

    def begin(self, identity: Mapping[str, object]) -> None:
        """Write the first line of an empty journal."""
        self._file.write(json.dumps(identity).encode() + b"\n")

    def clear(self) -> None:
        """Remove all lines."""
        self._file.truncate(0)

    def add(self, checkpoint: Checkpoint) -> None:
        """Append a checkpoint."""
        self._file.write(checkpoint.to_line())

    def truncate(self, start: ResumePoint) -> None:
        """Remove everything after a point."""
        self._file.truncate(start.journal_bytes)

    def count_images(self) -> int:
        """Return the number of images at the last checkpoint, whether it matches the results or not."""
        checkpoints = [Checkpoint.from_line(line) for line in self._complete_lines()[1:]]
        return max((checkpoint.images for checkpoint in checkpoints if checkpoint is not None), default=0)

    def resume_point(self, identity: Mapping[str, object], partial: Path) -> ResumePoint:
        """Find the last checkpoint that matches the results.

        The results are in `partial`, or in the output file if the run was killed after renaming it.

        Raises:
            DataError: The journal is that of a run with another identity.
        """
        lines = self._complete_lines()
        try:
            found = json.loads(lines[0])
        except (IndexError, ValueError):  # no first line, or one that a power failure damaged
            return ResumePoint()
        self._check_identity(found, identity)
        is_renamed = not partial.exists()
        results = self._output if is_renamed else partial
        start = _last_match(lines, results) if results.exists() else ResumePoint()
        return ResumePoint() if is_renamed and not start.checkpoint.is_last else start

    def close(self, remove: bool) -> None:
        """Close the journal, and remove it if nothing is left to resume."""
        if remove:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it or its folder was removed
                self._path.unlink()
        self._file.close()

    def _complete_lines(self) -> list[bytes]:
        self._file.seek(0)
        lines = self._file.readall().splitlines(keepends=True)
        return [line for line in lines if line.endswith(b"\n")]

    def _check_identity(self, found: Mapping[str, object], expected: Mapping[str, object]) -> None:
        differences = [
            f"{key} was {found.get(key)}, is {expected.get(key)}"
            for key in {**found, **expected}
            if found.get(key) != expected.get(key)
        ]
        if differences:
            raise DataError(
                f"{self._output}: the interrupted run differs from this one: {'; '.join(differences)}; "
                "use the same options, or leave out --resume to start over"
            )


def _last_match(lines: list[bytes], results: Path) -> ResumePoint:
    """Return the last checkpoint before the first one that does not match the results."""
    start = ResumePoint(journal_bytes=len(lines[0]))
    content, journal_bytes = hashlib.sha256(), len(lines[0])
    with results.open("rb") as file:
        for line in lines[1:]:
            journal_bytes += len(line)
            checkpoint = Checkpoint.from_line(line)
            if checkpoint is None:
                break
            _update_digest(content, file, checkpoint.size_bytes)
            if file.tell() != checkpoint.size_bytes or content.hexdigest() != checkpoint.content:
                break
            start = ResumePoint(checkpoint, content.copy(), journal_bytes)
    return start


def _update_digest(digest: Any, file: IO[bytes], end: int) -> None:
    """Read a file from its position to `end` into a digest."""
    while piece := file.read(min(_PIECE_BYTES, max(0, end - file.tell()))):
        digest.update(piece)


def _lock(file: IO[bytes], output: Path) -> None:
    """Lock a file until it is closed. Raises MachineError if another process has locked it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MachineError(f"{output}: another clf-run writes this file; wait until it has finished") from None
