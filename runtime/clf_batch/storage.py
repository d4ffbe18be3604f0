"""The folder of the results: on a disk, or behind a URL. Files appear in it complete."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, cast

from clf_batch.inputs.remote import file_system, is_url, reporting_errors
from clf_runtime import files, system
from clf_runtime.files import adding_filename

_FILE = "file://"


class Storage(Protocol):
    """A folder of files that are written at once."""

    def names(self) -> list[str]:
        """Return the names of its files, sorted; none if the folder does not exist."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if it does not exist."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, or replace it, atomically. The folder is created if it does not exist."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that do not exist are none."""


def open_storage(place: str) -> Storage:
    """Return the folder at a path or a URL. Raises MachineError if nothing can read such a URL."""
    if place.startswith(_FILE):
        return LocalStorage(Path(place.removeprefix(_FILE)))
    if is_url(place):
        return RemoteStorage(place)
    return LocalStorage(Path(place))


class LocalStorage:
    """A folder on a disk, possibly one that several machines share."""

    def __init__(self, root: Path) -> None:
        """Store the folder."""
        self._root = root

    def names(self) -> list[str]:
        """Return the names of its files, sorted; none if the folder does not exist."""
        try:
            return sorted(entry.name for entry in self._root.iterdir())
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if it does not exist."""
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file under a temporary name, and rename it."""
        self._root.mkdir(parents=True, exist_ok=True)
        # Not the id of the process: that of a process on another machine can be the same.
        temporary = self._root / f".{name}.{uuid.uuid4().hex}.tmp"
        try:
            with adding_filename(self._root / name):
                temporary.write_bytes(content)
                system.sync(temporary)
                files.replace(temporary, self._root / name)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that do not exist are none."""
        for name in names:
            (self._root / name).unlink(missing_ok=True)


class RemoteStorage:
    """A folder behind a URL, where one request puts a complete object."""

    def __init__(self, url: str) -> None:
        """Store the URL."""
        self._url = url
        self._files, root = file_system(url)
        self._root = str(root).rstrip("/")

    def names(self) -> list[str]:
        """Return the names of its files, sorted; none if the folder does not exist."""
        with reporting_errors(self._url):
            try:
                entries: list[dict[str, Any]] = self._files.ls(self._root, detail=True)
            except FileNotFoundError:
                return []
        return sorted(str(entry["name"]).rpartition("/")[2] for entry in entries if entry["name"] != self._root)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if it does not exist."""
        with reporting_errors(f"{self._url.rstrip('/')}/{name}"):
            try:
                return cast(bytes, self._files.cat_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Put a file."""
        with reporting_errors(f"{self._url.rstrip('/')}/{name}"):
            self._files.pipe_file(f"{self._root}/{name}", content)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that do not exist are none."""
        for name in names:
            with reporting_errors(self._url), contextlib.suppress(FileNotFoundError):
                self._files.rm_file(f"{self._root}/{name}")
