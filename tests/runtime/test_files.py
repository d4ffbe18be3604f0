"""Atomic writes: a file appears complete or not at all, and leftovers of killed processes are removed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HAS_LOCKS

from clf_runtime import files, folders
from clf_runtime.errors import DataError, MachineError
from clf_runtime.folders import ReplacementPlan


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "file", tmp_path / "folder"):
        with pytest.raises(OSError, match=r"(No such file or|Is a) directory") as caught:
            files.atomic_write(path, b"1")
        assert caught.value.filename == str(path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def id_of_an_ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def fail_while_writing(path: Path) -> None:
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("interrupted")


@contextlib.contextmanager
def replacing(folder: Path, *obsolete: str, leftovers: tuple[str, ...] = ()) -> Iterator[Path]:
    plan = ReplacementPlan("last", obsolete, leftovers)
    with folders.locked_folder(folder, "this test"), folders.atomic_folder(folder, plan) as staging:
        yield staging


def fail_while_filling(folder: Path) -> None:
    with replacing(folder) as staging:
        fill(staging, "half")
        raise RuntimeError("interrupted")


def test_an_existing_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "a"
    files.atomic_write(path, b"old")
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(RuntimeError, match="interrupted"):
        fail_while_writing(path)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == {"a"}


def test_an_os_error_without_a_file_name_gets_that_of_the_file(tmp_path):
    with pytest.raises(OSError, match="No space") as raised, files.atomic_path(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert raised.value.filename == str(tmp_path / "a")
    with pytest.raises(OSError, match="denied") as raised, files.atomic_path(tmp_path / "a"):
        raise PermissionError(13, "denied", "elsewhere")
    assert raised.value.filename == "elsewhere"


def fill(folder: Path, text: str) -> None:
    (folder / "last").write_text(text)
    (folder / "one").write_text(text)
    (folder / "inside").mkdir()
    (folder / "inside" / text).write_text(text)


def test_all_entries_of_a_folder_are_replaced_together(tmp_path):
    folder = tmp_path / "deep" / "folder"
    for text in ("old", "new"):
        with replacing(folder, "derived", "never there") as staging:
            fill(staging, text)
        (folder / "derived").write_text(text) if text == "old" else None
    assert names(folder) == {"last", "one", "inside"}
    assert names(folder / "inside") == {"new"}
    assert (folder / "last").read_text() == "new"


def test_a_new_folder_is_removed_if_writing_fails(tmp_path):
    with pytest.raises(RuntimeError, match="interrupted"):
        fail_while_filling(tmp_path / "a")
    assert names(tmp_path) == set()


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "a").touch()
    with (
        pytest.raises(NotADirectoryError, match="expected a folder"),
        replacing(tmp_path / "a"),
    ):
        pass


def test_leftovers_of_killed_processes_are_removed_and_those_of_running_ones_are_not(tmp_path):
    ended = id_of_an_ended_process()
    for name in (f".staging.{ended}", f".staging.{os.getppid()}", ".staging.mine"):
        (tmp_path / name).mkdir()
    for name in (f".model.onnx.{ended}.tmp", ".model.onnx.1.tmp", ".notes.tmp"):
        (tmp_path / name).touch()
    with replacing(tmp_path) as staging:
        fill(staging, "new")
    left = {f".staging.{os.getppid()}", ".staging.mine", ".model.onnx.1.tmp", ".notes.tmp"}
    assert names(tmp_path) == {*left, "last", "one", "inside"}


@pytest.fixture
def foreign_process():
    """The id of a process that this one may not signal, and a command prefix that takes this right from root."""
    if not hasattr(os, "geteuid"):
        pytest.skip("Windows is asked differently: see test_system.py")
    if os.geteuid() != 0:
        yield 1, ()
        return
    if shutil.which("setpriv") is None:
        pytest.skip("root without setpriv: permissions cannot be tested")
    with subprocess.Popen(["sleep", "60"], user=65534) as process:
        yield process.pid, ("setpriv", "--bounding-set=-kill", "--")
        process.kill()


def test_files_of_another_users_process_are_not_removed(tmp_path, foreign_process):
    process, prefix = foreign_process
    (tmp_path / f".staging.{process}").mkdir()
    code = f"from clf_runtime.folders import *\nwith locked_folder(Path({str(tmp_path)!r}), ''): pass"
    subprocess.run([*prefix, sys.executable, "-c", code], check=True)
    assert names(tmp_path) == {f".staging.{process}"}


def test_ctrl_c_while_a_folder_is_replaced_arrives_when_it_is_complete(tmp_path: Path) -> None:
    steps = []

    def replace() -> None:
        with files.deferring_interrupts():
            signal.raise_signal(signal.SIGINT)
            steps.append("replaced")

    with pytest.raises(KeyboardInterrupt):
        replace()
    assert steps == ["replaced"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_thread_can_replace_a_folder_too(tmp_path: Path) -> None:
    def replace() -> None:
        with replacing(tmp_path / "folder") as staging:
            for name in ("last", "other"):
                (staging / name).write_text(name)

    thread = threading.Thread(target=replace)
    thread.start()
    thread.join()
    assert names(tmp_path / "folder") == {"last", "other"}


def test_complete_files_that_could_not_be_moved_are_moved_by_the_next_process(tmp_path, monkeypatch):
    (tmp_path / "last").write_text("old")
    (tmp_path / "checkpoint").touch()
    move = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if self.name == "one":
            raise OSError(5, "Input/output error", str(self))
        return move(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with (
        pytest.raises(MachineError, match=r"complete, but not all .*one: input/output error\); the next clf-train"),
        replacing(tmp_path, leftovers=("checkpoint",)) as staging,
    ):
        fill(staging, "new")
    assert names(tmp_path) == {".finished", "checkpoint", "inside"}
    with pytest.raises(MachineError), folders.locked_folder(tmp_path, ""):  # the disk still fails
        pass
    monkeypatch.undo()
    with folders.locked_folder(tmp_path, ""):
        assert names(tmp_path) == {"last", "one", "inside", ".lock"}
        assert (tmp_path / "last").read_text() == "new"


def test_a_kill_after_the_last_move_leaves_only_the_plan_to_remove(tmp_path):
    (tmp_path / ".finished").mkdir()
    (tmp_path / ".finished/.plan.json").write_text(
        '{"last": "last", "obsolete": ["last"], "leftovers": ["checkpoint"]}'
    )
    (tmp_path / "last").write_text("new")
    (tmp_path / "checkpoint").touch()
    with folders.locked_folder(tmp_path, ""):
        assert names(tmp_path) == {"last", ".lock"}
    (tmp_path / ".finished").mkdir()  # killed after the plan was removed, too
    with folders.locked_folder(tmp_path, ""):
        assert names(tmp_path) == {"last", ".lock"}


@pytest.mark.parametrize(
    "plan", [None, "", "[]", '{"last": "../x", "obsolete": [], "leftovers": []}', '{"last": "a", "obsolete": [7]}']
)
def test_a_finished_folder_that_is_not_ours_is_neither_moved_nor_removed(tmp_path, plan):
    (tmp_path / ".finished").mkdir()
    (tmp_path / ".finished/x").touch()
    if plan is not None:
        (tmp_path / ".finished/.plan.json").write_text(plan)
    with pytest.raises(DataError, match="move it away"), folders.locked_folder(tmp_path, ""):
        pass
    assert (tmp_path / ".finished/x").exists()


def test_a_folder_and_a_file_of_the_same_name_replace_each_other_where_nothing_is_lost(tmp_path):
    (tmp_path / "inside").touch()
    with replacing(tmp_path) as staging:
        fill(staging, "new")
    assert names(tmp_path / "inside") == {"new"}
    (tmp_path / "one").unlink()
    (tmp_path / "one").mkdir()
    with pytest.raises(IsADirectoryError) as raised, replacing(tmp_path) as staging:
        fill(staging, "newer")
    assert raised.value.filename == str(tmp_path / "one")
    assert (tmp_path / "last").read_text() == "new"


@pytest.mark.skipif(not HAS_LOCKS, reason="no file locks here")
def test_two_processes_cannot_write_a_folder_and_the_second_learns_of_the_first(tmp_path):
    with folders.locked_folder(tmp_path, "clf-train"):
        with pytest.raises(MachineError) as raised, folders.locked_folder(tmp_path, "clf-export"):
            pass
        expected = f"{tmp_path}: clf-train (process {os.getpid()}) writes this folder; wait until it has finished"
        assert str(raised.value) == expected
        (tmp_path / ".lock").write_text("")
        with pytest.raises(MachineError, match=": another process writes"), folders.locked_folder(tmp_path, ""):
            pass
        (tmp_path / ".lock").unlink()
        assert folders._read_holder(tmp_path / ".lock") == "another process"
    assert names(tmp_path) == set()


def test_a_process_that_has_locked_a_folder_just_now_is_named(tmp_path, monkeypatch):
    lock = tmp_path / ".lock"
    lock.touch()
    monkeypatch.setattr(folders.time, "sleep", lambda seconds: lock.write_text("clf-train (process 7)"))
    assert folders._read_holder(lock) == "clf-train (process 7)"


def test_a_folder_that_cannot_be_flushed_after_a_rename_is_reported_truthfully(tmp_path, monkeypatch):
    def fail(path: Path) -> None:
        if path.is_dir():
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "sync", fail)
    with pytest.raises(MachineError, match=r"a: written completely, .* \(input/output error\), so a power"):
        files.atomic_write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
