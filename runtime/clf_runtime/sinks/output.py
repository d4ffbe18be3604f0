"""`--output FILE`: written atomically. An interrupted run leaves FILE.partial and its journal, and can be resumed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from clf_runtime import files, system
from clf_runtime.errors import DataError, MachineError, UsageError
from clf_runtime.image_files import SUFFIXES
from clf_runtime.sinks.journal import Checkpoint, Journal, ResumePoint

if TYPE_CHECKING:
    from clf_runtime.run import RunStatistics

# The most work that is repeated after a kill.
SECONDS_BETWEEN_CHECKPOINTS = 0.2


def check_target(path: Path, option: str = "--output") -> Path:
    """Return the file that the path of an option leads to, links followed.

    Raises UsageError if results cannot be written there.
    """
    target = Path(os.path.realpath(path))  # Path.resolve raises for links in a circle
    if target.is_symlink():
        raise UsageError(f"{option} {path}: its links lead in a circle; name another file")
    if target.exists() and not target.is_file():
        raise UsageError(f"{option} {path}: not a regular file; name a file, or redirect stdout to it")
    if not target.parent.is_dir():
        raise UsageError(f"{option} {path}: folder {path.parent} does not exist; create it first")
    if target.suffix.lower() in {*SUFFIXES, ".onnx"}:
        raise UsageError(
            f"{option} {path}: named like an image or a model, which it could overwrite; choose another suffix"
        )
    return target


class Output:
    """The output file while it is written: a context. Ended without an exception, the file appears under its name.

    Attributes:
        discarded: Images in the results of an interrupted run that are discarded, because it is not resumed.
        is_complete: Whether the interrupted run has classified all images, so that only the renaming is left.
    """

    def __init__(self, path: Path, identity: Mapping[str, object], statistics: RunStatistics, resume: bool) -> None:
        """Store what to write.

        Args:
            path: The output file.
            identity: Everything that the results depend on; a run is resumed only if it is the same.
            statistics: The counts of the run; those of a resumed run are entered.
            resume: Whether to resume an interrupted run, if there is one.
        """
        self._path = path
        self._identity = identity
        self._statistics = statistics
        self._resume = resume
        self._partial = path.with_name(f"{path.name}.partial")
        self._names = hashlib.sha256()
        self._checkpoint_due = time.monotonic() + SECONDS_BETWEEN_CHECKPOINTS
        self._is_renamed = False  # whether the interrupted run ended after it had given the file its name
        self.discarded = 0
        self.is_complete = False

    def __enter__(self) -> Output:
        """Begin the file, or continue that of an interrupted run.

        Raises:
            DataError: The interrupted run has another identity.
            MachineError: Another process writes the file.
            OSError: The file cannot be written.
        """
        self._journal = Journal.open(self._path.with_name(f"{self._path.name}.partial.journal"), self._path)
        try:
            if self._resume:
                start = self._journal.resume_point(self._identity, self._partial)
            else:
                start = ResumePoint()
                self.discarded = self._journal.count_images()
            self._data = self._continue_file(start) if start.checkpoint.images else self._begin_file()
        except BaseException:
            self._journal.close(remove=False)
            raise
        self._start = start
        self._content = start.content
        self._last = start.checkpoint
        self._expected_names = start.checkpoint.names
        self.is_complete = start.checkpoint.is_last
        self._statistics.resume(start.checkpoint.images, start.checkpoint.failures)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        is_finished = False
        try:
            if error is None:
                self._finish()
                is_finished = True
        except OSError as full:
            full.filename = full.filename or str(self._path)  # the error of a full disk does not name the file
            raise
        finally:
            if not is_finished and not self._last.images and self._is_in_place():
                self._partial.unlink()
            with contextlib.suppress(OSError):
                self._data.close()
            self._journal.close(remove=is_finished or not self._last.images)
        if isinstance(error, OSError):
            error.filename = error.filename or str(self._path)
        if isinstance(error, KeyboardInterrupt) and self._last.images:
            error.args = (f"--resume continues after {self._last.images:,} images",)

    def skip(self, name: str) -> None:
        """Skip an image that the interrupted run has classified."""
        self._names.update(_encode_name(name))

    def check_skipped(self) -> None:
        """Begin to write after the skipped images. The results of an interrupted run are unchanged until then.

        Raises:
            DataError: The skipped images are not those that the interrupted run has classified.
        """
        if self._names.hexdigest() != self._expected_names:
            raise DataError(
                f"{self._path}: the first {self._statistics.resumed:,} images are not those that the interrupted run "
                "has classified; name the same ones, or leave out --resume to start over"
            )
        if self._start.checkpoint.images:
            self._discard_results_after(self._start)

    def write(self, name: str | None, text: str) -> None:
        """Write the text of an image, or of none. The statistics have counted the image already."""
        content = text.encode("utf-8", "surrogateescape")
        self._data.write(content)
        self._content.update(content)
        if name is None:
            return  # never a checkpoint: nothing could be appended after the end of a JSON list
        self._names.update(_encode_name(name))
        if time.monotonic() >= self._checkpoint_due:
            self._add_checkpoint(is_last=False)
            self._checkpoint_due = time.monotonic() + SECONDS_BETWEEN_CHECKPOINTS

    def _begin_file(self) -> BinaryIO:
        self._journal.clear()  # first: without its first line it describes no file
        data = self._partial.open("wb")
        self._journal.begin(self._identity)
        return data

    def _continue_file(self, start: ResumePoint) -> BinaryIO:
        self._is_renamed = start.checkpoint.is_last and not self._partial.exists()
        return (self._path if self._is_renamed else self._partial).open("r+b")

    def _discard_results_after(self, start: ResumePoint) -> None:
        self._journal.truncate(start)
        self._data.truncate(start.checkpoint.size_bytes)
        self._data.seek(0, os.SEEK_END)

    def _add_checkpoint(self, is_last: bool) -> None:
        self._data.flush()
        self._check_in_place()
        self._last = Checkpoint(
            images=self._statistics.images,
            failures=self._statistics.failures,
            size_bytes=self._data.tell(),
            names=self._names.hexdigest(),
            content=self._content.hexdigest(),
            is_last=is_last,
        )
        self._journal.add(self._last)

    def _check_in_place(self) -> None:
        """Raise MachineError if the results have lost their name, so that nobody could find them at the end."""
        if not self._is_in_place():
            raise MachineError(
                f"{self._path}: {self._partial.name} was removed, moved or replaced while clf-run wrote it; "
                "start clf-run again"
            )

    def _is_in_place(self) -> bool:
        path = self._path if self._is_renamed else self._partial
        try:
            return os.path.samestat(path.stat(), os.fstat(self._data.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _finish(self) -> None:
        self._add_checkpoint(is_last=True)
        self._data.close()  # before the renaming, which Windows refuses for an open file
        if not self._is_renamed:
            system.sync(self._partial)
            files.replace(self._partial, self._path)


def _encode_name(name: str) -> bytes:
    return os.fsencode(name) + b"\0"
