"""A file appears under its name complete or not at all, and what a killed process left is swept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clf_runtime import files


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def a_process_that_is_no_more() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def cut_off_while_writing(path: Path) -> None:
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("cut off")


def cut_off_while_filling(folder: Path) -> None:
    with files.atomic_folder(folder, "last", ()) as staging:
        fill(staging, "half")
        raise RuntimeError("cut off")


def test_what_was_there_stays_until_the_new_file_is_complete(tmp_path):
    path = tmp_path / "a"
    files.write(path, b"old")
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(RuntimeError, match="cut off"):
        cut_off_while_writing(path)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == {"a"}


def test_a_fault_without_a_name_gets_that_of_the_file(tmp_path):
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


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "deep" / "folder"
    for text in ("old", "new"):
        with files.atomic_folder(folder, "last", ("derived", "never there")) as staging:
            fill(staging, text)
        (folder / "derived").write_text(text) if text == "old" else None
    assert names(folder) == {"last", "one", "inside"}
    assert names(folder / "inside") == {"new"}
    assert (folder / "last").read_text() == "new"


def test_a_folder_that_was_not_there_is_not_left_behind_empty(tmp_path):
    with pytest.raises(RuntimeError, match="cut off"):
        cut_off_while_filling(tmp_path / "a")
    assert names(tmp_path) == set()


def test_a_file_where_a_folder_should_be_is_told(tmp_path):
    (tmp_path / "a").touch()
    with (
        pytest.raises(NotADirectoryError, match="expected a folder"),
        files.atomic_folder(tmp_path / "a", "last", ()),
    ):
        pass


def test_what_a_killed_process_left_is_swept_and_what_others_work_on_is_not(tmp_path):
    gone = a_process_that_is_no_more()
    for name in (f".staging.{gone}", f".staging.{os.getppid()}", ".staging.mine"):
        (tmp_path / name).mkdir()
    for name in (f".model.onnx.{gone}.tmp", ".model.onnx.1.tmp", ".notes.tmp"):
        (tmp_path / name).touch()
    with files.atomic_folder(tmp_path, "last", ()) as staging:
        fill(staging, "new")
    left = {f".staging.{os.getppid()}", ".staging.mine", ".model.onnx.1.tmp", ".notes.tmp"}
    assert names(tmp_path) == {*left, "last", "one", "inside"}


@pytest.fixture
def somebody_elses():
    """Give the number of a process that this one may not signal, and what takes root's right to do so."""
    if os.geteuid() != 0:
        yield 1, ()
        return
    if shutil.which("setpriv") is None:
        pytest.skip("root without setpriv: permissions cannot be tested")
    with subprocess.Popen(["sleep", "60"], user=65534) as process:
        yield process.pid, ("setpriv", "--bounding-set=-kill", "--")
        process.kill()


def test_what_somebody_elses_process_is_writing_is_left_alone(tmp_path, somebody_elses):
    process, prefix = somebody_elses
    (tmp_path / f".staging.{process}").mkdir()
    code = f"from clf_runtime.files import *\nwith folder_or_absent(Path({str(tmp_path)!r}), 'last', ()): pass"
    subprocess.run([*prefix, sys.executable, "-c", code], check=True)
    assert names(tmp_path) == {f".staging.{process}"}


def test_windows_has_no_handle_to_put_a_folder_on_disk_by(tmp_path, monkeypatch):
    def fail(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "name", "nt")
    monkeypatch.setattr(files.os, "open", fail)
    files.sync(tmp_path)
