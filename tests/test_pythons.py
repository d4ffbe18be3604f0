"""The wheel in each supported Python, in an environment of its own: the runtime's tests, training and export.

`make test-pythons` runs them, with the newest dependencies of requirements/dev.txt and with the oldest ones that the
wheel declares. A Python that is not installed is skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import BIN, ROOT, create_environment, run_checked

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
OLDEST = PYTHONS[0]

# What the tests import, beside the wheel and its extras.
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "onnx", "pyarrow", "scikit-learn", "matplotlib")
PINNED = ("--constraint", str(ROOT / "requirements/dev.txt"))
LOWEST = ("--resolution", "lowest-direct", "--only-binary", ":all:")

pytestmark = pytest.mark.slow


def find_python(version: str) -> Path | None:
    """Return an installed Python of this version, of pyenv's too; None if there is none."""
    environment = dict(os.environ)
    if shutil.which("pyenv") is not None:
        environment["PYENV_VERSION"] = ":".join(run_checked("pyenv", "versions", "--bare").stdout.split())
    command = [BIN / "uv", "python", "find", "--no-python-downloads", "--system", version]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    return Path(found.stdout.strip()) if found.returncode == 0 else None


def require_python(version: str) -> Path:
    """Return an installed Python of this version; skip the test if there is none."""
    python = find_python(version)
    if python is None:
        pytest.skip(f"Python {version} is not installed")
    return python


@pytest.fixture(scope="session")
def built(home, digits, tmp_path_factory) -> Path:
    """A folder with what the tests build with torch, for environments without it."""
    folder = tmp_path_factory.mktemp("built")
    for target in (home, digits):
        (folder / target.name.rpartition("-")[0]).symlink_to(target)
    return folder


def run_the_tests_of_the_runtime(environment: Path, built: Path, *more: str) -> None:
    """Run tests/runtime on the wheel that is installed in an environment."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    variables |= {"CLF_TEST_BUILT": str(built), "OMP_NUM_THREADS": "1"}
    imported = run_checked(environment / "bin/python", "-c", "import clf_runtime; print(clf_runtime.__file__)").stdout
    assert Path(imported.strip()).is_relative_to(environment)
    options = ("-q", "-n", "2", "--dist", "loadscope", "-p", "no:cacheprovider")
    done = subprocess.run(
        [environment / "bin/python", "-m", "pytest", *options, *more, "tests/runtime"],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout.splitlines()[-1])


def train(environment: Path, folder: Path) -> None:
    """Train on the digits, with event files for TensorBoard."""
    run_checked(environment / "bin/clf-train", "--tensorboard", cwd=folder)


def export(environment: Path, folder: Path, *precisions: str) -> None:
    """Export in every format and some precisions, and run the self-test."""
    options = [word for precision in precisions for word in ("-p", precision)]
    run_checked(environment / "bin/clf-export", "-f", "onnx", "-f", "torchscript", "-f", "pt2", *options, cwd=folder)
    assert "passed" in run_checked(environment / "bin/clf-run", "--self-test", cwd=folder).stdout


@pytest.mark.parametrize("version", PYTHONS)
def test_the_runtime_passes_its_tests_in_every_python(version, wheel, built, tmp_path):
    python = require_python(version)
    needs = f"{wheel}[cpu,serve,watch]"
    environment = create_environment(tmp_path / "venv", needs, *TOOLS, options=PINNED, python=python)
    run_the_tests_of_the_runtime(environment, built)


def test_the_runtime_passes_its_tests_with_the_oldest_dependencies(wheel, built, tmp_path):
    environment = create_oldest(tmp_path / "venv", wheel, ("cpu", "serve", "watch", "parquet"))
    frozen = tmp_path / "frozen.txt"
    frozen.write_text(run_checked(BIN / "uv", "pip", "freeze", "--python", environment / "bin/python").stdout)
    kept = [line for line in frozen.read_text().splitlines() if "==" in line]
    run_checked(BIN / "uv", "pip", "install", "--quiet", "--python", environment / "bin/python", *kept, *TOOLS)
    # Old packages warn in today's Python and with today's packages.
    run_the_tests_of_the_runtime(environment, built, "-W", "default")


def test_the_newest_python_trains_and_exports(wheel, tmp_path):
    python = next(found for version in reversed(PYTHONS) if (found := find_python(version)) is not None)
    needs = f"{wheel}[cpu,train,export,tensorboard]"
    environment = create_environment(tmp_path / "venv", needs, options=PINNED, python=python)
    train(environment, tmp_path)
    export(environment, tmp_path, "fp32", "fp16", "int8")


def test_the_oldest_dependencies_train(wheel, tmp_path):
    train(create_oldest(tmp_path / "venv", wheel, ("train", "tensorboard")), tmp_path)


def test_the_oldest_dependencies_export_and_name_what_quantization_needs(wheel, tmp_path):
    environment = create_oldest(tmp_path / "venv", wheel, ("cpu", "train", "export", "tensorboard"))
    train(environment, tmp_path)
    export(environment, tmp_path, "fp32")
    for precision, needed in (("fp16", "1.16"), ("int8", "1.21")):
        command = [environment / "bin/clf-export", "-p", precision]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 4
        assert f"--precision {precision}: needs onnxruntime {needed} or later here, found 1.15" in done.stderr


def create_oldest(folder: Path, wheel: Path, extras: Sequence[str]) -> Path:
    """Create an environment with the oldest version of each dependency that the wheel declares for some extras."""
    declared = ("--requirements", ROOT / "pyproject.toml", *(word for extra in extras for word in ("--extra", extra)))
    environment = create_environment(folder, *declared, options=LOWEST, python=require_python(OLDEST))
    run_checked(BIN / "uv", "pip", "install", "--quiet", "--no-deps", "--python", environment / "bin/python", wheel)
    return environment
