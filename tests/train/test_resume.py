"""Interrupted training resumes, whenever it was interrupted, and ends in the weights of uninterrupted training."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import pickle
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import BIN, Zygote, run_command
from odd_images import drawing

from clf_train.engine.checkpoint import CheckpointStore, read_identity

# Three steps per epoch, and a checkpoint after each.
OPTIONS = (
    *("--epochs", "2", "--model", "tiny-convnet", "--batch-size", "512"),
    *("--checkpoint-every", "0", "--seed", "3"),
)
CHECKPOINTS = {"checkpoint.pt", "checkpoint.previous.pt"}
FINISHED = {"model.pt", "model.json", "history.csv", "report.html", "images.html", "samples"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """The artifacts folder of a training run with OPTIONS that nothing interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = run_command("clf-train", *OPTIONS, cwd=folder)
    assert done.code == 0, done.err
    assert {path.name for path in (folder / "artifacts").iterdir()} == FINISHED
    return folder / "artifacts"


def train_and_kill(folder: Path, *options: str, **when: float) -> bool:
    """Train in a folder and kill the process; return whether it was still running then."""
    folder.mkdir(exist_ok=True)
    command = [str(BIN / "clf-train"), *OPTIONS, *options]
    code = Zygote.shared().run(command, folder, dict(os.environ), **when).code
    assert code in (0, -9, -14)
    return code != 0


def assert_resumes(folder: Path, uninterrupted: Path) -> None:
    """What is there is complete, and resuming from it ends in the weights of uninterrupted training."""
    artifacts = folder / "artifacts"
    if not (artifacts / "model.json").exists():
        for name in CHECKPOINTS:
            if (artifacts / name).exists():
                assert (artifacts / name).stat().st_size > 1000
        done = run_command("clf-train", *OPTIONS, "--resume", cwd=folder)
        # A kill within the final moves: the command has completed them, and there is nothing left to train.
        is_finished = "artifacts: has a finished model" in done.err
        assert done.code == (3 if is_finished else 0), done.err
        assert "damaged" not in done.err
        assert {path.name for path in artifacts.iterdir()} == FINISHED
    assert (artifacts / "model.pt").read_bytes() == (uninterrupted / "model.pt").read_bytes()
    assert history_without_seconds(artifacts) == history_without_seconds(uninterrupted)


def history_without_seconds(artifacts: Path) -> list[list[str]]:
    return [line.split(",")[:-1] for line in (artifacts / "history.csv").read_text().splitlines()]


@pytest.mark.parametrize("change", [2, 5, 8, 14, 20, 33, 38])
def test_training_that_was_killed_while_it_wrote_a_file_ends_in_the_same_weights(tmp_path, uninterrupted, change):
    assert train_and_kill(tmp_path, kill_at=change)
    assert_resumes(tmp_path, uninterrupted)


@pytest.mark.slow
def test_training_that_was_killed_at_any_change_of_a_file_ends_in_the_same_weights(tmp_path, uninterrupted):
    for change in itertools.count(1):
        if not train_and_kill(tmp_path / str(change), kill_at=change):
            break
        assert_resumes(tmp_path / str(change), uninterrupted)
        shutil.rmtree(tmp_path / str(change))
    assert change > 40


@pytest.mark.slow
def test_training_that_was_killed_at_random_moments_ends_in_the_same_weights(tmp_path, uninterrupted):
    started = time.monotonic()
    assert not train_and_kill(tmp_path / "complete")
    duration_s = time.monotonic() - started
    moments = random.Random(0)
    killed = 0
    while killed < 50:
        folder = tmp_path / f"{killed}"
        if train_and_kill(folder, kill_after_s=moments.uniform(0.01, duration_s)):
            killed += 1
            assert_resumes(folder, uninterrupted)
        shutil.rmtree(folder)


def test_training_that_is_killed_several_times_ends_in_the_same_weights(tmp_path, uninterrupted):
    for _ in range(3):
        train_and_kill(tmp_path, "--resume", kill_at=14)
    assert_resumes(tmp_path, uninterrupted)


@pytest.fixture
def unfinished(tmp_path) -> Path:
    """An artifacts folder with two checkpoints: training was killed in its second epoch."""
    assert train_and_kill(tmp_path, kill_at=26)
    artifacts = tmp_path / "artifacts"
    assert {path.name for path in artifacts.iterdir()} >= CHECKPOINTS
    return artifacts


def test_unfinished_training_is_only_replaced_with_overwrite(command, unfinished):
    before = {name: (unfinished / name).read_bytes() for name in CHECKPOINTS}
    for arguments in (("clf-train", *OPTIONS), ("clf-import", "--weights", "x", "--model", "lenet", "--labels", "a,b")):
        done = command(*arguments)
        assert done.code == 3
        assert "artifacts: has unfinished training; " in done.error
        assert "--overwrite" in done.error
    assert {name: (unfinished / name).read_bytes() for name in CHECKPOINTS} == before
    assert command("clf-train", *OPTIONS, "--overwrite").code == 0


