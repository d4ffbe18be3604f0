"""`clf-train` as a process: what it writes, and that nothing is lost when it cannot."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import termios
from pathlib import Path

import numpy as np
import pytest
import torch
from awkward import drawing
from conftest import BIN
from PIL import Image

from clf_runtime.spec import ModelSpec
from clf_train import cli
from clf_train.history import Epoch
from clf_train.models import saved


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def finished(artifacts, tmp_path) -> Path:
    """A copy of a finished artifacts folder."""
    return Path(shutil.copytree(artifacts, tmp_path / "artifacts"))


@pytest.fixture
def pets(tmp_path) -> Path:
    """A folder of photographs in two classes, of several sizes and kinds."""
    source = np.random.default_rng(0)
    for label, color in (("cat", (220, 60, 20)), ("dög & co", (20, 60, 220))):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for number in range(20):
            image = drawing(40 + number, 60)
            image.paste(color, (*source.integers(0, 15, 2).tolist(), 34, 48))
            image.save(tmp_path / "pets" / label / f"{number}{('.jpg', '.png', '.webp')[number % 3]}")
    return tmp_path / "pets"


def test_it_writes_a_model_that_any_project_can_open_and_says_where(home, artifacts):
    names = {path.name for path in artifacts.iterdir()}
    assert names == {
        *("model.pt", "model.json", "history.csv", "report.html", "samples"),
        *("model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.torchscript.pt", "model.pt2", "export.json"),
    }
    state = torch.load(artifacts / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    spec = ModelSpec.from_json((artifacts / "model.json").read_text(), "model.json")
    said = (home / "trained.txt").read_text()
    metrics = spec.metrics
    assert re.fullmatch(
        rf"{metrics.accuracy:.2%} right on 359 held-out images, calibration error {metrics.calibration_error:.2%} "
        r"\(\d+\.\d\d% before the temperature\); artifacts/model.pt, artifacts/report.html; "
        r"next: clf-export --format onnx\n",
        said,
    )


def test_the_embedded_digits_reach_what_is_promised(artifacts):
    spec = ModelSpec.from_json((artifacts / "model.json").read_text(), "model.json")
    assert spec.metrics.accuracy >= 0.975
    assert spec.metrics.images == 359
    assert spec.metrics.calibration_error < 0.05


def test_the_accuracy_in_the_spec_is_that_of_the_state_dict(artifacts):
    from clf_train.config import TrainConfig, load_dataset
    from clf_train.data.cache import ArrayPixels
    from clf_train.engine.evaluate import compute_logits

    model = saved.load(artifacts)
    test = load_dataset(TrainConfig()).test
    pixels = ArrayPixels(test.decoded(model.spec.preprocess))
    logits = compute_logits(model.model, pixels, model.spec.normalize, torch.device("cpu"))
    assert float((logits.argmax(1) == test.targets).mean()) == model.spec.metrics.accuracy


def test_sixteen_samples_are_held_out_images_of_every_class(samples):
    assert len(samples) == 16
    assert {path.name.partition("-")[0] for path in samples} == set("0123456789")
    for path in samples:
        with Image.open(path) as image:
            assert image.size == (8, 8)


def test_training_twice_gives_the_same_state_dict(command, artifacts, tmp_path):
    again = command("clf-train", "-a", "again")
    assert again.code == 0
    assert (tmp_path / "again" / "model.pt").read_bytes() == (artifacts / "model.pt").read_bytes()


def test_without_a_terminal_progress_is_a_plain_line_per_epoch(command, tmp_path):
    done = command("clf-train", "--epochs", 2, "--seed", 3)
    lines = done.err.splitlines()
    assert lines[0].startswith(
        "small-resnet (chosen for images of 8 pixels) on digits: 1,295 images to train on, 143 for validation, "
    )
    assert [line.split(":")[0] for line in lines[1:]] == ["epoch 1/2", "epoch 2/2"]
    assert "\r" not in done.err


def test_an_epoch_that_ends_with_a_line_is_told_at_that_lines_speed(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_SECONDS_BETWEEN_LINES", 0)
    with cli.Progress() as progress:
        progress.trainer("an order", epochs=2, images=200, done=0)
        progress.stepped(100)
        progress.epoch(Epoch(1, 0.1, 1.0, 0.5, None, None, 1.0))
    speeds = re.findall(r"([\d,]+) images/s", capsys.readouterr().err)
    assert len(speeds) == 2
    assert speeds[0] == speeds[1] != "0"


def test_a_folder_of_photographs_becomes_a_model(command, pets, tmp_path):
    done = command("clf-train", "--data", "pets", "-a", "mine", "--epochs", 12)
    assert done.code == 0, done.err
    assert done.out.endswith("next: clf-export -a mine --format onnx\n")
    spec = ModelSpec.from_json((tmp_path / "mine/model.json").read_text(), "")
    assert spec.labels == ("cat", "dög & co")
    assert (spec.preprocess.color, spec.preprocess.shape) == ("RGB", (48, 48, 3))
    assert spec.metrics.accuracy >= 0.75
    assert spec.provenance.data == "pets"
    names = {path.name for path in (tmp_path / "mine/samples").iterdir()}
    assert {"cat-1.png", "dög-co-1.png"} <= names
    assert "dög &amp; co" in (tmp_path / "mine/report.html").read_text()


def test_a_image_that_is_held_out_and_trained_on_is_told(command, pets, tmp_path):
    for number in range(12):
        shutil.copy(pets / "cat" / "0.jpg", pets / "cat" / f"copy-{number}.jpg")
    done = command("clf-train", "-d", "pets", "--epochs", 1)
    assert done.code == 0
    assert "held-out images are among those trained on too (cat/" in done.err


def test_size_colour_and_fit_are_taken_as_asked(command, pets, tmp_path):
    done = command("clf-train", "-d", pets, "--size", "24x16", "--color", "L", "--resize", "pad", "--epochs", 1)
    assert done.code == 0, done.err
    preprocess = json.loads((tmp_path / "artifacts/model.json").read_text())["preprocess"]
    assert (
        preprocess["height"],
        preprocess["width"],
        preprocess["color"],
        preprocess["fit"],
        preprocess["background"],
    ) == (24, 16, "L", "pad", [255])


def test_models_can_be_listed(command):
    assert command("clf-train", "--list-models").out.startswith("tiny-convnet\t")


def test_a_finished_model_is_not_overwritten(command, finished):
    before = content_of(finished)
    done = command("clf-train")
    assert done.code == 3
    assert done.error == (
        "clf-train: artifacts: has a finished model; --overwrite replaces it, -a names another folder"
    )
    assert content_of(finished) == before


def test_overwriting_leaves_no_export_of_the_former_model(command, finished):
    done = command("clf-train", "--overwrite", "--epochs", 1)
    assert done.code == 0
    assert {path.name for path in finished.iterdir()} == {
        *("model.pt", "model.json", "history.csv", "report.html", "samples")
    }


def test_ctrl_c_loses_nothing_and_says_how_to_go_on(finished, tmp_path):
    before = content_of(finished)
    arguments = [BIN / "clf-train", "--overwrite", "--epochs", "100000"]
    with subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert any("epoch 2/" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130
    assert re.fullmatch(
        r"clf-train: interrupted; --resume goes on from here, with \d+% of the training done", rest.splitlines()[-1]
    )
    assert "Traceback" not in rest
    after = content_of(finished)
    assert {name: after.pop(name) for name in before} == before
    assert set(after) <= {"checkpoint.pt", "checkpoint.previous.pt"}


def test_at_a_terminal_there_is_a_bar_and_the_key_for_ctrl_c_works(tmp_path):
    process, terminal = os.forkpty()
    if process == 0:
        os.chdir(tmp_path)
        os.execv(BIN / "clf-train", ["clf-train", "--epochs", "100000"])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    seen = b""
    while b"epoch 2/" not in seen:
        seen += os.read(terminal, 1 << 16)
    assert b"\r" in seen
    assert b"images/s" in seen
    os.write(terminal, b"\x03")
    with contextlib.suppress(OSError):  # Linux's way of saying that the other end is closed
        while piece := os.read(terminal, 1 << 16):
            seen += piece
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 130
    assert b"clf-train: interrupted" in seen
    assert b"Traceback" not in seen


def test_being_terminated_leaves_nothing_behind_but_what_to_go_on_from(tmp_path):
    with subprocess.Popen([BIN / "clf-train", "--epochs", "100000"], cwd=tmp_path, stderr=subprocess.PIPE) as process:
        assert any(b"epoch 3/" in line for line in iter(process.stderr.readline, b""))
        process.terminate()
        assert process.wait(60) == 143
    assert {path.name for path in (tmp_path / "artifacts").iterdir()} <= {"checkpoint.pt", "checkpoint.previous.pt"}


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(command, tmp_path, no_root):
    (tmp_path / "artifacts").mkdir(mode=0o555)
    done = command("clf-train", prefix=no_root)
    assert done.code == 4
    assert done.error.startswith("clf-train: artifacts/.staging.")
    assert "permission denied; what was there before is still there" in done.error


def test_a_file_where_the_folder_should_be_is_told(command, tmp_path):
    (tmp_path / "artifacts").write_text("mine")
    done = command("clf-train")
    assert done.code == 4
    assert done.error == (
        "clf-train: artifacts: it is a file; expected a folder, or nothing yet; what was there before is still there"
    )
    assert (tmp_path / "artifacts").read_text() == "mine"


def test_without_space_nothing_is_lost_and_nothing_half_is_left(command, finished):
    before = content_of(finished)
    done = command("clf-train", "--overwrite", "--epochs", 1, prefix=("prlimit", "--fsize=100000"))
    assert done.code == 4
    assert "clf-train: artifacts/checkpoint.pt: file too large; what was there before is still there" in done.err
    assert "Traceback" not in done.err
    assert content_of(finished) == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--data", "none"), 3, "none: no such folder, and no data set of this name"),
        (("--data", "empty"), 3, "empty: it is empty; expected a folder of images for each class"),
        (("--device", "cuda"), 4, "--device cuda: "),
    ],
)
def test_what_cannot_be_trained_is_one_line(command, tmp_path, arguments, code, said):
    (tmp_path / "empty").mkdir()
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    done = command("clf-train", *arguments)
    assert done.code == code
    assert said in done.error
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("size", ["7", "axb", "16x16x16", "99999"])
def test_a_size_that_is_none_is_wrong_usage(command, size):
    done = command("clf-train", "--size", size)
    assert done.code == 2
    assert "expected like 32 or 32x48" in done.err


def test_a_package_that_is_missing_is_named_with_what_brings_it(tmp_path):
    import sys

    code = "import sys; sys.modules['torch'] = None; from clf_train.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 4
    assert done.stderr.strip() == 'clf-train: torch is not installed; pip install "clf-edge[train]"'
