"""Runs commands in which a call on the file system fails; see fail.c."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import BIN, CommandResult, Zygote

KILL = 0  # in place of an error number: SIGKILL just before the call

# What a disk or a system does: call → errors. An error that lasts is that of every later call, too.
ERRORS = {
    "open": (errno.EMFILE, errno.EROFS),
    "write": (errno.ENOSPC, errno.EIO),
    "fsync": (errno.EIO,),
    "rename": (errno.EIO, errno.ENOSPC),
    "unlink": (errno.EROFS, errno.EIO),
}


@dataclass(frozen=True)
class Fault:
    """One call that fails."""

    call: str
    number: int  # counted from 1; 0 for none
    error: int
    lasts: bool = False  # whether all later calls fail, too

    def __str__(self) -> str:
        name = "SIGKILL" if self.error == KILL else errno.errorcode[self.error]
        return f"{self.call} {self.number}{'+' if self.lasts else ''}: {name}"


class Injector:
    """Runs commands in a folder, with faults in what lies there."""

    def __init__(self, folder: Path) -> None:
        """Build the shim; the test is skipped where that is impossible."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None or not Path("/proc/self/fd").is_dir():
            pytest.skip("no C compiler, or no /proc")
        self._folder = folder
        self._shim = folder / "fail.so"
        source = Path(__file__).with_name("fail.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", self._shim, source, "-ldl"], check=True)
        self._zygote: Zygote | None = None

    def close(self) -> None:
        """End the process that the commands are forked from."""
        if self._zygote is not None:
            self._zygote.close()

    def run(self, command: list[str], cwd: Path, fault: Fault) -> CommandResult:
        """Run a command with a fault."""
        env = {
            "FAULT_FOLDER": str(cwd.resolve()),
            "FAULT_CALL": fault.call,
            "FAULT_AT": str(fault.number),
            "FAULT_ERRNO": str(fault.error),
            "FAULT_LASTS": str(int(fault.lasts)),
            "FAULT_COUNT": str(self._folder / "count"),
        }
        program, *arguments = command
        if program in Zygote.PROGRAMS:
            self._zygote = self._zygote or Zygote(LD_PRELOAD=str(self._shim))
            return self._zygote.run([str(BIN / program), *arguments], cwd, os.environ | env)
        done = subprocess.run(
            [BIN / program, *arguments],
            cwd=cwd,
            env=os.environ | env | {"LD_PRELOAD": str(self._shim)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return CommandResult(done.returncode, done.stdout, done.stderr)

    def count(self, command: list[str], cwd: Path, call: str) -> int:
        """Return how often a command makes a call."""
        counter = self._folder / "count"
        counter.unlink(missing_ok=True)
        done = self.run(command, cwd, Fault(call, 0, KILL))
        assert done.code == 0, done.err
        return counter.stat().st_size if counter.exists() else 0


def faults_at(call: str, number: int) -> list[Fault]:
    """Return every fault of a call: each error once and lasting, and a kill."""
    single = [Fault(call, number, error) for error in ERRORS[call]]
    return [*single, *(replace(fault, lasts=True) for fault in single), Fault(call, number, KILL)]
