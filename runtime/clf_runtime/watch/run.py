"""One call of `clf-run --watch`: new files in a folder get a record each, across restarts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from clf_runtime.classifier import Classifier
from clf_runtime.errors import format_os_error
from clf_runtime.machine import usable_cores
from clf_runtime.predictions import Prediction
from clf_runtime.run import RunStatistics
from clf_runtime.sources import ImageSource
from clf_runtime.watch.events import FolderEvents
from clf_runtime.watch.files import CompletionCheck, FileVersion, list_versions
from clf_runtime.watch.results import Results

# The folder is listed again after as long, in case nothing was reported; with many files, in 5 % of the time.
_POLL_S = 2.0
_SHARE_OF_LISTING = 0.05

# Flushing a record takes 1 to 10 ms.
_SECONDS_BETWEEN_SYNCS = 0.2


@dataclass(frozen=True)
class WatchOptions:
    """The options of `clf-run --watch`."""

    model: Path
    device: str
    threads: int | None
    max_image_bytes: int
    batch_size: int
    top: int
    threshold: float  # 0..1
    folder: str
    recursive: bool
    output: Path
    move_to: Path | None
    require_signature: tuple[Path, ...] = ()


class WatchRun:
    """Classifies the files that arrive in a folder and writes the results.

    Attributes:
        statistics: The counts so far, also after an exception.
    """

    def __init__(self, options: WatchOptions, warn: Callable[[str], object]) -> None:
        """Load the model.

        Args:
            options: The options.
            warn: Takes what the records do not show.

        Raises:
            InvalidModelError: The model cannot be loaded.
            MachineError: The device does not work.
            UsageError: The device is unknown.
        """
        self._options = options
        self._warn = warn
        cores = options.threads or usable_cores()
        self._classifier = Classifier.load(
            options.model,
            device=options.device,
            threads=cores,
            workers=cores,
            max_image_bytes=options.max_image_bytes,
            require_signature=options.require_signature,
        )
        if self._classifier.warning:
            warn(self._classifier.warning)
        self._events = FolderEvents(options.folder)
        self._check = CompletionCheck()
        self._done: set[FileVersion] = set()  # of the files that are in the folder
        self._is_listed = True
        self.statistics = RunStatistics(self._classifier.provider)

    def execute(self) -> NoReturn:
        """Watch until an exception ends it.

        Raises:
            DataError: The output contains something else than records.
            MachineError: The device fails, or another process writes the output.
            OSError: The results cannot be written.
        """
        with Results(self._options.output) as results:
            self._start_events()
            try:
                self._find_done(results)
                while True:
                    self._classify_new(results)
            finally:
                self._events.stop()

    def _start_events(self) -> None:
        try:
            self._events.start(self._options.recursive)
        except OSError as error:
            self._warn(f"{self._options.folder}: cannot be watched ({error}); listing it every {_POLL_S:.0f} s")

    def _find_done(self, results: Results) -> None:
        """Find the files in the folder that have a record, and move those that a killed process has not moved."""
        present = set(list_versions(self._options.folder, self._options.recursive))
        self._done = {version for version in results.versions() if version in present}
        for version in self._done:
            self._move(version)
        self._warn(f"watching {self._options.folder}; {len(self._done):,} of {len(present):,} images have results")

    def _classify_new(self, results: Results) -> None:
        """Classify the files that are complete and have no result, and wait for others."""
        created, closed = self._events.take()
        started = time.monotonic()
        present = self._list()
        self._done.intersection_update(present)
        new = [version for version in present if version not in self._done]
        complete = self._check.select(new, created, closed, started)
        listing_s = time.monotonic() - started
        self._classify(complete, results)
        if not complete:
            self._events.wait(max(_POLL_S, listing_s / _SHARE_OF_LISTING))

    def _list(self) -> list[FileVersion]:
        try:
            present = list(list_versions(self._options.folder, self._options.recursive))
        except OSError as error:  # such as a network drive that is gone, and comes back
            if self._is_listed:
                self._warn(f"{format_os_error(error)}; trying again every {_POLL_S:.0f} s")
            self._is_listed = False
            return []
        self._is_listed = True
        return present

    def _classify(self, versions: list[FileVersion], results: Results) -> None:
        sources = (ImageSource(version.path, version.path) for version in versions)
        options, written, due = self._options, [], time.monotonic() + _SECONDS_BETWEEN_SYNCS
        pairs = self._classifier.predict_sources(sources, batch_size=options.batch_size, top=options.top)
        for version, (_, result) in zip(versions, pairs, strict=True):
            if FileVersion.of(version.path) != version:
                continue  # it was written or removed meanwhile
            if options.threshold > 0 and isinstance(result, Prediction):
                result = result.apply_threshold(options.threshold)
            self.statistics.count(result)
            results.append(version, result.to_dict())
            written.append(version)
            if time.monotonic() >= due:
                self._finish(written, results)
                written, due = [], time.monotonic() + _SECONDS_BETWEEN_SYNCS
        self._finish(written, results)

    def _finish(self, written: list[FileVersion], results: Results) -> None:
        """Flush the records of some files; only then they are done."""
        if not written:
            return
        results.sync()
        self._done.update(written)
        for version in written:
            self._move(version)

    def _move(self, version: FileVersion) -> None:
        """Move a file to the folder of --move-to, under a name that is free there."""
        if self._options.move_to is None:
            return
        target = self._options.move_to / os.path.relpath(version.path, self._options.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        number, free = 1, target
        while os.path.lexists(free):
            number += 1
            free = target.with_name(f"{target.stem}-{number}{target.suffix}")
        try:
            os.rename(version.path, free)  # noqa: PTH104 (the path is a string)
        except FileNotFoundError:
            return  # somebody else has moved it
