"""`--output` of a watched folder: a file of records to which each result is appended before its image counts as done.

The records themselves say which files are done, so there is no second file that could disagree with them after a power
failure.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from clf_runtime import system
from clf_runtime.errors import DataError, MachineError
from clf_runtime.watch.files import FileVersion

_PIECE_BYTES = 1 << 20
_RECORD_START = b'{"path": "'


class Results:
    """The file of the results while it is open: a context."""

    _file: FileIO

    def __init__(self, path: Path) -> None:
        """Store the name of the file."""
        self._path = path

    def __enter__(self) -> Results:
        """Open or create the file, and remove a record that a power failure has left incomplete.

        Raises:
            MachineError: Another process writes the file.
            DataError: The file contains something else than records.
            OSError: It cannot be opened.
        """
        file = system.open_locked(self._path)
        if file is None:
            raise MachineError(f"{self._path}: another clf-run writes this file; end it first, or name another file")
        self._file = file
        try:
            self._remove_incomplete_record()
            system.sync(self._path.parent)
        except BaseException:
            file.close()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        system.close_locked(self._file, self._path, remove=False)

    def versions(self) -> Iterator[FileVersion]:
        """Yield the files that have a record. Raises DataError for a line that is none."""
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                record = _parse(line)
                if record is None:
                    raise DataError(
                        f"{self._path}: line {number:,} is no record of clf-run --watch; name another --output"
                    )
                yield record

    def append(self, version: FileVersion, record: dict[str, Any]) -> None:
        """Append the record of a file. It is on disk after `sync`. Raises OSError, without a part of the record."""
        identity = {"size_bytes": version.size_bytes, "modified_ns": version.modified_ns}
        line = json.dumps({**record, **identity}).encode() + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(start)
            error.filename = str(self._path)
            raise

    def sync(self) -> None:
        """Wait until all records are on disk."""
        os.fsync(self._file.fileno())

    def _remove_incomplete_record(self) -> None:
        """Truncate the file behind its last line that is a record, if what follows is no complete line or zeros."""
        self._file.seek(0)
        head = self._file.read(len(_RECORD_START)) or b""
        if not _RECORD_START.startswith(head.rstrip(b"\0")):
            raise DataError(f"{self._path}: no file of clf-run --watch; name another --output")
        size_bytes = self._file.seek(0, os.SEEK_END)
        tail = b""
        position = size_bytes
        while position and b"\n" not in tail.rstrip(b"\0"):
            position = max(0, position - _PIECE_BYTES)
            self._file.seek(position)
            tail = self._file.read(size_bytes - position) or b""
        complete = tail.rfind(b"\n", 0, len(tail.rstrip(b"\0"))) + 1
        if complete < len(tail):
            self._file.truncate(position + complete)


def _parse(line: bytes) -> FileVersion | None:
    try:
        record = json.loads(line)
        version = FileVersion(record["path"], record["size_bytes"], record["modified_ns"])
    except (ValueError, KeyError, TypeError):
        return None
    return version if isinstance(version.path, str) else None
