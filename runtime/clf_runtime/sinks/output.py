"""`--output FILE`: complete or absent. A run that was cut off leaves FILE.partial, and can be gone on with."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from clf_runtime import files
from clf_runtime.errors import DataError, UsageError
from clf_runtime.predictions import Failure, Result
from clf_runtime.preprocess import SUFFIXES
from clf_runtime.sinks.journal import Found, Journal, Point
from clf_runtime.sources import ImageSource

# At most so much work is done again after a kill.
SECONDS_BETWEEN_POINTS = 0.2


def checked(path: Path) -> Path:
    """Give the file that `path` leads to, where a run may put its answers. Raises UsageError."""
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise UsageError(f"--output {path}: it is there, and no file; name a file, or redirect stdout to it")
    if not target.parent.is_dir():
        raise UsageError(f"--output {path}: there is no folder {path.parent}; make it first")
    if target.suffix.lower() in {*SUFFIXES, ".onnx"}:
        raise UsageError(f"--output {path}: named like an image or a model, and could replace one; name it otherwise")
    return target


class Output:
    """The file in the making, as a context; it gets its name when the context ends without an exception."""

    def __init__(self, path: Path, options: Mapping[str, object], resume: bool) -> None:
        """Begin `path`, or go on with it where `resume` says so and there is something to go on with.

        `options` is what decides the answers; only the same one can be gone on with. Raises DataError where
        another was begun, MachineError where another process writes the file, OSError.
        """
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._journal = Journal(path.with_name(f"{path.name}.partial.journal"), path)
        try:
            self.discarded = 0 if resume else self._journal.images()
            found = self._journal.found(options, self._partial) if resume else Found()
            self._data = self._continued(found) if found.point.images else self._begun(options)
        except BaseException:
            self._journal.close(finished=False)
            raise
        self.before = found.point
        self._content = found.content
        self._names = hashlib.sha256()
        self._images, self._failures = found.point.images, found.point.failures
        self._marked, self._mark_due = found.point.images, time.monotonic() + SECONDS_BETWEEN_POINTS

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        finished = error is None
        try:
            if finished:
                self._finish()
        except OSError as full:
            finished = False
            full.filename = full.filename or str(self._path)  # a full disk does not say for which file
            raise
        finally:
            with contextlib.suppress(OSError):
                self._data.close()
            if not finished and not self._marked:
                self._partial.unlink(missing_ok=True)
            self._journal.close(finished or not self._marked)
        if isinstance(error, OSError):
            error.filename = error.filename or str(self._path)
        if isinstance(error, KeyboardInterrupt) and self._marked:
            error.args = (f"--resume goes on after {self._marked:,} images",)

    def rest_of(self, images: Iterator[ImageSource]) -> Iterator[ImageSource]:
        """Pass over the images that have their answers. Raises DataError where they are not the same ones."""
        for each in islice(images, self.before.images):
            self._names.update(_line(each.name))
        if self._names.hexdigest() != self.before.names:
            raise DataError(
                f"{self._path}: the first {self.before.images:,} images named now are not those that the "
                "unfinished run has answered; name the same ones, or leave out --resume to start over"
            )
        return iter(()) if self.before.ended else images

    def noted(self, results: Iterable[Result]) -> Iterator[Result]:
        """Count results on their way to `write`."""
        for result in results:
            self._images += 1
            self._failures += isinstance(result, Failure)
            self._names.update(_line(result.path or ""))
            yield result

    def write(self, text: str) -> None:
        """Write the answers of all that was noted so far."""
        if self.before.ended:
            return  # a list's end is there already
        content = text.encode("utf-8", "surrogateescape")
        self._data.write(content)
        self._content.update(content)
        # The end of a JSON list belongs to no image: nothing could be gone on with behind it.
        if self._images > self._marked and time.monotonic() >= self._mark_due:
            self._mark(ended=False)
            self._mark_due = time.monotonic() + SECONDS_BETWEEN_POINTS

    def _begun(self, options: Mapping[str, object]) -> BinaryIO:
        self._journal.forget()  # first: without its first line it speaks of no file
        data = self._partial.open("wb")
        self._journal.begin(options)
        return data

    def _continued(self, found: Found) -> BinaryIO:
        self._journal.cut(found)
        data = (self._path if found.point.ended and not self._partial.exists() else self._partial).open("r+b")
        data.truncate(found.point.size_bytes)
        data.seek(0, os.SEEK_END)
        return data

    def _mark(self, ended: bool) -> None:
        self._data.flush()
        self._journal.add(
            Point(
                self._images,
                self._failures,
                self._data.tell(),
                self._names.hexdigest(),
                self._content.hexdigest(),
                ended,
            )
        )
        self._marked = self._images

    def _finish(self) -> None:
        self._mark(ended=True)
        self._data.close()
        if self._partial.exists():
            files.sync(self._partial)
            self._partial.replace(self._path)
            files.sync(self._path.parent)


def _line(name: str) -> bytes:
    return os.fsencode(name) + b"\0"
