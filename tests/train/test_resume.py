"""Nothing of a training is lost: cut off at any moment, it goes on to the very weights of an undisturbed one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import BIN, call

OPTIONS = ("--epochs", "6", "--seed", "3")
CHECKPOINTS = {"checkpoint.pt", "checkpoint.previous.pt"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert call("clf-train", *OPTIONS, cwd=folder).code == 0
    assert not {path.name for path in (folder / "artifacts").iterdir()} & CHECKPOINTS
    return (folder / "artifacts/model.pt").read_bytes()


def cut_off(folder: Path, line: str) -> None:
    """Train until a line of progress, then kill the process, as a power cut would."""
    with subprocess.Popen([BIN / "clf-train", *OPTIONS], cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        assert any(line in each for each in process.stderr)
        process.kill()
    assert not (folder / "artifacts/model.json").exists()


@pytest.mark.parametrize("line", ["small-resnet", "epoch 1/", "epoch 2/", "epoch 5/", "epoch 6/"])
def test_killed_at_a_moment_it_ends_in_the_same_weights(command, tmp_path, undisturbed, line):
    cut_off(tmp_path, line)
    done = command("clf-train", *OPTIONS, "--resume")
    assert done.code == 0, done.err
    assert (tmp_path / "artifacts/model.pt").read_bytes() == undisturbed
    names = {path.name for path in (tmp_path / "artifacts").iterdir()}
    assert names == {"model.pt", "model.json", "history.csv", "report.html", "samples"}
    assert len((tmp_path / "artifacts/history.csv").read_text().splitlines()) == 7


@pytest.fixture
def unfinished(tmp_path) -> Path:
    cut_off(tmp_path, "epoch 4/")
    return tmp_path / "artifacts"


def test_an_unfinished_training_is_not_lost_by_starting_anew(command, unfinished):
    before = {path.name: path.read_bytes() for path in unfinished.iterdir() if path.is_file()}
    done = command("clf-train", *OPTIONS)
    assert done.code == 3
    assert done.error == (
        "clf-train: artifacts: has an unfinished training; --resume goes on with it, --overwrite starts anew"
    )
    assert {path.name: path.read_bytes() for path in unfinished.iterdir() if path.is_file()} == before
    assert command("clf-train", "--epochs", 1, "--overwrite").code == 0


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(command, unfinished, undisturbed):
    content = bytearray((unfinished / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (unfinished / "checkpoint.pt").write_bytes(content)
    done = command("clf-train", *OPTIONS, "--resume")
    assert done.code == 0
    assert "checkpoint.pt: is damaged; going on from the checkpoint before it" in done.err
    assert (unfinished / "model.pt").read_bytes() == undisturbed


def test_without_a_whole_checkpoint_it_starts_from_the_beginning_and_says_so(command, unfinished, undisturbed):
    for name in CHECKPOINTS:
        (unfinished / name).write_bytes(b"half a checkpo")
    done = command("clf-train", *OPTIONS, "--resume")
    assert done.code == 0
    assert "no checkpoint is whole; starting from the beginning" in done.err
    assert (unfinished / "model.pt").read_bytes() == undisturbed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--epochs", "7", "--seed", "3"), "recipe was "),
        (("--epochs", "6", "--seed", "4"), "--seed was 3, is 4"),
        ((*OPTIONS, "--model", "resnet9"), "model was small-resnet, is resnet9"),
        ((*OPTIONS, "--held-out", "0.3"), "--held-out was 0.2, is 0.3"),
    ],
)
def test_other_options_are_refused_by_name(command, unfinished, options, said):
    done = command("clf-train", *options, "--resume")
    assert done.code == 3
    assert "checkpoint.pt: is of another training: " in done.err.splitlines()[-1]
    assert said in done.err.splitlines()[-1]
    assert {path.name for path in unfinished.iterdir()} & CHECKPOINTS


def test_changed_pictures_are_refused(command, tmp_path):
    from awkward import drawing

    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(10):
            drawing(20 + number, 20).save(tmp_path / "data" / label / f"{number}.png")
    arguments = [BIN / "clf-train", "--data", "data", "--epochs", "100000"]
    with subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert any("epoch 2/" in line for line in process.stderr)
        process.kill()
    for path in (tmp_path / "data/a").iterdir():
        drawing(33, 33).save(path)
    done = command("clf-train", "--data", "data", "--epochs", "100000", "--resume")
    assert done.code == 3
    assert "pictures was " in done.err.splitlines()[-1]


def test_without_space_for_a_checkpoint_the_one_before_is_intact(command, unfinished, undisturbed):
    kept = (unfinished / "checkpoint.pt").read_bytes()
    done = command("clf-train", *OPTIONS, "--resume", prefix=("prlimit", f"--fsize={len(kept) // 2}"))
    assert done.code == 4
    assert "checkpoint.pt: file too large; what was there before is still there" in done.err.splitlines()[-1]
    assert (unfinished / "checkpoint.pt").read_bytes() == kept
    assert command("clf-train", *OPTIONS, "--resume").code == 0
    assert (unfinished / "model.pt").read_bytes() == undisturbed


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
