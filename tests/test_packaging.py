"""The wheel, in a clean environment: what a device gets, and nothing else."""

from __future__ import annotations

import email
import json
import subprocess
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from awkward import awkward_images
from conftest import ROOT, checked, environment

MOST_BYTES = 150_000_000


def needs_of(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name)).get_all("Requires-Dist")


@pytest.fixture(scope="session")
def device(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel and its [cpu] extra, as on a device; gives its folder."""
    return environment(tmp_path_factory.mktemp("device") / "venv", f"{wheel}[cpu]")


@pytest.fixture(scope="session")
def oldest(wheel, tmp_path_factory) -> Path:
    """Likewise, with the oldest of each dependency that the wheel allows and this Python has."""
    options = ("--resolution", "lowest-direct", "--only-binary", ":all:")
    needs = [need.partition(";")[0] for need in needs_of(wheel) if "extra" not in need or "'cpu'" in need]
    assert len(needs) == 4
    return environment(tmp_path_factory.mktemp("oldest") / "venv", f"{wheel}[cpu]", *needs, options=options)


def test_the_wheel_holds_the_three_packages_and_their_terms(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"clf_runtime", "clf_train", "clf_export", info}
    assert {f"{package}/py.typed" for package in tops - {info}} <= set(names)
    assert {f"clf_train/{name}" for name in ("report.html.j2", "preview.html.j2", "page.css")} <= set(names)
    assert {f"clf_export/{name}" for name in ("exported.html.j2", "only_exported.html.j2")} <= set(names)
    assert f"{info}/licenses/LICENSE" in names
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert set(metadata.get_all("Provides-Extra")) == {"cpu", "gpu", "train", "tensorboard", "export", "dev"}
    assert [line.split(" = ")[0] for line in entry_points.splitlines()[1:] if line] == [
        "clf-bench",
        "clf-export",
        "clf-import",
        "clf-run",
        "clf-train",
    ]


def test_on_a_device_there_are_only_the_four_and_what_they_need(device):
    names = {path.name.partition("-")[0].lower() for path in device.rglob("*.dist-info")}
    assert {"clf_edge", "click", "numpy", "pillow", "onnxruntime"} <= names
    assert not names & {"torch", "torchvision", "onnx", "onnxscript", "scikit_learn", "jinja2", "tqdm", "scipy"}


def test_in_the_versions_that_are_pinned_it_takes_150_megabytes_at_most(wheel, tmp_path):
    # Not in the newest ones: since onnxruntime 1.32.0, which has 11 MB more, those take 160.
    pinned = ("--constraint", str(ROOT / "requirements/dev.txt"))
    device = environment(tmp_path / "venv", f"{wheel}[cpu]", options=pinned)
    site = next(device.glob("lib/python*/site-packages"))
    size = sum(path.lstat().st_size for path in site.rglob("*") if path.is_file())
    assert size <= MOST_BYTES


def test_a_device_gives_the_very_answers_that_the_trainer_gives(device, command, home, samples):
    here = command("clf-run", "artifacts/samples", "--top", 3, "--format", "jsonl", cwd=home)
    there = checked(device / "bin/clf-run", "artifacts/samples", "--top", 3, "--format", "jsonl", cwd=home)
    assert there.stdout == here.out
    assert "passed" in checked(device / "bin/clf-run", "--self-test", cwd=home).stdout


def test_the_oldest_packages_that_are_allowed_give_the_same_answers(oldest, command, home, tmp_path):
    for name, path in awkward_images(tmp_path).items():
        assert path.name == name
    listed = checked(
        oldest / "bin/python", "-c", "import onnxruntime, PIL; print(onnxruntime.__version__, PIL.__version__)"
    )
    assert listed.stdout.split() != [version("onnxruntime"), version("pillow")]
    arguments = ("artifacts/samples", str(tmp_path), "--top", "3", "--format", "jsonl")
    here = [json.loads(line) for line in command("clf-run", *arguments, cwd=home).out.splitlines()]
    there = [json.loads(line) for line in checked(oldest / "bin/clf-run", *arguments, cwd=home).stdout.splitlines()]
    assert len(here) == 16 + len(list(tmp_path.iterdir()))
    assert [record["label"] for record in there] == [record["label"] for record in here]
    assert max(abs(one["score"] - other["score"]) for one, other in zip(here, there, strict=True)) <= 1e-4
    assert "passed" in checked(oldest / "bin/clf-run", "--self-test", cwd=home).stdout


@pytest.mark.parametrize(("program", "extra"), [("clf-train", "train"), ("clf-export", "export")])
def test_a_command_whose_extra_is_missing_says_what_mends_it(device, tmp_path, program, extra):
    done = subprocess.run([device / "bin" / program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 4
    assert len(done.stderr.strip().splitlines()) == 1
    assert f'pip install "clf-edge[{extra}]"' in done.stderr
    assert checked(device / "bin" / program, "--help").stdout.startswith(f"Usage: {program}")


def test_without_its_extra_the_runtime_says_what_mends_it(device, home):
    code = "import sys; sys.modules['onnxruntime'] = None; from clf_runtime.cli import main; main()"
    done = subprocess.run(
        [device / "bin/python", "-c", code, "artifacts/samples"], capture_output=True, text=True, cwd=home
    )
    assert done.returncode == 4
    assert 'pip install "clf-edge[cpu]"' in done.stderr


def test_the_pinned_list_names_hashes_and_no_address():
    text = (ROOT / "requirements/dev.txt").read_text()
    pinned = [line for line in text.splitlines() if line and line[0] not in "# "]
    assert len(pinned) > 50
    assert all("==" in line for line in pinned)
    assert text.count("--hash=sha256:") > len(pinned)
    assert "://" not in text
    assert "index" not in text
