"""The wheel in a clean environment, as on a device."""

from __future__ import annotations

import email
import json
import subprocess
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import ROOT, create_environment, run_checked
from odd_images import odd_images

MOST_BYTES = 150_000_000


def requirements_of(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name)).get_all("Requires-Dist")


@pytest.fixture(scope="session")
def device(wheel, tmp_path_factory) -> Path:
    """The folder of an environment with the wheel and its [cpu] extra, as on a device."""
    return create_environment(tmp_path_factory.mktemp("device") / "venv", f"{wheel}[cpu]")


@pytest.fixture(scope="session")
def oldest(wheel, tmp_path_factory) -> Path:
    """Likewise, with the oldest version of each dependency that the wheel allows and this Python has."""
    options = ("--resolution", "lowest-direct", "--only-binary", ":all:")
    needs = [need.partition(";")[0] for need in requirements_of(wheel) if "extra" not in need or "'cpu'" in need]
    assert len(needs) == 4
    return create_environment(tmp_path_factory.mktemp("oldest") / "venv", f"{wheel}[cpu]", *needs, options=options)


def test_the_wheel_contains_the_five_packages_their_templates_and_the_license(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"clf_runtime", "clf_serve", "clf_batch", "clf_deploy", "clf_train", "clf_export", info}
    assert {f"{package}/py.typed" for package in tops - {info}} <= set(names)
    assert {f"clf_train/report/templates/{name}" for name in ("report.html.j2", "preview.html.j2", "page.css")} <= set(
        names
    )
    assert {"clf_export/templates/exported.html.j2", "clf_runtime/evaluation/page.css"} <= set(names)
    assert {f"clf_serve/static/{name}" for name in ("index.html", "page.css", "page.js")} <= set(names)
    assert f"{info}/licenses/LICENSE" in names
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    extras = {
        "cpu",
        "gpu",
        "serve",
        "batch",
        "train",
        "tensorboard",
        "parquet",
        "watch",
        "verify",
        "sign",
        "bundle",
        "export",
        "docs",
        "dev",
    }
    assert set(metadata.get_all("Provides-Extra")) == extras
    assert [line.split(" = ")[0] for line in entry_points.splitlines()[1:] if line] == [
        "clf-batch",
        "clf-bench",
        "clf-deploy",
        "clf-eval",
        "clf-export",
        "clf-import",
        "clf-run",
        "clf-serve",
        "clf-train",
    ]


@pytest.mark.slow
def test_a_device_gets_the_four_dependencies_and_what_they_need(device):
    names = {path.name.partition("-")[0].lower() for path in device.rglob("*.dist-info")}
    assert {"clf_edge", "click", "numpy", "pillow", "onnxruntime"} <= names
    assert not names & {"torch", "torchvision", "onnx", "onnxscript", "scikit_learn", "jinja2", "tqdm", "scipy"}


@pytest.mark.slow
def test_with_pinned_versions_it_takes_at_most_150_megabytes(wheel, tmp_path):
    # Not with the newest versions: onnxruntime 1.32.0 is 11 MB larger, which makes 160.
    pinned = ("--constraint", str(ROOT / "requirements/dev.txt"))
    device = create_environment(tmp_path / "venv", f"{wheel}[cpu]", options=pinned)
    site = next(device.glob("lib/python*/site-packages"))
    size = sum(path.lstat().st_size for path in site.rglob("*") if path.is_file())
    assert size <= MOST_BYTES


@pytest.mark.slow
def test_a_device_gives_exactly_the_predictions_of_the_training_machine(device, command, home, samples):
    here = command("clf-run", "artifacts/samples", "--top", 3, "--format", "jsonl", cwd=home)
    there = run_checked(device / "bin/clf-run", "artifacts/samples", "--top", 3, "--format", "jsonl", cwd=home)
    assert there.stdout == here.out
    assert "passed" in run_checked(device / "bin/clf-run", "--self-test", cwd=home).stdout


@pytest.mark.slow
def test_the_oldest_allowed_packages_give_the_same_predictions(oldest, command, home, tmp_path):
    for name, path in odd_images(tmp_path).items():
        assert path.name == name
    listed = run_checked(
        oldest / "bin/python", "-c", "import onnxruntime, PIL; print(onnxruntime.__version__, PIL.__version__)"
    )
    assert listed.stdout.split() != [version("onnxruntime"), version("pillow")]
    arguments = ("artifacts/samples", str(tmp_path), "--top", "3", "--format", "jsonl")
    here = [json.loads(line) for line in command("clf-run", *arguments, cwd=home).out.splitlines()]
    there = [json.loads(line) for line in run_checked(oldest / "bin/clf-run", *arguments, cwd=home).stdout.splitlines()]
    assert len(here) == 16 + len(list(tmp_path.iterdir()))
    assert [record["label"] for record in there] == [record["label"] for record in here]
    assert max(abs(one["score"] - other["score"]) for one, other in zip(here, there, strict=True)) <= 1e-4
    assert "passed" in run_checked(oldest / "bin/clf-run", "--self-test", cwd=home).stdout


@pytest.mark.slow
@pytest.mark.parametrize(("program", "extra"), [("clf-train", "train"), ("clf-export", "export")])
def test_a_command_whose_extra_is_missing_says_what_to_install(device, tmp_path, program, extra):
    done = subprocess.run([device / "bin" / program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 4
    assert len(done.stderr.strip().splitlines()) == 1
    assert f'pip install "clf-edge[{extra}]"' in done.stderr
    assert run_checked(device / "bin" / program, "--help").stdout.startswith(f"Usage: {program}")


@pytest.mark.slow
def test_without_onnxruntime_the_runtime_says_what_to_install(device, home):
    code = "import sys; sys.modules['onnxruntime'] = None; from clf_runtime.cli import main; main()"
    done = subprocess.run(
        [device / "bin/python", "-c", code, "artifacts/samples"], capture_output=True, text=True, cwd=home
    )
    assert done.returncode == 4
    assert 'pip install "clf-edge[cpu]"' in done.stderr


def test_the_pinned_requirements_have_hashes_and_no_address():
    text = (ROOT / "requirements/dev.txt").read_text()
    pinned = [line for line in text.splitlines() if line and line[0] not in "# "]
    assert len(pinned) > 50
    assert all("==" in line for line in pinned)
    assert text.count("--hash=sha256:") > len(pinned)
    assert "://" not in text
    assert "index" not in text
