"""A disk that fails at any call, and a kill there: old or new, never half, never neither, and a true message."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import CommandResult, run_command
from faults.injection import ERRORS, KILL, Fault, Injector, faults_at
from rewriting import with_serial

from clf_export.exporting import EXPORTERS
from clf_export.formats import TARGETS
from clf_runtime import folders
from clf_runtime.onnx_file import read
from clf_runtime.store.store import Store
from clf_train.models.saved import load_saved_model

TRAIN = ("clf-train", "--epochs", "2", "--model", "tiny-convnet", "--batch-size", "512", "--checkpoint-every", "0")


@pytest.fixture(scope="module")
def injector(tmp_path_factory) -> Iterator[Injector]:
    injector = Injector(tmp_path_factory.mktemp("shim"))
    yield injector
    injector.close()


@pytest.fixture(scope="module")
def old_model(tmp_path_factory) -> Path:
    """A folder with a finished model, in artifacts/."""
    folder = tmp_path_factory.mktemp("old")
    done = run_command(*TRAIN, "--seed", "5", cwd=folder)
    assert done.code == 0, done.err
    return folder


@dataclass(frozen=True)
class Scenario:
    """A command, the folder it begins with, and what must hold after a fault."""

    command: tuple[str, ...]
    begin: Callable[[Path], object]
    check: Callable[[Path, CommandResult], object]


def read_all(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def run_with_fault(injector: Injector, scenario: Scenario, folder: Path, fault: Fault) -> None:
    """Run a scenario with one fault and check what it left."""
    folder.mkdir()
    scenario.begin(folder)
    before = read_all(folder)
    done = injector.run(list(scenario.command), folder, fault)
    print(f"{scenario.command[0]} {fault}: {done.code} {done.err.strip().splitlines()[-1:]}")
    if fault.error == KILL:
        assert done.code in (-9, 0)
    else:
        assert done.code in (0, 4), f"{fault}: {done.err}"
        assert "Traceback" not in done.err
    if "existing files are unchanged" in done.err:
        after = read_all(folder)
        assert {name: after.get(name) for name in before} == before, f"{fault}: {done.err}"
    scenario.check(folder, done)
    shutil.rmtree(folder)


def run_scenario(samples: list[Path]) -> Scenario:
    """clf-run --output, over an older file."""
    command = ("clf-run", "-m", str(samples[0].parents[1] / "model.onnx"), str(samples[0].parent), "-o", "answers.txt")
    expected = run_command(*command[:-2], cwd=samples[0].parent).out

    def check(folder: Path, done: CommandResult) -> None:
        content = (folder / "answers.txt").read_text()
        assert content in ("old\n", expected)
        assert content == expected or done.code != 0
        again = run_command(*command, cwd=folder)
        assert again.code == 0, again.err
        assert (folder / "answers.txt").read_text() == expected
        assert {path.name for path in folder.iterdir()} == {"answers.txt"}

    return Scenario(command, lambda folder: (folder / "answers.txt").write_text("old\n"), check)


def export_scenario(artifacts: Path) -> Scenario:
    """clf-export, over files of an older export."""
    command = ("clf-export", "--overwrite", "-f", "onnx", "-f", "torchscript")

    def begin(folder: Path) -> None:
        shutil.copytree(artifacts, folder / "artifacts")

    def check(folder: Path, done: CommandResult) -> None:
        for target in TARGETS:
            EXPORTERS[target.format].open(folder / "artifacts" / target.file)  # verifies its digest
        json.loads((folder / "artifacts/export.json").read_text())
        assert "</html>" in (folder / "artifacts/report.html").read_text()
        with folders.locked_folder(folder / "artifacts", "the next command"):
            left = {path.name for path in (folder / "artifacts").iterdir()}
        assert left - {".lock"} == {path.name for path in artifacts.iterdir()}

    return Scenario(command, begin, check)


def train_scenario(old_model: Path) -> Scenario:
    """clf-train --overwrite, over a finished model: its checkpoints and its final moves."""
    old = (old_model / "artifacts/model.pt").read_bytes()

    def begin(folder: Path) -> None:
        shutil.copytree(old_model / "artifacts", folder / "artifacts")
        (folder / "artifacts/model.onnx").write_text("of the old model")

    def check(folder: Path, done: CommandResult) -> None:
        artifacts = folder / "artifacts"
        is_moving = (artifacts / folders.FINISHED).exists()
        if "could be moved there" in done.err:
            assert is_moving
        elif done.code == 4 and "written completely" not in done.err:
            assert (artifacts / "model.pt").read_bytes() == old
        with folders.locked_folder(artifacts, "the next command"):
            pass
        assert not (artifacts / folders.FINISHED).exists()
        load_saved_model(artifacts)  # old or new, and complete
        is_new = (artifacts / "model.pt").read_bytes() != old
        assert is_new != (artifacts / "model.onnx").exists()
        assert is_new or done.code != 0
        assert "</html>" in (artifacts / "report.html").read_text()
        if not is_new and {"checkpoint.pt", "checkpoint.previous.pt"} & {path.name for path in artifacts.iterdir()}:
            again = run_command(*TRAIN, "--resume", cwd=folder)
            assert again.code == 0, again.err
            assert (artifacts / "model.pt").read_bytes() != old

    return Scenario((*TRAIN, "--overwrite"), begin, check)


def deploy_scenario(folder: Path, model: Path) -> Scenario:
    """clf-deploy install, over an older version; only the store is in the working folder."""
    folder.mkdir()
    old, new = (with_serial(model, folder / f"{serial}.onnx", serial) for serial in (1, 2))
    install = ("clf-deploy", "install", str(new), "--store", "store", "--device", "cpu", "--threads", "1")

    def begin(folder: Path) -> None:
        done = run_command("clf-deploy", "install", old, *install[3:], cwd=folder)
        assert done.code == 0, done.err

    def check(folder: Path, done: CommandResult) -> None:
        store = Store(folder / "store")
        serial = read(folder / "store/current/model.onnx").spec.serial
        assert serial == 2 or (serial == 1 and done.code != 0)
        again = run_command(*install, cwd=folder)
        assert again.code == 0, again.err
        assert [read(store.path(name)).spec.serial for name in store.versions] == [1, 2]
        assert read(folder / "store/current/model.onnx").spec.serial == 2
        assert {path.name for path in store.folder.iterdir()} == {"current", "state.json", "versions"}

    return Scenario(install, begin, check)


@pytest.fixture(params=["clf-run", "clf-deploy", "clf-export", "clf-train"])
def scenario(request) -> Scenario:
    if request.param == "clf-run":
        return run_scenario(request.getfixturevalue("samples"))
    if request.param == "clf-deploy":
        folder = request.getfixturevalue("tmp_path_factory").mktemp("models") / "models"
        return deploy_scenario(folder, request.getfixturevalue("model"))
    if request.param == "clf-export":
        return export_scenario(request.getfixturevalue("artifacts"))
    return train_scenario(request.getfixturevalue("old_model"))


@pytest.mark.slow
@pytest.mark.parametrize("call", ERRORS)
def test_any_failing_call_leaves_old_or_new_and_a_true_message(injector, scenario, call, tmp_path):
    folder = tmp_path / "counted"
    folder.mkdir()
    scenario.begin(folder)
    count = injector.count(list(scenario.command), folder, call)
    assert count
    for number in range(1, count + 1):
        for fault in faults_at(call, number):
            run_with_fault(injector, scenario, tmp_path / "faulty", fault)
    print(f"{scenario.command[0]}: {count} calls of {call}, {count * len(faults_at(call, 1))} faults")


@pytest.mark.parametrize(
    "fault",
    [
        Fault("rename", 6, errno.EIO),  # of the last checkpoint
        Fault("rename", 12, errno.EIO),  # staging becomes the new content
        Fault("rename", 14, errno.EIO),  # within the final moves
        Fault("rename", 14, errno.ENOSPC, lasts=True),
        Fault("rename", 15, KILL),
        Fault("unlink", 3, errno.EROFS, lasts=True),
    ],
    ids=str,
)
def test_a_disk_that_fails_during_training_leaves_old_or_new(injector, old_model, fault, tmp_path):
    run_with_fault(injector, train_scenario(old_model), tmp_path / "faulty", fault)


@pytest.mark.parametrize(
    "fault",
    [Fault("write", 1, errno.ENOSPC), Fault("fsync", 2, errno.EIO), Fault("rename", 1, errno.EIO, lasts=True)],
    ids=str,
)
def test_a_disk_that_fails_during_a_run_leaves_old_or_new(injector, samples, fault, tmp_path):
    run_with_fault(injector, run_scenario(samples), tmp_path / "faulty", fault)


@pytest.mark.parametrize(
    "fault",
    [Fault("rename", 1, errno.EIO), Fault("rename", 3, errno.ENOSPC), Fault("fsync", 3, errno.EIO, lasts=True)],
    ids=str,
)
def test_a_disk_that_fails_during_an_installation_leaves_old_or_new(injector, model, fault, tmp_path):
    run_with_fault(injector, deploy_scenario(tmp_path / "models", model), tmp_path / "faulty", fault)
