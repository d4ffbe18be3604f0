"""Under torchrun the same command trains on all processes: exact figures, one writer, nothing lost with a worker."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import BIN

from clf_runtime.errors import DataError
from clf_runtime.spec import Normalize
from clf_train.config import TrainConfig, load_dataset
from clf_train.data.cache import ArrayPixels, full_shard
from clf_train.distributed import ProcessGroup
from clf_train.engine.evaluate import compute_logits
from clf_train.engine.trainer import Trainer
from clf_train.models import saved
from clf_train.models.networks import LeNet
from clf_train.recipe import Recipe

TORCHRUN = [BIN / "torchrun", "--standalone", "--no-python", "--nproc-per-node", "2"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo and /proc are asked for")


def torchrun(folder: Path, *options: object, restarts: int = 0) -> subprocess.Popen:
    arguments = [*TORCHRUN, "--max-restarts", restarts, BIN / "clf-train", *options]
    return subprocess.Popen(
        list(map(str, arguments)),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def lines_of(stderr: str) -> list[str]:
    """Leave out what torchrun itself says."""
    return [line for line in stderr.splitlines() if line.startswith(("epoch", "note", "clf-train", "lenet", "plain"))]


def history(folder: Path) -> list[dict[str, float]]:
    with (folder / "artifacts/history.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_two_processes_see_every_image_once_and_their_figures_are_exact(tmp_path, command):
    # A rate of nothing: the weights stay, and each figure is a sum over the same images, varied the same way.
    options = (
        "--model",
        "plain-conv2-mlp",
        "--epochs",
        2,
        "--learning-rate",
        "1e-12",
        "--size",
        "28",
        "--checkpoint-every",
        0,
    )
    (tmp_path / "alone").mkdir()
    assert command("clf-train", *options, cwd=tmp_path / "alone").code == 0
    with torchrun(tmp_path, *options) as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 1
    assert len(lines_of(err)) == 3
    assert "on cpu, 2 processes" in err
    together, alone = history(tmp_path), history(tmp_path / "alone")
    for ours, expected in zip(together, alone, strict=True):
        assert ours["train_accuracy"] == expected["train_accuracy"]
        assert ours["validation_accuracy"] == expected["validation_accuracy"]
        assert ours["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-6)
    model = saved.load(tmp_path / "artifacts")
    test = load_dataset(TrainConfig()).test
    pixels = ArrayPixels(test.decoded(model.spec.preprocess))
    logits = compute_logits(model.model, pixels, model.spec.normalize, torch.device("cpu"))
    assert float((logits.argmax(1) == test.targets).mean()) == model.spec.metrics.accuracy
    assert model.spec.metrics.images == len(test)


def test_a_killed_worker_costs_an_interval_and_torchrun_starts_all_of_them_again(tmp_path):
    with torchrun(tmp_path, "--epochs", 12, restarts=1) as process:
        assert any("epoch 3/" in line for line in process.stderr)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        rest = process.stderr.read()
        assert process.wait(200) == 0, rest
    assert "note: going on with " in rest
    assert "epoch 12/12" in rest
    assert [row["epoch"] for row in history(tmp_path)] == list(range(1, 13))
    assert not list((tmp_path / "artifacts").glob("*checkpoint*"))


def test_a_folder_is_shared_out_and_its_faults_are_told_once(tmp_path):
    from awkward import drawing

    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(20):
            drawing(20 + number, 20).save(tmp_path / "data" / label / f"{number:02}.png")
    for name in ("a/03.png", "b/04.png"):
        (tmp_path / "data" / name).write_text("not an image")
    options = ("--data", "data", "--epochs", 1)
    with torchrun(tmp_path, *options) as process:
        _, err = process.communicate(timeout=200)
    assert process.returncode != 0
    assert err.count("2 of 40 images cannot be read") == 1
    with torchrun(tmp_path, *options, "--skip-unreadable") as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "right on 8 held-out images" in out or "right on 7 held-out images" in out
    listed = (tmp_path / "artifacts/unreadable.csv").read_text()
    assert "data/a/03.png,not-an-image," in listed
    assert "data/b/04.png,not-an-image," in listed


def test_too_few_images_for_the_processes_are_told(monkeypatch):
    monkeypatch.setattr(ProcessGroup, "all_gather", lambda self, value: [value, 0])
    monkeypatch.setattr(ProcessGroup, "wrap_ddp", lambda self, model: model)
    part = full_shard(torch.zeros((2, 32, 32, 3), dtype=torch.uint8).numpy(), torch.arange(2).numpy())
    with pytest.raises(DataError, match="2 images in batches of 2 are too few for 2 processes; start fewer"):
        Trainer(
            LeNet((32, 32, 3), 2), part, part, Recipe(1, 2, 0.1), Normalize((0.5,) * 3, (0.5,) * 3),
            seed=0, device=torch.device("cpu"), group=ProcessGroup(0, 2),
        )  # fmt: skip
