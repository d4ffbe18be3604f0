"""What the file system reports about a folder; the only importer of watchdog.

Reports only tell where to look: the folder itself says what is there, because reports may be missing, as on network
file systems or when thousands of files arrive at once.
"""

from __future__ import annotations

import logging
import os
import threading

from watchdog.events import (
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

# It warns about its own threads when they are stopped.
logging.getLogger("watchdog").setLevel(logging.CRITICAL)

_EVENTS: list[type[FileSystemEvent]] = [FileCreatedEvent, FileClosedEvent, FileMovedEvent]


class FolderEvents(FileSystemEventHandler):
    """The files that were created, closed or moved into a folder since somebody asked."""

    def __init__(self, folder: str) -> None:
        """Store the folder, by whose name files are reported."""
        self._folder = folder
        self._absolute = os.path.abspath(folder)  # noqa: PTH100 (Path.resolve follows links)
        self._lock = threading.Lock()
        self._created: set[str] = set()
        self._closed: set[str] = set()
        self._is_reported = threading.Event()
        self._observer: BaseObserver | None = None

    def start(self, recursive: bool) -> None:
        """Begin to watch, in a thread. Raises OSError if the system has no watches left."""
        observer = Observer()  # it has a thread already
        self._observer = observer
        observer.daemon = True
        observer.schedule(self, self._absolute, recursive=recursive, event_filter=_EVENTS)
        observer.start()

    def stop(self) -> None:
        """End the thread, if there is one."""
        if self._observer is not None:
            self._observer.stop()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Note a report. Called by watchdog, in its thread."""
        absolute = os.fsdecode(event.dest_path or event.src_path)
        path = os.path.join(self._folder, os.path.relpath(absolute, self._absolute))  # noqa: PTH118 (as os.scandir does)
        with self._lock:
            (self._created if isinstance(event, FileCreatedEvent) else self._closed).add(path)
        self._is_reported.set()

    def wait(self, timeout_s: float) -> None:
        """Wait for a report, or for so many seconds."""
        self._is_reported.wait(timeout_s)

    def take(self) -> tuple[set[str], set[str]]:
        """Return the files that were created, and those that were closed or moved here, and forget them."""
        with self._lock:
            self._is_reported.clear()
            taken = self._created, self._closed
            self._created, self._closed = set(), set()
            return taken