def test_a_damaged_checkpoint_is_ignored_and_the_previous_one_used(command, unfinished, uninterrupted):
    content = bytearray((unfinished / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (unfinished / "checkpoint.pt").write_bytes(content)
    done = command("clf-train", *OPTIONS, "--resume")
    assert done.code == 0
    assert (
        "warning: artifacts/checkpoint.pt: damaged (its digest does not match, or it is no checkpoint); ignoring it"
        in done.err
    )
    assert "resuming with " in done.err
    assert (unfinished / "model.pt").read_bytes() == (uninterrupted / "model.pt").read_bytes()


class Execute:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("kind", ["pickle", "list", "other keys", "text"])
def test_a_checkpoint_with_other_content_under_a_matching_digest_is_damaged(tmp_path, kind):
    executed = tmp_path / "executed"
    file = io.BytesIO()
    if kind == "pickle":
        pickle.dump(Execute(executed), file)
    elif kind == "text":
        file.write(b"text")
    else:
        torch.save([1, 2] if kind == "list" else {"identity": {}, "weights": {}}, file)
    content = file.getvalue()
    (tmp_path / "checkpoint.pt").write_bytes(content + hashlib.sha256(content).digest())
    warnings: list[str] = []
    assert CheckpointStore(tmp_path, {}).load_newest(warnings.append) is None
    assert "damaged" in warnings[0]
    assert read_identity(tmp_path) is None
    assert not executed.exists()


def test_without_an_undamaged_checkpoint_training_starts_over_with_a_warning(command, unfinished, uninterrupted):
    for name in CHECKPOINTS:
        (unfinished / name).write_bytes(b"half a checkpo")
    done = command("clf-train", *OPTIONS, "--resume")
    assert done.code == 0
    assert "warning: artifacts: no undamaged checkpoint; starting from the beginning" in done.err
    assert "resuming with " not in done.err
    assert (unfinished / "model.pt").read_bytes() == (uninterrupted / "model.pt").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", "7"), "epochs was 2, is 7"),
        (("--seed", "4"), "--seed was 3, is 4"),
        (
            ("--batch-size", "256", "--learning-rate", "0.3"),
            "batch size was 512, is 256; learning rate was 0.1, is 0.3",
        ),
        (("--model", "resnet9"), "model was tiny-convnet, is resnet9"),
        (("--test-split", "0.3"), "--test-split was 0.2, is 0.3"),
    ],
)
def test_resuming_with_other_options_fails_and_names_them(command, unfinished, options, message):
    done = command("clf-train", *OPTIONS, *options, "--resume")
    assert done.code == 3
    assert "checkpoint.pt: from a different training run (" in done.err.splitlines()[-1]
    assert message in done.err.splitlines()[-1]
    assert {path.name for path in unfinished.iterdir()} & CHECKPOINTS


def test_resuming_with_changed_images_fails(command, tmp_path):
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(10):
            drawing(20 + number, 20).save(tmp_path / "data" / label / f"{number}.png")
    options = ("--data", "data", "--model", "tiny-convnet", "--epochs", "3")
    run = Zygote.shared().run([str(BIN / "clf-train"), *options], tmp_path, dict(os.environ), kill_at=12)
    assert run.code == -9
    for path in (tmp_path / "data/a").iterdir():
        drawing(33, 33).save(path)
    done = command("clf-train", *options, "--resume")
    assert done.code == 3
    assert "images was " in done.err.splitlines()[-1]


def test_without_space_for_a_checkpoint_the_existing_one_stays_intact(command, unfinished, uninterrupted):
    before = (unfinished / "checkpoint.pt").read_bytes()
    done = command("clf-train", *OPTIONS, "--resume", prefix=("prlimit", f"--fsize={len(before) // 2}"))
    assert done.code == 4
    assert "checkpoint.pt: file too large, so this checkpoint is not written; " in done.err.splitlines()[-1]
    assert (unfinished / "checkpoint.pt").read_bytes() == before
    assert command("clf-train", *OPTIONS, "--resume").code == 0
    assert (unfinished / "model.pt").read_bytes() == (uninterrupted / "model.pt").read_bytes()


def test_a_folder_that_becomes_read_only_keeps_its_checkpoint(command, unfinished, no_root):
    arguments = [*no_root, str(BIN / "clf-train"), *OPTIONS[2:], "--epochs", "100000", "--overwrite"]
    with subprocess.Popen(arguments, cwd=unfinished.parent, stderr=subprocess.PIPE, text=True) as process:
        assert any("epoch 2/" in line for line in process.stderr)
        unfinished.chmod(0o555)
        rest = process.stderr.read()
        assert process.wait(60) == 4
    unfinished.chmod(0o755)
    assert "permission denied, so this checkpoint is not written; " in rest.splitlines()[-1]
    done = command("clf-train", *OPTIONS[2:], "--epochs", "200000", "--resume")
    assert "epochs was 100000, is 200000" in done.err.splitlines()[-1]  # so the checkpoint could be read


def test_the_leftovers_of_a_killed_process_are_removed_by_the_next(command, unfinished):
    staging = next(unfinished.glob(".staging.*"))
    (staging / "model.pt").write_bytes(b"half")
    assert command("clf-train", *OPTIONS, "--resume").code == 0
    assert not staging.exists()


def test_a_finished_model_has_nothing_to_resume(command, artifacts, tmp_path):
    shutil.copytree(artifacts, tmp_path / "artifacts")
    done = command("clf-train", "--resume")
    assert done.code == 3
    assert "has a finished model" in done.error
