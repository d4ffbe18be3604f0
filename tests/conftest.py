"""What the tests share: real commands, and one real model that they train and export once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every process they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Give the one line that it said on stderr; more or less than one is a fault of its own."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


Command = Callable[..., Ended]


def call(
    program: str, *arguments: object, cwd: Path, stdin: bytes | None = None, prefix: Sequence[str] = (), **env: str
) -> Ended:
    """Run one of the installed commands as a process of its own."""
    command = [*prefix, str(BIN / program), *map(str, arguments)]
    surroundings = {key: value for key, value in os.environ.items() if not key.startswith("CLF_")} | env
    done = subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, env=surroundings, timeout=300)
    return Ended(done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode())


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run a command in an empty folder."""

    def run(program: str, *arguments: object, cwd: Path = tmp_path, **options: object) -> Ended:
        return call(program, *arguments, cwd=cwd, **options)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which clf-train and clf-export have run: its artifacts/ is never written to again."""
    folder = tmp_path_factory.mktemp("home")
    trained = call("clf-train", cwd=folder)
    assert trained.code == 0, trained.err
    exported = call("clf-export", "--format", "onnx", "--format", "torchscript", cwd=folder)
    assert exported.code == 0, exported.err
    (folder / "trained.txt").write_text(trained.out)
    (folder / "exported.txt").write_text(exported.out)
    return folder


@pytest.fixture(scope="session")
def artifacts(home: Path) -> Path:
    """The artifacts folder of a real model: trained on the digits, exported to ONNX and TorchScript."""
    return home / "artifacts"


@pytest.fixture(scope="session")
def model(artifacts: Path) -> Path:
    """A real model.onnx."""
    return artifacts / "model.onnx"


@pytest.fixture(scope="session")
def samples(artifacts: Path) -> list[Path]:
    """Real held-out pictures, named LABEL-N.png."""
    return sorted((artifacts / "samples").iterdir())


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of data sets that CLF_TEST_DATA names; without it the test is skipped."""
    folder = os.environ.get("CLF_TEST_DATA")
    if not folder:
        pytest.skip("CLF_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def no_root() -> Sequence[str]:
    """What to put before a command so that file permissions hold for it, also where root runs the tests."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root without setpriv: permissions cannot be tested")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")
