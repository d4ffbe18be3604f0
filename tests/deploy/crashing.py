"""Runs an operation on copies of a store, killed at its first change, at its second, …

usage: crashing.py STORE install MODEL | activate VERSION | rollback | gc       prints the number of changes

A change is a file that is opened for writing, copied, renamed or removed, or a folder or link that is created. After
each kill there are two stores: what the running system sees, and what a power failure leaves of it, where only what was
flushed has happened. Both must have the old version or the new one, complete, and the operation must succeed when it is
repeated.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnxruntime  # noqa: F401 (once, for all runs)

from clf_deploy.store.install import InstallOptions, activate, collect_garbage, install
from clf_runtime import folders, onnx_file, system
from clf_runtime.store.state import State
from clf_runtime.store.store import Store

CHANGES = frozenset(("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "shutil.copyfile"))
OPTIONS = InstallOptions(device="cpu", threads=1, allow_downgrade=True)


class Disk:
    """What has reached the disk: the content of files and the entries of folders when they were last flushed."""

    def __init__(self, root: Path) -> None:
        """Everything that is there now is on the disk."""
        self._root = root
        self._contents: dict[int, bytes] = {}
        self._entries: dict[int, dict[str, Path | int]] = {}
        for path in (root, *root.rglob("*")):
            if not path.is_symlink():
                self.flush(path)

    def flush(self, path: Path) -> None:
        number = path.stat().st_ino
        if path.is_dir():
            self._entries[number] = {
                entry.name: entry.readlink() if entry.is_symlink() else entry.stat().st_ino for entry in path.iterdir()
            }
            for entry in path.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    self._entries.setdefault(entry.stat().st_ino, {})  # empty until it is flushed itself
        else:
            self._contents[number] = path.read_bytes()

    def write_to(self, target: Path) -> None:
        self._write(self._root.stat().st_ino, target)

    def _write(self, number: int, target: Path) -> None:
        target.mkdir()
        for name, entry in self._entries.get(number, {}).items():
            if isinstance(entry, Path):
                (target / name).symlink_to(entry)
            elif entry in self._entries:
                self._write(entry, target / name)
            else:
                (target / name).write_bytes(self._contents.get(entry, b""))  # a file that was never flushed


def run_until(operation: Callable[[Store], object], folder: Path, at: int) -> None:
    """Run an operation, and kill it just before change number `at`; what a power failure leaves is beside the store."""
    disk, seen, sync = Disk(folder), 0, system.sync

    def flush(path: Path) -> None:
        sync(path)
        disk.flush(path)

    def hook(event: str, values: tuple) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(values[2], int) and values[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in CHANGES) or not isinstance(values[0], (str, os.PathLike)):
            return
        place = values[1] if event in ("shutil.copyfile", "os.symlink") else values[0]
        if Path(place).absolute().is_relative_to(folder):
            seen += 1
            if seen == at:
                seen = sys.maxsize // 2  # what follows here counts no more
                disk.write_to(folder.with_name("after-power-failure"))
                os.kill(os.getpid(), signal.SIGKILL)

    for module in (system, folders.system):
        module.sync = flush  # type: ignore[assignment]
    from clf_runtime import files

    files.sync = flush
    sys.addaudithook(hook)
    operation(Store(folder))


def fork(run: Callable[[], object]) -> int:
    """Run in a forked process, and return its exit code."""
    process = os.fork()
    if process == 0:
        try:
            run()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def check(folder: Path, allowed: set[str | None]) -> None:
    """Check that a store has one of these versions, and that its file is complete."""
    store = Store(folder)
    assert store.current in allowed, f"{store.current} is not one of {allowed}"
    State.read(folder)
    for version in {store.current, store.previous(State.read(folder))} - {None}:
        onnx_file.read(store.path(str(version)))
    if store.current is not None:
        onnx_file.read(folder / "current/model.onnx")


def main() -> None:
    original = Path(sys.argv[1]).absolute()
    operation: Callable[[Store], object] = {
        "install": lambda store: install(Path(sys.argv[3]), store, OPTIONS, print),
        "activate": lambda store: activate(sys.argv[3], store, OPTIONS),
        "rollback": roll_back,
        "gc": collect_garbage,
    }[sys.argv[2]]
    done = original.with_name("done")
    shutil.copytree(original, done, symlinks=True)
    assert fork(partial(operation, Store(done))) == 0
    allowed = {Store(original).current, Store(done).current}
    shutil.rmtree(done)
    at = 0
    while True:
        at += 1
        folder = original.with_name("killed")
        shutil.copytree(original, folder, symlinks=True)
        code = fork(partial(run_until, operation, folder, at))
        assert code in (0, -signal.SIGKILL), f"exit code {code} before change {at}"
        left = [folder, *original.parent.glob("after-power-failure")]
        for store in left:
            check(store, allowed)
            if code != 0:
                check_repeated(operation, store, allowed)
            shutil.rmtree(store)
        if code == 0:
            break
    print(at - 1)


def check_repeated(operation: Callable[[Store], object], folder: Path, allowed: set[str | None]) -> None:
    before = Store(folder).current
    if operation is not roll_back or (len(allowed) == 2 and before == max(map(str, allowed))):
        assert fork(partial(operation, Store(folder))) == 0
        check(folder, allowed)
    with Store(folder).locked():
        pass
    assert not list(folder.glob(".*")), "something is left"


def roll_back(store: Store) -> None:
    with store.locked():
        store.roll_back("it crashed")


if __name__ == "__main__":
    main()
