"""What differs between the systems: each branch, with the calls of the other systems replaced."""

from __future__ import annotations

import errno
import os
import sys
import types
from pathlib import Path

import pytest

from clf_runtime import system


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr(system, "is_windows", lambda: True)


class Kernel32:
    """The Windows API as far as it is called: process 7 runs, 8 has ended, 9 belongs to somebody else."""

    def __init__(self) -> None:
        self.closed: list[int] = []

    def OpenProcess(self, access: int, inherit: bool, process: int) -> int:
        return process if process in (7, 8) else 0

    def GetLastError(self) -> int:
        return 5 if self.asked == 9 else 87

    def WaitForSingleObject(self, handle: int, timeout_ms: int) -> int:
        return 0x102 if handle == 7 else 0

    def CloseHandle(self, handle: int) -> None:
        self.closed.append(handle)


def test_windows_is_found_by_its_name():
    assert system.is_windows() == (os.name == "nt")


def test_windows_flushes_files_through_a_descriptor_that_may_write_and_no_folders(tmp_path, windows, monkeypatch):
    flags = []
    open_ = os.open
    monkeypatch.setattr(os, "open", lambda path, flag: flags.append(flag) or open_(path, flag))
    (tmp_path / "file").write_bytes(b"content")
    system.sync(tmp_path / "file")
    system.sync(tmp_path)
    assert flags == [os.O_RDWR]
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize(("process", "expected"), [(7, True), (8, False), (9, True), (10, False)])
def test_windows_is_asked_for_a_process_without_a_signal(windows, monkeypatch, process, expected):
    kernel = Kernel32()
    kernel.asked = process
    monkeypatch.setattr(system, "_load_kernel32", lambda: kernel)
    monkeypatch.setattr(os, "kill", None)  # there, os.kill(process, 0) sends Ctrl-C
    assert system.is_running(process) == expected
    assert kernel.closed == ([process] if process in (7, 8) else [])


def test_handles_of_windows_are_as_wide_as_pointers(monkeypatch):
    import ctypes

    function = types.SimpleNamespace
    kernel = function(OpenProcess=function(), WaitForSingleObject=function(), CloseHandle=function())
    monkeypatch.setattr(ctypes, "windll", function(kernel32=kernel), raising=False)
    assert system._load_kernel32() is kernel
    assert kernel.OpenProcess.restype is ctypes.c_void_p
    assert kernel.CloseHandle.argtypes == (ctypes.c_void_p,)


def test_a_process_id_that_no_process_can_have_is_not_running():
    assert not system.is_running(1 << 80)


@pytest.mark.parametrize("is_mapped", [True, False])
def test_a_file_is_mapped_except_on_windows_where_it_could_not_be_replaced(tmp_path, monkeypatch, is_mapped):
    monkeypatch.setattr(system, "is_windows", lambda: not is_mapped)
    (tmp_path / "file").write_bytes(b"content")
    with (tmp_path / "file").open("rb") as file:
        file.read(3)
        content = system.map_file(file)
    assert bytes(content) == b"content"
    assert isinstance(content.obj, bytes) != is_mapped


@pytest.mark.parametrize("is_locked", [False, True])
def test_windows_locks_a_byte_behind_the_end(tmp_path, windows, monkeypatch, is_locked):
    places = []

    def locking(descriptor: int, mode: int, size: int) -> None:
        places.append((os.lseek(descriptor, 0, os.SEEK_CUR), mode, size))
        if is_locked:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    file = system.open_locked(tmp_path / "file")
    assert places == [(1 << 30, 2, 1)]
    if is_locked:
        assert file is None
        return
    file.write(b"content")  # at the end, not where the lock is
    system.close_locked(file, tmp_path / "file", remove=False)
    assert (tmp_path / "file").read_bytes() == b"content"
    file = system.open_locked(tmp_path / "file")
    system.close_locked(file, tmp_path / "file", remove=True)
    assert not (tmp_path / "file").exists()


def test_windows_leaves_a_lock_file_that_another_process_has_opened(tmp_path, windows, monkeypatch):
    monkeypatch.setattr(system, "_lock", lambda file: True)
    file = system.open_locked(tmp_path / "file")

    def fail(self: Path, missing_ok: bool) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", fail)
    system.close_locked(file, tmp_path / "file", remove=True)
    assert file.closed


@pytest.mark.parametrize(("number", "is_opened"), [(errno.ENOLCK, True), (errno.EIO, False)])
def test_a_file_system_without_locks_is_used_without_and_other_errors_are_raised(
    tmp_path, monkeypatch, number, is_opened
):
    fcntl = pytest.importorskip("fcntl")

    def flock(file: object, flags: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    if is_opened:
        system.open_locked(tmp_path / "file").close()
    else:
        with pytest.raises(OSError, match="Input/output error"):
            system.open_locked(tmp_path / "file")


def test_a_file_that_its_holder_removes_before_it_is_locked_here_is_opened_again(tmp_path, monkeypatch):
    path = tmp_path / "file"
    lock = system._lock

    def remove_and_lock(file: object) -> bool:
        monkeypatch.setattr(system, "_lock", lock)
        path.unlink()
        return lock(file)

    monkeypatch.setattr(system, "_lock", remove_and_lock)
    file = system.open_locked(path)
    assert os.path.samestat(os.fstat(file.fileno()), path.stat())
    file.close()
