"""`clf-train` as a process: what it writes and prints, and that it loses nothing when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import BIN
from odd_images import drawing
from PIL import Image

from clf_runtime.spec import ModelSpec
from clf_train import progress
from clf_train.models.saved import load_saved_model


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def finished(artifacts, tmp_path) -> Path:
    """A copy of a finished artifacts folder."""
    return Path(shutil.copytree(artifacts, tmp_path / "artifacts"))


@pytest.fixture
def pets(tmp_path) -> Path:
    """A folder of images in two classes, of several sizes and formats."""
    random = np.random.default_rng(0)
    for label, color in (("cat", (220, 60, 20)), ("dög & co", (20, 60, 220))):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for number in range(20):
            image = drawing(40 + number, 60)
            image.paste(color, (*random.integers(0, 15, 2).tolist(), 34, 48))
            image.save(tmp_path / "pets" / label / f"{number}{('.jpg', '.png', '.webp')[number % 3]}")
    return tmp_path / "pets"


def test_it_writes_a_model_that_torch_alone_can_open_and_prints_where(home, artifacts):
    names = {path.name for path in artifacts.iterdir()}
    assert names == {
        *("model.pt", "model.json", "history.csv", "report.html", "images.html", "samples"),
        *("model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.torchscript.pt", "model.pt2", "export.json"),
    }
    state = torch.load(artifacts / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    spec = ModelSpec.from_json((artifacts / "model.json").read_text(), "model.json")
    printed = (home / "trained.txt").read_text()
    metrics = spec.metrics
    assert re.fullmatch(
        r"wrote artifacts/model.pt, artifacts/report.html; "
        rf"calibration error {100 * metrics.calibration_error:.2f} % \(\d+\.\d\d % before temperature scaling\)\n"
        rf"accuracy {100 * metrics.accuracy:.1f} % \(95 % interval \d\d\.\d to \d+\.\d %\) on 359 test images, "
        r"about [\d.]+ ms per image when exported; next: clf-export --format onnx\n",
        printed,
    )


def test_the_digits_reach_the_promised_accuracy(artifacts):
    spec = ModelSpec.from_json((artifacts / "model.json").read_text(), "model.json")
    assert spec.metrics.accuracy >= 0.975
    assert spec.metrics.images == 359
    assert spec.metrics.calibration_error < 0.05


def test_the_accuracy_in_the_spec_is_that_of_the_state_dict(artifacts):
    from clf_train.config import DataSource, load_dataset
    from clf_train.data.cache import ArrayPixels
    from clf_train.engine.evaluate import compute_logits

    saved = load_saved_model(artifacts)
    test = load_dataset(DataSource("digits")).test
    pixels = ArrayPixels(test.decode(saved.spec.preprocess))
    logits = compute_logits(saved.model, pixels, saved.spec.normalize, torch.device("cpu"))
    assert float((logits.argmax(1) == test.targets).mean()) == saved.spec.metrics.accuracy


def test_sixteen_samples_are_test_images_of_every_class(samples):
    assert len(samples) == 16
    assert {path.name.partition("-")[0] for path in samples} == set("0123456789")
    for path in samples:
        with Image.open(path) as image:
            assert image.size == (8, 8)


def test_training_twice_ends_in_the_same_state_dict(command, tmp_path):
    for folder in ("first", "second"):
        assert command("clf-train", "--epochs", 2, "-a", folder).code == 0
    assert (tmp_path / "first/model.pt").read_bytes() == (tmp_path / "second/model.pt").read_bytes()


def test_without_a_terminal_progress_is_one_plain_line_per_epoch(command, tmp_path):
    done = command("clf-train", "--epochs", 2, "--seed", 3)
    lines = done.err.splitlines()
    assert lines[0] == (
        "small-resnet (chosen for 8-pixel images) on digits: 1,295 training, 143 validation and 359 test images, "
        "10 classes, 8x8 L, on cpu"
    )
    assert [line.split(":")[0] for line in lines[1:]] == ["training 2 epochs", "epoch 1/2", "epoch 2/2"]
    assert "\r" not in done.err


def test_the_speed_is_that_of_the_training_so_far(monkeypatch, capsys):
    """Not since the last line: an epoch that ends soon after one has seen few images and validated meanwhile."""
    clock = iter([0.0, 10.0, 10.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    throughput = progress.Throughput(200, 0)
    throughput.images_done = 90
    assert throughput.report() == "9 images/s, 12 s left"
    throughput.images_done = 100
    assert throughput.report() == "10 images/s, 10 s left"


def test_a_folder_of_images_becomes_a_model(command, pets, tmp_path):
    done = command("clf-train", "--data", "pets", "--weights", "none", "-a", "mine", "--epochs", 12)
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


def test_a_test_image_that_is_a_training_image_too_causes_a_warning(command, pets, tmp_path):
    for number in range(12):
        shutil.copy(pets / "cat" / "0.jpg", pets / "cat" / f"copy-{number}.jpg")
    done = command("clf-train", "-d", "pets", "--weights", "none", "--epochs", 1)
    assert done.code == 0
    assert "test images are training images too (the first is cat/" in done.err
    assert "test images are training images too" in (tmp_path / "artifacts/report.html").read_text()


def test_size_color_and_resize_mode_can_be_chosen(command, pets, tmp_path):
    done = command(
        "clf-train",
        "-d",
        pets,
        "--weights",
        "none",
        "--size",
        "24x16",
        "--color",
        "L",
        "--resize",
        "pad",
        "--epochs",
        1,
    )
    assert done.code == 0, done.err
    preprocess = json.loads((tmp_path / "artifacts/model.json").read_text())["preprocess"]
    assert (
        preprocess["height"],
        preprocess["width"],
        preprocess["color"],
        preprocess["resize"],
        preprocess["background"],
    ) == (24, 16, "L", "pad", [255])


def test_models_can_be_listed(command):
    assert command("clf-train", "--list-models").out.startswith("tiny-convnet\t")


def test_a_finished_model_is_only_replaced_with_overwrite(command, finished):
    before = read_files(finished)
    done = command("clf-train")
    assert done.code == 3
    assert done.error == (
        "clf-train: artifacts: has a finished model; --overwrite replaces it, -a names another folder"
    )
    assert read_files(finished) == before


def test_overwriting_removes_the_exports_of_the_previous_model(command, finished):
    done = command("clf-train", "--overwrite", "--epochs", 1)
    assert done.code == 0
    assert {path.name for path in finished.iterdir()} == {
        *("model.pt", "model.json", "history.csv", "report.html", "images.html", "samples")
    }


def test_ctrl_c_saves_a_checkpoint_and_prints_how_to_continue(finished, tmp_path):
    before = read_files(finished)
    arguments = [BIN / "clf-train", "--overwrite", "--epochs", "100000"]
    with subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert any("epoch 2/" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130
    assert re.fullmatch(
        r"clf-train: interrupted; \d+ % of the training is saved; --resume continues it", rest.splitlines()[-1]
    )
    assert "Traceback" not in rest
    after = read_files(finished)
    assert {name: after.pop(name) for name in before} == before
    assert set(after) <= {"checkpoint.pt", "checkpoint.previous.pt"}


def test_a_terminal_shows_a_progress_bar_and_ctrl_c_works(tmp_path):
    fcntl, termios = map(pytest.importorskip, ("fcntl", "termios"))
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
    with contextlib.suppress(OSError):  # Linux raises it when the other end is closed
        while piece := os.read(terminal, 1 << 16):
            seen += piece
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 130
    assert b"clf-train: interrupted" in seen
    assert b"Traceback" not in seen


def test_sigterm_leaves_nothing_but_checkpoints(tmp_path):
    with subprocess.Popen([BIN / "clf-train", "--epochs", "100000"], cwd=tmp_path, stderr=subprocess.PIPE) as process:
        assert any(b"epoch 3/" in line for line in iter(process.stderr.readline, b""))
        process.terminate()
        assert process.wait(60) == 143
    assert {path.name for path in (tmp_path / "artifacts").iterdir()} <= {"checkpoint.pt", "checkpoint.previous.pt"}


def test_a_folder_without_write_permission_is_reported_before_training(command, tmp_path, no_root):
    (tmp_path / "artifacts").mkdir(mode=0o555)
    done = command("clf-train", prefix=no_root)
    assert done.code == 4
    assert done.error.startswith("clf-train: artifacts/.lock: ")
    assert "permission denied; " in done.error


def test_a_file_in_place_of_the_folder_is_an_error(command, tmp_path):
    (tmp_path / "artifacts").write_text("mine")
    done = command("clf-train")
    assert done.code == 4
    assert done.error.startswith("clf-train: artifacts: ")
    assert "is a file; expected a folder" in done.error
    assert (tmp_path / "artifacts").read_text() == "mine"


def test_without_space_the_existing_model_stays_and_no_partial_file_is_left(command, finished):
    before = read_files(finished)
    done = command("clf-train", "--overwrite", "--epochs", 1, prefix=("prlimit", "--fsize=100000"))
    assert done.code == 4
    assert "clf-train: artifacts/checkpoint.pt: file too large, so this checkpoint is not written; " in done.err
    assert "Traceback" not in done.err
    assert read_files(finished) == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--data", "none"), 3, "none: no such folder, and no data set of this name"),
        (("--data", "empty"), 3, "empty: is empty; expected a folder of images for each class"),
        (("--device", "cuda"), 4, "--device cuda: "),
    ],
)
def test_every_error_is_one_line(command, tmp_path, arguments, code, message):
    (tmp_path / "empty").mkdir()
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    done = command("clf-train", *arguments)
    assert done.code == code
    assert message in done.error
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("size", ["7", "axb", "16x16x16", "99999"])
def test_an_invalid_size_is_a_usage_error(command, size):
    done = command("clf-train", "--size", size)
    assert done.code == 2
    assert "is not a size; expected 32 or 32x48" in done.err


def test_the_error_for_a_missing_package_names_the_extra_that_installs_it(tmp_path):
    code = "import sys; sys.modules['torch'] = None; from clf_train.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 4
    assert done.stderr.strip() == 'clf-train: torch is not installed; pip install "clf-edge[train]"'


def test_training_does_not_need_onnxruntime(tmp_path):
    """The extra [train] does not install it."""
    code = "import sys; sys.modules['onnxruntime'] = None; from clf_train.cli import main; main()"
    arguments = [sys.executable, "-c", code, "--epochs", "0.1", "--model", "tiny-convnet"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "artifacts/report.html").exists()
