"""Nothing of a training is lost: cut off at any moment, it goes on to the very weights of an undisturbed one."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import BIN, Zygote, call

# Three steps an epoch, and a checkpoint after each.
OPTIONS = ("--epochs", "2", "--batch-size", "512", "--checkpoint-every", "0", "--seed", "3")
CHECKPOINTS = {"checkpoint.pt", "checkpoint.previous.pt"}
FINISHED = {"model.pt", "model.json", "history.csv", "report.html", "samples"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = call("clf-train", *OPTIONS, cwd=folder)
    assert done.code == 0, done.err
    assert {path.name for path in (folder / "artifacts").iterdir()} == FINISHED
    return folder / "artifacts"


def cut_off(folder: Path, *options: str, **preprocess: float) -> bool:
    """Train, and be killed on the way; says whether that was before it had ended."""
    folder.mkdir(exist_ok=True)
    code = (
        Zygote.shared().run([str(BIN / "clf-train"), *OPTIONS, *options], folder, dict(os.environ), **preprocess).code
    )
    assert code in (0, -9, -14)
    return code != 0


def assert_it_goes_on(folder: Path, undisturbed: Path) -> None:
    """What is there is complete, and going on with it ends where an undisturbed training does."""
    made = folder / "artifacts"
    if not (made / "model.json").exists():
        for name in CHECKPOINTS:
            if (made / name).exists():
                assert (made / name).stat().st_size > 1000
        done = call("clf-train", *OPTIONS, "--resume", cwd=folder)
        assert done.code == 0, done.err
        assert "damaged" not in done.err
        assert {path.name for path in made.iterdir()} == FINISHED
    assert (made / "model.pt").read_bytes() == (undisturbed / "model.pt").read_bytes()
    assert rows(made) == rows(undisturbed)


def rows(made: Path) -> list[list[str]]:
    """Give history.csv without the seconds."""
    return [line.split(",")[:-1] for line in (made / "history.csv").read_text().splitlines()]


@pytest.mark.parametrize("change", [2, 5, 8, 14, 20, 33, 38])
def test_killed_while_it_writes_it_ends_in_the_same_weights(tmp_path, undisturbed, change):
    assert cut_off(tmp_path, kill_at=change)
    assert_it_goes_on(tmp_path, undisturbed)


@pytest.mark.slow
def test_killed_at_every_change_of_a_file_it_ends_in_the_same_weights(tmp_path, undisturbed):
    for change in itertools.count(1):
        if not cut_off(tmp_path / str(change), kill_at=change):
            break
        assert_it_goes_on(tmp_path / str(change), undisturbed)
        shutil.rmtree(tmp_path / str(change))
    assert change > 40


@pytest.mark.slow
def test_killed_at_fifty_random_moments_it_ends_in_the_same_weights(tmp_path, undisturbed):
    started = time.monotonic()
    assert not cut_off(tmp_path / "whole")
    moments = random.Random(0)
    killed = 0
    takes = time.monotonic() - started
    while killed < 50:
        folder = tmp_path / f"{killed}"
        if cut_off(folder, kill_after_s=moments.uniform(0.01, takes)):
            killed += 1
            assert_it_goes_on(folder, undisturbed)
        shutil.rmtree(folder)


def test_killed_again_and_again_it_gets_there_all_the_same(tmp_path, undisturbed):
    for _ in range(3):
        cut_off(tmp_path, "--resume", kill_at=14)
    assert_it_goes_on(tmp_path, undisturbed)


@pytest.fixture
def unfinished(tmp_path) -> Path:
    assert cut_off(tmp_path, kill_at=24)
    made = tmp_path / "artifacts"
    assert {path.name for path in made.iterdir()} >= CHECKPOINTS
    return made


def test_an_unfinished_training_is_not_lost_by_starting_anew(command, unfinished):
    before = {path.name: path.read_bytes() for path in unfinished.iterdir() if path.is_file()}
    for arguments in (("clf-train", *OPTIONS), ("clf-import", "--weights", "x", "--model", "lenet", "--labels", "a,b")):
        done = command(*arguments)
        assert done.code == 3
        assert "artifacts: has an unfinished training; " in done.error
        assert "--overwrite" in done.error
    assert {path.name: path.read_bytes() for path in unfinished.iterdir() if path.is_file()} == before
    assert command("clf-train", "--epochs", 1, "--overwrite").code == 0


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(command, unfinished, undisturbed):
    content = bytearray((unfinished / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (unfinished / "checkpoint.pt").write_bytes(content)
    done = command("clf-train", *OPTIONS, "--resume")
    assert done.code == 0
    assert "checkpoint.pt: is damaged; going on from the checkpoint before it" in done.err
    assert (unfinished / "model.pt").read_bytes() == (undisturbed / "model.pt").read_bytes()


def test_without_a_whole_checkpoint_it_starts_from_the_beginning_and_says_so(command, unfinished, undisturbed):
    for name in CHECKPOINTS:
        (unfinished / name).write_bytes(b"half a checkpo")
    done = command("clf-train", *OPTIONS, "--resume")
    assert done.code == 0
    assert "no checkpoint is whole; starting from the beginning" in done.err
    assert (unfinished / "model.pt").read_bytes() == (undisturbed / "model.pt").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--epochs", "7"), "epochs was 2.0, is 7.0"),
        (("--seed", "4"), "--seed was 3, is 4"),
        (
            ("--batch-size", "256", "--learning-rate", "0.3"),
            "batch size was 512, is 256; learning rate was 0.1, is 0.3",
        ),
        (("--model", "resnet9"), "model was small-resnet, is resnet9"),
        (("--test-split", "0.3"), "--test-split was 0.2, is 0.3"),
    ],
)
def test_other_options_are_refused_by_name(command, unfinished, options, said):
    done = command("clf-train", *OPTIONS, *options, "--resume")
    assert done.code == 3
    assert "checkpoint.pt: is of another training: " in done.err.splitlines()[-1]
    assert said in done.err.splitlines()[-1]
    assert {path.name for path in unfinished.iterdir()} & CHECKPOINTS


def test_changed_images_are_refused(command, tmp_path):
    from awkward import drawing

    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(10):
            drawing(20 + number, 20).save(tmp_path / "data" / label / f"{number}.png")
    options = ("--data", "data", "--epochs", "3")
    run = Zygote.shared().run([str(BIN / "clf-train"), *options], tmp_path, dict(os.environ), kill_at=12)
    assert run.code == -9
    for path in (tmp_path / "data/a").iterdir():
        drawing(33, 33).save(path)
    done = command("clf-train", *options, "--resume")
    assert done.code == 3
    assert "images was " in done.err.splitlines()[-1]


def test_without_space_for_a_checkpoint_the_one_before_is_intact(command, unfinished, undisturbed):
    kept = (unfinished / "checkpoint.pt").read_bytes()
    done = command("clf-train", *OPTIONS, "--resume", prefix=("prlimit", f"--fsize={len(kept) // 2}"))
    assert done.code == 4
    assert "checkpoint.pt: file too large; what was there before is still there" in done.err.splitlines()[-1]
    assert (unfinished / "checkpoint.pt").read_bytes() == kept
    assert command("clf-train", *OPTIONS, "--resume").code == 0
    assert (unfinished / "model.pt").read_bytes() == (undisturbed / "model.pt").read_bytes()


def test_a_folder_that_turns_read_only_leaves_the_checkpoint_intact(command, unfinished, undisturbed, no_root):
    arguments = [*no_root, str(BIN / "clf-train"), *OPTIONS[2:], "--epochs", "100000", "--overwrite"]
    folder = unfinished.parent
    with subprocess.Popen(arguments, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        assert any("epoch 2/" in line for line in process.stderr)
        unfinished.chmod(0o555)
        rest = process.stderr.read()
        assert process.wait(60) == 4
    unfinished.chmod(0o755)
    assert "permission denied; what was there before is still there" in rest.splitlines()[-1]
    done = command("clf-train", *OPTIONS[2:], "--epochs", "200000", "--resume")
    assert "epochs was 100000.0, is 200000.0" in done.err.splitlines()[-1]  # so the checkpoint could be read


def test_what_a_killed_process_left_is_swept_by_the_next(command, unfinished):
    left = next(unfinished.glob(".staging.*"))
    (left / "model.pt").write_bytes(b"half")
    assert command("clf-train", *OPTIONS, "--resume").code == 0
    assert not left.exists()


def test_a_finished_model_has_nothing_to_resume(command, artifacts, tmp_path):
    shutil.copytree(artifacts, tmp_path / "artifacts")
    done = command("clf-train", "--resume")
    assert done.code == 3
    assert "has a finished model" in done.error
