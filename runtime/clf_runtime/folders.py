"""An artifacts folder while it is written: by one process at a time, and all of its files change together.

New files are staged inside the folder. Once they are complete, the staging folder is renamed to `.finished`. From that
moment on they are the content of the folder: whatever fails or is killed while they are moved, the next process that
writes the folder moves the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clf_runtime import system
from clf_runtime.errors import DataError, MachineError, format_os_error
from clf_runtime.files import adding_filename, deferring_interrupts

FINISHED = ".finished"  # complete files on their way into the folder that contains it
_PLAN = ".plan.json"  # in FINISHED
_LOCK = ".lock"


@dataclass(frozen=True)
class ReplacementPlan:
    """What happens to the files of a folder when new ones are complete.

    Attributes:
        last: The entry whose presence means that all others are complete: the old one is removed first, and the new one
            is moved last.
        obsolete: Entries that do not belong to the new content, removed before the new `last` is there.
        leftovers: Entries that are needed if something fails; removed when everything else is done.
    """

    last: str
    obsolete: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All entries that are named here."""
        return (self.last, *self.obsolete, *self.leftovers)

    @classmethod
    def read(cls, path: Path) -> ReplacementPlan:
        """Read the plan of an interrupted process. Raises DataError, OSError."""
        try:
            content = json.loads(path.read_bytes())
            plan = cls(str(content["last"]), tuple(content["obsolete"]), tuple(content["leftovers"]))
            if not all(isinstance(name, str) and name == Path(name).name for name in plan.names):
                raise ValueError("it names files outside the folder")
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            raise DataError(
                f"{path.parent}: not what an interrupted clf-train leaves; move it away, then try again"
            ) from None
        return plan


@contextlib.contextmanager
def locked_folder(folder: Path, program: str) -> Iterator[None]:
    """Keep other processes from writing `folder` inside the block, and complete what an interrupted one has begun.

    The folder is created if it does not exist, and removed again if it stays empty.

    Args:
        folder: The folder.
        program: The name of this program, for the message of another one.

    Raises:
        MachineError: Another process writes the folder, or files of an interrupted process cannot be moved.
        OSError: `folder` is a file, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "this is a file; expected a folder or an unused name", str(folder))
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        path = folder / _LOCK
        file = system.open_locked(path)
        if file is None:
            raise MachineError(f"{folder}: {_read_holder(path)} writes this folder; wait until it has finished")
        try:
            file.truncate(0)
            file.write(f"{program} (process {os.getpid()})".encode())
            _remove_abandoned(folder)
            with deferring_interrupts():
                _finish(folder)
            yield
        finally:
            system.close_locked(file, path, remove=True)
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # not empty: it was written
                folder.rmdir()


@contextlib.contextmanager
def atomic_folder(folder: Path, plan: ReplacementPlan) -> Iterator[Path]:
    """Yield an empty folder inside `folder`; its entries are moved to `folder` when the block ends.

    Args:
        folder: A folder that this process has locked.
        plan: What happens to the existing entries of other names.

    Raises:
        MachineError: The new entries are complete, but not all of them could be moved; see the module's description.
        OSError: Something cannot be written; nothing has changed.
    """
    staging = folder / f".staging.{os.getpid()}"
    try:
        staging.mkdir()
        with adding_filename(folder):
            yield staging
            _raise_if_blocked(folder, (*plan.names, *(entry.name for entry in staging.iterdir() if entry.is_file())))
            (staging / _PLAN).write_text(json.dumps(dataclasses.asdict(plan)), encoding="utf-8")
        for entry in (*sorted(staging.rglob("*")), staging):
            system.sync(entry)
        with deferring_interrupts():
            staging.replace(folder / FINISHED)
            _finish(folder)
    finally:
        with deferring_interrupts():
            shutil.rmtree(staging, ignore_errors=True)


def _finish(folder: Path) -> None:
    """Move the complete files into their folder, or the rest of them. Raises DataError, MachineError."""
    finished = folder / FINISHED
    with contextlib.suppress(OSError):
        finished.rmdir()  # empty: killed after everything else was removed
    if not finished.is_dir():
        return
    try:
        plan = ReplacementPlan.read(finished / _PLAN)
        system.sync(folder)
        if (finished / plan.last).exists():
            _move_all(finished, folder, plan)
        system.sync(folder)
    except OSError as error:
        raise MachineError(
            f"{folder}: the new files are complete, but not all of them could be moved there from {finished} "
            f"({format_os_error(error)}); the next clf-train, clf-import or clf-export does it"
        ) from None
    # Everything is in its place: what cannot be removed does no harm, and is removed next time.
    for name in plan.leftovers:
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(finished, ignore_errors=True)


def _move_all(finished: Path, folder: Path, plan: ReplacementPlan) -> None:
    (folder / plan.last).unlink(missing_ok=True)
    for name in plan.obsolete:
        (folder / name).unlink(missing_ok=True)
    entries = [entry for entry in finished.iterdir() if entry.name != _PLAN]
    for entry in sorted(entries, key=lambda entry: (entry.name == plan.last, entry.name)):
        target = folder / entry.name
        if entry.is_dir() and target.is_dir():
            shutil.rmtree(target)
        elif entry.is_dir():
            target.unlink(missing_ok=True)
        entry.replace(target)


def _raise_if_blocked(folder: Path, names: tuple[str, ...]) -> None:
    """Raise IsADirectoryError where a folder has the name of a file that is to be replaced or removed."""
    for name in names:
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / name))


def _read_holder(path: Path) -> str:
    """Return the name of the process that has locked a file; it writes it there just after locking."""
    with contextlib.suppress(OSError):
        for _ in range(20):
            if holder := path.read_text(encoding="utf-8", errors="replace"):
                return holder
            time.sleep(0.05)
    return "another process"


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of processes that were killed."""
    for abandoned in folder.glob(".staging.*"):
        if _is_abandoned(abandoned.name.rpartition(".")[2]):
            shutil.rmtree(abandoned, ignore_errors=True)
    for abandoned in folder.glob(".*.tmp"):
        if _is_abandoned(abandoned.name.split(".")[-2]):
            abandoned.unlink(missing_ok=True)


def _is_abandoned(process_id: str) -> bool:
    # In a container, the next process often has the id of the one before it.
    return process_id.isdigit() and (int(process_id) == os.getpid() or not system.is_running(int(process_id)))
