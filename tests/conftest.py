"""Shared by all tests: real commands, and one real model, trained and exported once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from clf_runtime import system

BIN = Path(sysconfig.get_path("scripts"))
ROOT = Path(__file__).parent.parent
HAS_LOCKS = os.name == "nt" or importlib.util.find_spec("fcntl") is not None

# The tests import this file by name; without this they would get a second module, with a second Zygote.
sys.modules["conftest"] = sys.modules[__name__]

# A shell that starts the tests in the background makes them, and all their child processes, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class CommandResult:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Return the only line on stderr; more or fewer than one fails the test."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


Command = Callable[..., CommandResult]


class Zygote:
    """A process that has imported torch and forks commands from itself, without their start-up time; see zygote.py."""

    PROGRAMS = ("clf-train", "clf-import", "clf-export")
    _shared: Zygote | None = None

    def __init__(self, **env: str) -> None:
        script = Path(__file__).with_name("zygote.py")
        self._process = subprocess.Popen(
            [sys.executable, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | env,
        )
        self.last_process: int | None = None  # the id of the process that ran the last command

    def close(self) -> None:
        """End this process."""
        self._process.communicate()

    @classmethod
    def end(cls) -> None:
        """End the process of this session."""
        if cls._shared is not None:
            cls._shared.close()
            cls._shared = None

    @classmethod
    def shared(cls) -> Zygote:
        """Return the process of this session; start it if there is none. Skips the test where no process can fork."""
        if not hasattr(os, "fork"):
            pytest.skip("no process can be forked here")
        if cls._shared is None:
            cls._shared = cls()
        return cls._shared

    def run(
        self,
        command: list[str],
        cwd: Path,
        env: dict[str, str],
        kill_at: int | None = None,
        kill_after_s: float | None = None,
        kill_with: int = signal.SIGKILL,
    ) -> CommandResult:
        """Run a command; send it a signal at its `kill_at`th change of a file, or kill it after some seconds."""
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            request = {"argv": command, "cwd": str(cwd), "env": env, "out": str(out), "err": str(err)}
            request |= {"kill_at": kill_at, "kill_after_s": kill_after_s, "kill_with": kill_with}
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            self.last_process, code = map(int, self._process.stdout.readline().split())
            return CommandResult(code, out.read_bytes().decode(errors="surrogateescape"), err.read_bytes().decode())


def run_command(
    program: str, *arguments: object, cwd: Path, stdin: bytes | None = None, prefix: Sequence[str] = (), **env: str
) -> CommandResult:
    """Run one of the installed commands in a process of its own."""
    command = [*prefix, str(BIN / program), *map(str, arguments)]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("CLF_")} | env
    if program in Zygote.PROGRAMS and stdin is None and not prefix and hasattr(os, "fork"):
        return Zygote.shared().run(command, cwd, variables)
    done = subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, env=variables, timeout=300)
    return CommandResult(done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode())


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """A function that runs a command in an empty folder."""

    def run(program: str, *arguments: object, cwd: Path = tmp_path, **options: object) -> CommandResult:
        return run_command(program, *arguments, cwd=cwd, **options)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session", autouse=True)
def _zygote() -> Iterator[None]:
    yield
    Zygote.end()


@pytest.fixture(scope="session")
def home(request: pytest.FixtureRequest) -> Path:
    """A folder in which clf-train and clf-export have run: its artifacts/ is never written to again.

    It is built once for all workers and for both halves of `make test`: it lies in pytest's cache, under the digest of
    everything it is made from.
    """
    return build_once(request.config, "home", _train_and_export)


def _train_and_export(folder: Path) -> None:
    trained = run_command("clf-train", cwd=folder)
    assert trained.code == 0, trained.err
    everything = ("-f", "onnx", "-f", "torchscript", "-f", "pt2", "-p", "fp32", "-p", "fp16", "-p", "int8")
    exported = run_command("clf-export", *everything, cwd=folder)
    assert exported.code == 0, exported.err
    (folder / "trained.txt").write_text(trained.out)
    (folder / "exported.txt").write_text(exported.out)


def build_once(config: pytest.Config, name: str, build: Callable[[Path], None]) -> Path:
    """Return a folder that `build` has filled, in this worker or in another one, for these very sources.

    CLF_TEST_BUILT names a folder in which another environment has done so: one without torch cannot.
    """
    if built := os.environ.get("CLF_TEST_BUILT"):
        return Path(built, name)
    # Without pytest's cache (-p no:cacheprovider) the attribute is missing.
    plugin = getattr(config, "cache", None)
    cache = Path(str(plugin.mkdir("built"))) if plugin is not None else ROOT / ".pytest_cache/d/built"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{name}-{_digest_of_sources()}"
    with _locked(cache / f"{name}.lock"):
        if not folder.exists():
            for outdated in cache.glob(f"{name}-*"):
                shutil.rmtree(outdated)
            unfinished = cache / f"unfinished-{name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            build(unfinished)
            unfinished.rename(folder)
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process has locked a file, and lock it inside the block."""
    while (file := system.open_locked(path)) is None:
        time.sleep(0.1)
    try:
        yield
    finally:
        system.close_locked(file, path, remove=False)


@functools.cache
def _digest_of_sources() -> str:
    """Return a digest of the packages' files and of the versions of everything that is installed."""
    digest = hashlib.sha256()
    files = (path for package in ("runtime", "train", "export") for path in (ROOT / package).rglob("*"))
    for path in (*sorted(path for path in files if path.is_file() and path.suffix != ".pyc"), Path(__file__)):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    for distribution in sorted(f"{package.metadata['Name']} {package.version}" for package in metadata.distributions()):
        digest.update(distribution.encode())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def artifacts(home: Path) -> Path:
    """The artifacts folder of a real model: trained on the digits, exported in every format and precision."""
    return home / "artifacts"


@pytest.fixture(scope="session")
def model(artifacts: Path) -> Path:
    """A real model.onnx."""
    return artifacts / "model.onnx"


@pytest.fixture(scope="session")
def samples(artifacts: Path) -> list[Path]:
    """Real test images, named LABEL-N.png."""
    return sorted((artifacts / "samples").iterdir())


@pytest.fixture(scope="session")
def digits(request: pytest.FixtureRequest) -> Path:
    """The test split of the digits, on which the shared model was evaluated, as a folder of PNGs in class folders."""
    return build_once(request.config, "digits-test", _write_test_split)


def _write_test_split(folder: Path) -> None:
    from clf_train.config import DataSource, load_dataset

    dataset = load_dataset(DataSource(data="digits", data_root="data", test_split=0.2, seed=0))
    for index, target in enumerate(dataset.test.targets.tolist()):
        path = folder / dataset.labels[target] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(dataset.test.encode(index))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    run_checked(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    return next(folder.glob("*.whl"))


def run_checked(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program that must succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def create_environment(
    folder: Path, *needs: object, options: Sequence[str] = (), python: str | Path = sys.executable
) -> Path:
    """Create a virtual environment with these packages and return its folder."""
    run_checked(BIN / "uv", "venv", "--quiet", "--python", python, folder)
    run_checked(BIN / "uv", "pip", "install", "--quiet", *options, "--python", folder / "bin/python", *needs)
    return folder


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of data sets that CLF_TEST_DATA names; without it the test is skipped."""
    folder = os.environ.get("CLF_TEST_DATA")
    if not folder:
        pytest.skip("CLF_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def no_root() -> Sequence[str]:
    """A command prefix that makes file permissions apply even if root runs the tests."""
    if not hasattr(os, "geteuid"):
        pytest.skip("permissions work differently on Windows")
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root without setpriv: permissions cannot be tested")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")
