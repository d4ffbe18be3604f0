"""A store of models: versions side by side, and a symbolic link that says which one runs.

    /var/lib/clf-edge/
      current → versions/17-3f2a90c1d4e5      what services open: current/model.onnx
      versions/17-3f2a90c1d4e5/model.onnx     and model.onnx.sig, if it is signed
      state.json                              see state.py

A version appears complete, and `current` is replaced by one rename. Killed or without power at any moment, the store
has the old version or the new one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from clf_runtime import files, folders, system
from clf_runtime.artifacts import ONNX
from clf_runtime.errors import DataError, MachineError, format_os_error
from clf_runtime.onnx_file import OnnxFile
from clf_runtime.store.state import Probation, State

CURRENT = "current"
VERSIONS = "versions"

_SECONDS_TO_WAIT = 10.0  # for another process, which holds the lock for milliseconds


class Store:
    """The versions of one model on this machine.

    Attributes:
        folder: Where they are.
    """

    folder: Path

    def __init__(self, folder: Path) -> None:
        """Store the folder; nothing is read or created."""
        self.folder = folder

    @classmethod
    def around(cls, model: Path) -> Store | None:
        """Return the store whose current version is opened by this path, such as STORE/current/model.onnx."""
        current = model.parent
        is_store = current.name == CURRENT and current.is_symlink() and (current.parent / VERSIONS).is_dir()
        return cls(current.parent) if is_store else None

    @property
    def current(self) -> str | None:
        """The name of the version that runs; None if there is none. Raises DataError, OSError."""
        link = self.folder / CURRENT
        if link.exists() and not link.is_symlink():
            raise DataError(f"{link}: not the symbolic link of a store; move it away, or name another --store")
        try:
            return link.readlink().name
        except FileNotFoundError:
            return None

    @property
    def versions(self) -> tuple[str, ...]:
        """The names of all versions, sorted."""
        folder = self.folder / VERSIONS
        return tuple(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ()

    def path(self, version: str) -> Path:
        """Return the file of a version."""
        return self.folder / VERSIONS / version / ONNX

    def previous(self, state: State) -> str | None:
        """Return the version that ran before the current one, as far as it is still there."""
        history = list(state.history)
        current = self.current
        if current in history:
            history = history[: len(history) - 1 - history[::-1].index(current)]
        existing = [name for name in history if name != current and self.path(name).exists()]
        return existing[-1] if existing else None

    def find(self, name: str) -> str:
        """Return the version with this name, or the only one whose name starts with it. Raises DataError."""
        found = [version for version in self.versions if version.startswith(name)]
        if name in found:
            return name
        if len(found) != 1:
            known = ", ".join(self.versions) or "none"
            raise DataError(f"{self.folder}: {len(found)} versions are called {name}…, expected one of: {known}")
        return found[0]

    @contextlib.contextmanager
    def locked(self) -> Iterator[State]:
        """Keep other processes from changing the store inside the block; yield its state. Waits for them shortly.

        Raises:
            MachineError: Another process does not end.
            DataError: The state is damaged.
            OSError: The store cannot be written.
        """
        deadline = time.monotonic() + _SECONDS_TO_WAIT
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(folders.locked_folder(self.folder, "clf-deploy"))
                    break
                except MachineError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
            yield State.read(self.folder)

    def add(self, staged: Path, name: str) -> None:
        """Make a complete folder a version. The caller has locked the store."""
        for path in (*staged.iterdir(), staged):
            with files.adding_filename(path):
                system.sync(path)
        target = self.folder / VERSIONS / name
        target.parent.mkdir(exist_ok=True)
        with files.adding_filename(self.folder):
            system.sync(self.folder)
        if target.exists():  # installed already; its files may have been damaged since
            for path in staged.iterdir():
                files.replace(path, target / path.name)
            staged.rmdir()
        else:
            files.replace(staged, target)

    def activate(self, name: str, serial: int | None, probation_s: float = 0.0) -> None:
        """Make a version the current one. The caller has locked the store.

        Raises:
            MachineError: It could not be made the current one; or it is, but a power failure may undo that.
            OSError: Nothing has changed.
        """
        state, old = State.read(self.folder), self.current
        if old == name:
            return
        serials = [number for number in (state.highest_serial, serial) if number is not None]
        on_probation = probation_s > 0 and old is not None
        # First the memory: if it names a version that is not activated after all, nothing follows from that.
        replace(
            state,
            history=(*self._history_until(state, old), name),
            highest_serial=max(serials, default=None),
            failed={version: reason for version, reason in state.failed.items() if version != name},
            probation=Probation(name, str(old), probation_s) if on_probation else None,
        ).write(self.folder)
        try:
            self._switch(name)
        except OSError as error:
            raise MachineError(
                f"{self.folder}: {name} is installed, but it could not be made the current version "
                f"({format_os_error(error)}); {old or 'none'} is, as before"
            ) from None

    def roll_back(self, reason: str = "") -> str:
        """Return to the version before the current one, and return its name. The caller has locked the store.

        Args:
            reason: Why the current version failed, if it did: it is not installed again.

        Raises:
            DataError: There is none.
            OSError: Nothing has changed.
        """
        state, failed = State.read(self.folder), self.current
        name = self.previous(state)
        if name is None or failed is None:
            raise DataError(f"{self.folder}: there is no earlier version to return to; install one")
        self._switch(name)
        if reason:
            replace(state, failed={**state.failed, failed: reason}, probation=None).write(self.folder)
        return name

    def remove(self, name: str) -> None:
        """Remove a version. The caller has locked the store."""
        # A version that is removed halfway has no name any more, and the next process removes the rest.
        abandoned = self.folder / f".staging.{os.getpid()}"
        files.replace(self.folder / VERSIONS / name, abandoned)
        shutil.rmtree(abandoned, ignore_errors=True)

    def _history_until(self, state: State, name: str | None) -> tuple[str, ...]:
        history = list(state.history)
        if name in history:
            return tuple(history[: len(history) - history[::-1].index(name)])
        return tuple(history)

    def _switch(self, name: str) -> None:
        link = self.folder / f".{CURRENT}.{os.getpid()}.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(Path(VERSIONS, name), target_is_directory=True)
        files.replace(link, self.folder / CURRENT)


def version_name(file: OnnxFile) -> str:
    """Return the name of a model in a store: its serial number, if it has one, and the start of its digest."""
    serial = "" if file.spec.serial is None else f"{file.spec.serial}-"
    return f"{serial}{file.sha256[:12]}"
