"""How far a run has come, beside the answers that it writes, so that it can be gone on with after a kill.

The first line is what was asked for, as JSON. Each further line is a point up to which all is done: images,
failures, bytes of answers, the SHA-256 of the images' names, that of the answers' bytes, and whether it was the
end. A power cut may keep a line and lose what it speaks of, so a line counts only where the answers fit it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from clf_runtime.errors import DataError, MachineError

_PIECE_BYTES = 1 << 20
_SHA256_OF_NOTHING = hashlib.sha256().hexdigest()


@dataclass(frozen=True)
class Point:
    """A moment of a run, up to which all is done and written."""

    images: int = 0
    failures: int = 0
    size_bytes: int = 0
    names: str = _SHA256_OF_NOTHING
    content: str = _SHA256_OF_NOTHING
    ended: bool = False

    def line(self) -> bytes:
        """Give the journal's line."""
        values = (self.images, self.failures, self.size_bytes, self.names, self.content, int(self.ended))
        return " ".join(map(str, values)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Point | None:
        """Parse a journal's line; None where it is torn."""
        try:
            images, failures, size_bytes, names, content, ended = line.decode("ascii").split(" ")
            return cls(int(images), int(failures), int(size_bytes), names, content, {"0\n": False, "1\n": True}[ended])
        except (ValueError, KeyError):
            return None


@dataclass
class Found:
    """What a journal and the answers beside it tell together."""

    point: Point = field(default_factory=Point)  # the last one that the answers fit
    content: Any = field(default_factory=hashlib.sha256)  # the running SHA-256 of the answers up to there
    end: int = 0  # bytes of the journal up to there


class Journal:
    """The file, locked for this process."""

    def __init__(self, path: Path, answers: Path) -> None:
        """Open or create it. `answers` is the file to name in a refusal. Raises MachineError, OSError."""
        self._path = path
        self._answers = answers
        self._file = path.open("a+b", buffering=0)
        try:
            _lock(self._file, answers)
        except BaseException:
            self._file.close()
            raise

    def begin(self, options: Mapping[str, object]) -> None:
        """Write the first line of a journal that `forget` has emptied."""
        self._file.write(json.dumps(options).encode() + b"\n")

    def forget(self) -> None:
        """Throw away what it says."""
        self._file.truncate(0)

    def add(self, point: Point) -> None:
        """Write down that all is done up to `point`."""
        self._file.write(point.line())

    def cut(self, found: Found) -> None:
        """Throw away what it says beyond `found`."""
        self._file.truncate(found.end)

    def images(self) -> int:
        """Give the images that the last whole line counts, whether the answers fit it or not."""
        points = [Point.from_line(line) for line in self._lines()[1:]]
        return max((point.images for point in points if point is not None), default=0)

    def found(self, options: Mapping[str, object], partial: Path) -> Found:
        """Find the last point that `partial` fits, or the finished file where `partial` has its name already.

        Raises DataError where the journal is of another order.
        """
        lines = self._lines()
        try:
            self._refuse_other(json.loads(lines[0]), options)
        except (IndexError, UnicodeDecodeError, json.JSONDecodeError):  # there is none, or a power cut tore it
            return Found()
        renamed = not partial.exists()
        source = self._answers if renamed else partial
        found = _last_that_fits(lines, source) if source.exists() else Found()
        return Found() if renamed and not found.point.ended else found

    def close(self, finished: bool) -> None:
        """Close it, and remove it where nothing is left to go on with."""
        if finished:
            self._path.unlink(missing_ok=True)
        self._file.close()

    def _lines(self) -> list[bytes]:
        """Give the whole lines, none where the first one is torn."""
        self._file.seek(0)
        lines = self._file.readall().splitlines(keepends=True)
        return [line for line in lines if line.endswith(b"\n")]

    def _refuse_other(self, found: Mapping[str, object], wanted: Mapping[str, object]) -> None:
        changed = [
            f"{key} was {found.get(key)}, is {wanted.get(key)}"
            for key in {**found, **wanted}
            if found.get(key) != wanted.get(key)
        ]
        if changed:
            raise DataError(
                f"{self._answers}: the unfinished run is another one: {'; '.join(changed)}; "
                "give the same options, or leave out --resume to start over"
            )


def _last_that_fits(lines: list[bytes], source: Path) -> Found:
    found, content, end = Found(end=len(lines[0])), hashlib.sha256(), len(lines[0])
    with source.open("rb") as file:
        for line in lines[1:]:
            end += len(line)
            point = Point.from_line(line)
            if point is None:
                break
            _read_on(file, content, point.size_bytes)
            if file.tell() != point.size_bytes or content.hexdigest() != point.content:
                break
            found = Found(point, content.copy(), end)
    return found


def _read_on(file: IO[bytes], content: Any, end: int) -> None:
    while piece := file.read(min(_PIECE_BYTES, max(0, end - file.tell()))):
        content.update(piece)


def _lock(file: IO[bytes], answers: Path) -> None:
    """Keep other processes out, for as long as this one lives."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MachineError(f"{answers}: another clf-run is writing it; wait for its end") from None
