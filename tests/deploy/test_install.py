"""install.sh of a bundle: on this machine, without a network."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from bundles import FILES, manifest_of
from conftest import ROOT, run_checked, run_command
from test_pythons import PYTHONS, require_python

from clf_deploy.bundle.platforms import PLATFORMS

DEVICE = ROOT / "runtime/clf_deploy/bundle/device"
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="bundles are for Linux")


@pytest.fixture
def unpacked(tmp_path) -> Path:
    """An unpacked bundle for this machine, without wheels that could be installed."""
    folder = tmp_path / "clf-bundle"
    document = json.loads(manifest_of(FILES).to_json())
    document |= {"python": HERE, "machine": platform.machine()}
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    for name in ("install.sh", "install.py"):
        shutil.copyfile(DEVICE / name, folder / name)
    document["parts"] = [part for part in document["parts"] if part["path"] != "install.sh"]
    write_manifest(folder, document)
    return folder


def write_manifest(folder: Path, document: dict[str, object]) -> None:
    (folder / "manifest.json").write_text(json.dumps(document, indent=1))


def install(
    folder: Path, *arguments: object, prefix: Sequence[str] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """Run install.sh with this Python, or the one that PYTHON names."""
    command = [*prefix, "sh", folder / "install.sh", *arguments]
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env=os.environ | {"PYTHON": sys.executable} | env
    )


@pytest.mark.parametrize(
    ("changed", "code", "expected"),
    [
        ({"machine": "riscv64"}, 4, "this bundle is for riscv64, found "),
        ({"glibc": "9.99"}, 4, "this bundle needs glibc 9.99 or later, found glibc 2."),
        ({"python": "3.99"}, 4, "this bundle is for Python 3.99, found Python 3."),
    ],
)
def test_a_bundle_for_another_device_is_refused_in_one_line(unpacked, tmp_path, changed, code, expected):
    write_manifest(unpacked, json.loads((unpacked / "manifest.json").read_bytes()) | changed)
    done = install(unpacked, tmp_path / "prefix")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert done.stderr.startswith(f"install.sh: {expected}")
    assert not (tmp_path / "prefix").exists()


def test_damaged_missing_and_added_files_are_refused_in_one_line(unpacked, tmp_path):
    def refuse(expected: str) -> None:
        done = install(unpacked, tmp_path / "prefix")
        assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
        assert expected in done.stderr
        assert not (tmp_path / "prefix").exists()

    (unpacked / "wheels/evil-1-py3-none-any.whl").touch()
    refuse("wheels/evil-1-py3-none-any.whl: does not belong to this bundle")
    (unpacked / "wheels/evil-1-py3-none-any.whl").unlink()
    (unpacked / "model.onnx").write_bytes(bytes(1023) + b"\1")
    refuse("model.onnx: damaged (SHA-256 ")
    (unpacked / "model.onnx").unlink()
    refuse("model.onnx: No such file or directory; unpack the bundle again")


def test_more_than_one_argument_is_a_usage_error(unpacked, tmp_path):
    done = install(unpacked, tmp_path / "a", tmp_path / "b")
    assert (done.returncode, done.stderr.startswith("install.sh: usage: sh install.sh [PREFIX]")) == (2, True)


def offline() -> Sequence[str]:
    """Return a command prefix that takes the network away; skip the test where that is not possible."""
    prefix = ("unshare", "--user", "--map-root-user", "--net")
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs unshare and user namespaces, to take the network away")
    return prefix


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_a_bundle_installs_without_a_network_and_again(version, artifacts, tmp_path):
    python = require_python(version)
    prefix = offline()
    name = next((name for name, machine in PLATFORMS.items() if machine == platform.machine()), None)
    target = ("--platform", name, "--python", version, "--constraint", ROOT / "requirements/dev.txt")
    made = run_command("clf-deploy", "bundle", "-a", artifacts, *target, "-o", "x.clfb", cwd=tmp_path)
    assert made.code == 0, made.err
    run_checked("tar", "xf", tmp_path / "x.clfb", "-C", tmp_path)
    folder, home = tmp_path / "clf-bundle", tmp_path / "home"
    # What a device's pip may be told must not matter.
    told = {"PYTHON": str(python), "PIP_INDEX_URL": "http://localhost:9", "PIP_USER": "1", "HOME": str(home)}
    done = install(folder, tmp_path / "prefix", prefix=prefix, **told)
    assert done.returncode == 0, done.stderr
    assert "passed: 16 images on CPUExecutionProvider" in done.stderr
    link = tmp_path / "prefix/current"
    first = link.readlink()
    assert run_checked(tmp_path / "prefix/bin/clf-run", "--version").stdout.startswith("clf-run, version ")
    imported = run_checked(
        tmp_path / "prefix/bin/python", "-c", "import clf_runtime; print(clf_runtime.__file__)"
    ).stdout
    assert Path(imported.strip()).is_relative_to(tmp_path / "prefix")
    installed_model = tmp_path / "prefix/models/current/model.onnx"
    assert installed_model.read_bytes() == (folder / "model.onnx").read_bytes()
    assert not (home / ".local").exists()
    assert not (home / ".cache").exists()

    # Again, after an interrupted installation and one of other versions.
    (tmp_path / "prefix/releases/older/bin").mkdir(parents=True)
    (tmp_path / "prefix" / first / "complete").unlink()
    done = install(folder, tmp_path / "prefix", prefix=prefix, **told)
    assert (done.returncode, link.readlink()) == (0, first), done.stderr
    assert [path.name for path in (tmp_path / "prefix/releases").iterdir()] == [first.name]

    # A model whose self-test fails changes nothing.
    run_checked(sys.executable, "-c", DAMAGE, folder)
    done = install(folder, tmp_path / "prefix", prefix=prefix, **told)
    assert (done.returncode, link.readlink()) == (3, first)
    assert done.stderr.endswith("the self-test failed on this device; what was in use before is unchanged\n")


# Replace the model of an unpacked bundle by one without a footer, and its digest in the manifest.
DAMAGE = """
import hashlib, json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
content = (folder / "model.onnx").read_bytes()[:-80]
(folder / "model.onnx").write_bytes(content)
document = json.loads((folder / "manifest.json").read_bytes())
for part in document["parts"]:
    if part["path"] == "model.onnx":
        part["sha256"] = hashlib.sha256(content).hexdigest()
(folder / "manifest.json").write_text(json.dumps(document, indent=1))
"""


@pytest.mark.slow
def test_an_existing_environment_gets_the_packages(artifacts, tmp_path):
    name = next((name for name, machine in PLATFORMS.items() if machine == platform.machine()), None)
    target = ("--platform", name, "--python", HERE, "--constraint", ROOT / "requirements/dev.txt")
    made = run_command("clf-deploy", "bundle", "-a", artifacts, *target, "-o", "x.clfb", cwd=tmp_path)
    assert made.code == 0, made.err
    run_checked("tar", "xf", tmp_path / "x.clfb", "-C", tmp_path)
    run_checked(sys.executable, "-m", "venv", tmp_path / "env")
    done = install(tmp_path / "clf-bundle", tmp_path / "env", prefix=offline())
    assert done.returncode == 0, done.stderr
    assert run_checked(tmp_path / "env/bin/clf-serve", "--version").stdout.startswith("clf-serve, version ")
