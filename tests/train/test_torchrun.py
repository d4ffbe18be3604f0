"""Training on several processes: exact metrics, one writer, and nothing is lost with a process.

Most tests start the processes as torchrun does, through the environment alone; one uses torchrun itself.
"""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import BIN, CommandResult, Zygote
from odd_images import drawing
from shard_files import write_tar

from clf_train.config import DataSource, load_dataset
from clf_train.data.cache import ArrayPixels
from clf_train.engine.evaluate import compute_logits
from clf_train.models.saved import load_saved_model

TORCHRUN = [BIN / "torchrun", "--standalone", "--no-python", "--nproc-per-node", "2"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs gloo and /proc")

TrainOnTwo = Callable[..., tuple[CommandResult, CommandResult]]


@pytest.fixture(scope="module")
def second_zygote() -> Iterator[Zygote]:
    """A process that forks the process of rank 1, while the shared one runs rank 0."""
    zygote = Zygote()
    yield zygote
    zygote._process.kill()
    zygote._process.communicate()


@pytest.fixture
def train_on_two(tmp_path, second_zygote) -> TrainOnTwo:
    """Run clf-train in two processes that train together; return how both ended."""

    def run(*options: object) -> tuple[CommandResult, CommandResult]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [str(BIN / "clf-train"), *map(str, options)]
        group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environments = [os.environ | group | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
        with ThreadPoolExecutor() as threads:
            futures = [
                threads.submit(zygote.run, command, tmp_path, environment)
                for zygote, environment in zip((Zygote.shared(), second_zygote), environments, strict=True)
            ]
            first, second = (future.result() for future in futures)
        return first, second

    return run


def read_history(folder: Path) -> list[dict[str, float]]:
    with (folder / "artifacts/history.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_two_processes_see_every_image_once_and_their_metrics_are_exact(tmp_path, command, train_on_two):
    # With this rate the weights do not change, and each metric is a sum over the same images, augmented the same way.
    options = ("--model", "plain-conv2-mlp", "--epochs", 2, "--learning-rate", "1e-12", "--checkpoint-every", 0)
    (tmp_path / "alone").mkdir()
    assert command("clf-train", *options, cwd=tmp_path / "alone").code == 0
    first, second = train_on_two(*options)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert len(first.out.splitlines()) == 2
    assert len(first.err.splitlines()) == 4
    assert "on cpu, 2 processes" in first.err
    assert (second.out, second.err) == ("", "")
    for row, expected in zip(read_history(tmp_path), read_history(tmp_path / "alone"), strict=True):
        assert row["train_accuracy"] == expected["train_accuracy"]
        assert row["validation_accuracy"] == expected["validation_accuracy"]
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-6)
    saved = load_saved_model(tmp_path / "artifacts")
    test = load_dataset(DataSource("digits")).test
    pixels = ArrayPixels(test.decode(saved.spec.preprocess))
    logits = compute_logits(saved.model, pixels, saved.spec.normalize, torch.device("cpu"))
    assert float((logits.argmax(1) == test.targets).mean()) == saved.spec.metrics.accuracy
    assert saved.spec.metrics.images == len(test)


def test_two_processes_share_shards_and_see_every_image_once(tmp_path, command, train_on_two):
    for name, numbers in (("train-0", range(41)), ("train-1", range(41, 60)), ("test-0", range(60, 73))):
        write_tar(tmp_path / f"s/{name}.tar", numbers)
    options = ("--data", tmp_path / "s", "--model", "plain-conv2-mlp", "--epochs", 1, "--learning-rate", "1e-12")
    options = (*options, "--batch-size", 16, "--cache", "none")
    (tmp_path / "alone").mkdir()
    assert command("clf-train", *options, cwd=tmp_path / "alone").code == 0
    first, second = train_on_two(*options)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    (row,), (expected,) = read_history(tmp_path), read_history(tmp_path / "alone")
    assert row["train_accuracy"] == expected["train_accuracy"]
    assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-6)
    assert load_saved_model(tmp_path / "artifacts").spec.metrics.images == 13


@pytest.mark.slow
def test_after_a_process_is_killed_torchrun_restarts_all_and_they_resume_from_the_checkpoint(tmp_path):
    options = ("--model", "tiny-convnet", "--epochs", "6")
    arguments = [*TORCHRUN, "--max-restarts", "1", BIN / "clf-train", *options]
    process = subprocess.Popen(
        [str(argument) for argument in arguments],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    with process:
        assert any("epoch 2/" in line for line in process.stderr)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        rest = process.stderr.read()
        assert process.wait(200) == 0, rest
    assert "resuming with " in rest
    assert "epoch 6/6" in rest
    assert [row["epoch"] for row in read_history(tmp_path)] == list(range(1, 7))
    assert not list((tmp_path / "artifacts").glob("*checkpoint*"))


def test_processes_share_a_folder_and_list_its_unreadable_images_once(tmp_path, train_on_two):
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(20):
            drawing(20 + number, 20).save(tmp_path / "data" / label / f"{number:02}.png")
    for name in ("a/03.png", "b/04.png"):
        (tmp_path / "data" / name).write_text("not an image")
    options = ("--data", "data", "--epochs", 1)
    first, second = train_on_two(*options)
    assert (first.code, second.code) == (3, 3)
    assert "2 of 40 images cannot be read" in first.error
    assert second.err == ""
    first, second = train_on_two(*options, "--skip-unreadable")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "on 8 test images" in first.out or "on 7 test images" in first.out
    rows = (tmp_path / "artifacts/unreadable.csv").read_text()
    assert "data/a/03.png,not-an-image," in rows
    assert "data/b/04.png,not-an-image," in rows


def test_too_few_images_for_the_processes_are_an_error(tmp_path, train_on_two):
    # One image of each class is in the test split, so the processes have two training images and one.
    for label, count in (("a", 3), ("b", 2)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(count):
            drawing(20, 20).save(tmp_path / "data" / label / f"{number}.png")
    first, second = train_on_two("--data", "data", "--batch-size", 2)
    assert (first.code, second.code) == (3, 3), first.err + second.err
    assert "3 images in batches of 2 are too few for 2 processes; start fewer, or use a --batch-size" in first.err
    assert second.err == ""
    assert not (tmp_path / "artifacts").exists()
