"""Atomic writes: a file appears complete or not at all, and leftovers of killed processes are removed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clf_runtime import files


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


def fail_while_filling(folder: Path) -> None:
    with files.atomic_folder(folder, "last", ()) as staging:
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
        with files.atomic_folder(folder, "last", ("derived", "never there")) as staging:
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
        files.atomic_folder(tmp_path / "a", "last", ()),
    ):
        pass


def test_leftovers_of_killed_processes_are_removed_and_those_of_running_ones_are_not(tmp_path):
    ended = id_of_an_ended_process()
    for name in (f".staging.{ended}", f".staging.{os.getppid()}", ".staging.mine"):
        (tmp_path / name).mkdir()
    for name in (f".model.onnx.{ended}.tmp", ".model.onnx.1.tmp", ".notes.tmp"):
        (tmp_path / name).touch()
    with files.atomic_folder(tmp_path, "last", ()) as staging:
        fill(staging, "new")
    left = {f".staging.{os.getppid()}", ".staging.mine", ".model.onnx.1.tmp", ".notes.tmp"}
    assert names(tmp_path) == {*left, "last", "one", "inside"}


@pytest.fixture
def foreign_process():
    """The id of a process that this one may not signal, and a command prefix that takes this right from root."""
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
    code = f"from clf_runtime.files import *\nwith atomic_folder(Path({str(tmp_path)!r}), 'last', ()): pass"
    subprocess.run([*prefix, sys.executable, "-c", code], check=True)
    assert names(tmp_path) == {f".staging.{process}"}


def test_a_folder_is_not_flushed_on_windows(tmp_path, monkeypatch):
    def fail(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "name", "nt")
    monkeypatch.setattr(files.os, "open", fail)
    files.sync(tmp_path)


def test_ctrl_c_while_a_folder_is_replaced_arrives_when_it_is_complete(tmp_path: Path) -> None:
    steps = []

    def replace() -> None:
        with files._deferring_interrupts():
            signal.raise_signal(signal.SIGINT)
            steps.append("replaced")

    with pytest.raises(KeyboardInterrupt):
        replace()
    assert steps == ["replaced"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_thread_can_replace_a_folder_too(tmp_path: Path) -> None:
    def replace() -> None:
        with files.atomic_folder(tmp_path / "folder", last="b", obsolete=()) as staging:
            for name in "ab":
                (staging / name).write_text(name)

    thread = threading.Thread(target=replace)
    thread.start()
    thread.join()
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"a", "b"}
