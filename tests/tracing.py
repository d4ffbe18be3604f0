"""What processes do to the rest of the machine, seen by strace: connections, and files opened for writing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

# -f: with all threads and child processes; -y: with the folder of a descriptor.
_STRACE = ("strace", "-f", "-y", "-qq", "-e", "trace=socket,connect,sendto,sendmsg,sendmmsg,openat,mkdir,mkdirat")
_SOCKET = re.compile(r" socket\((AF_INET6?|AF_NETLINK), .*")
# To another machine, not to a service of this one such as nscd.
_CONNECTION = re.compile(r" (?:connect|sendto|sendmsg|sendmmsg)\(.*AF_INET")
_WRITING = re.compile(r" openat\(AT_FDCWD<?([^,>]*)>?, \"([^\"]*)\", [A-Z_|]*(?:O_WRONLY|O_RDWR|O_CREAT)")
_WRITING_IN = re.compile(r" openat\(\d+<([^>]*)>, \"([^\"]*)\", [A-Z_|]*(?:O_WRONLY|O_RDWR|O_CREAT)")
_FOLDER = re.compile(r" mkdir(?:at)?\((?:AT_FDCWD<?([^,>]*)>?, )?\"([^\"]*)\"")
_OTHERS = ("XDG_CACHE_HOME", "COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
_SYSTEM = ("/dev", "/proc")  # no files: /dev/null, semaphores in /dev/shm


@dataclass(frozen=True)
class Trace:
    """A file in which strace records what a command and its child processes do."""

    path: Path

    @property
    def prefix(self) -> Sequence[str]:
        """What precedes the command."""
        return (*_STRACE, "-o", str(self.path))

    def sockets(self) -> list[str]:
        """Return all calls that open a socket which could lead to another machine."""
        return [line for line in self._lines() if _SOCKET.search(line)]

    def connections(self) -> list[str]:
        """Return all calls that connect or send to another machine, such as those that look up a host."""
        return [line for line in self._lines() if _CONNECTION.search(line)]

    def written(self) -> set[Path]:
        """Return the files that were opened for writing and the folders that were created."""
        text = "\n".join(line for line in self._lines() if " = -1 " not in line)
        found = [pair for pattern in (_WRITING, _WRITING_IN, _FOLDER) for pair in pattern.findall(text)]
        paths = {Path(folder, name) for folder, name in found}
        return {path for path in paths if not any(path.is_relative_to(system) for system in _SYSTEM)}

    def _lines(self) -> list[str]:
        return self.path.read_text(errors="replace").splitlines()


def create_traced_environment(folder: Path) -> dict[str, str]:
    """Return variables for processes that are traced: an empty home, and no files of Python's or of the tests' own.

    Skips the test where strace is missing.
    """
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    home, temporary = folder / "home", folder / "temporary"
    home.mkdir()
    temporary.mkdir()
    places = {"HOME": str(home), "TMPDIR": str(temporary)}
    return places | dict.fromkeys(("PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS"), "1") | dict.fromkeys(_OTHERS, "")
