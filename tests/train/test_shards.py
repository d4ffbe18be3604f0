"""Training on tar shards and Parquet files: each image once per epoch, in sequential reads, resumed bit for bit."""

from __future__ import annotations

import copy
import csv
import io
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from conftest import BIN, Zygote, run_command
from pyarrow import parquet
from shard_files import LABELS, draw_png, write_parquet, write_tar

from clf_runtime.labeled.shards import ShardIndex
from clf_runtime.spec import Normalize, Preprocess
from clf_train.config import DataSource, load_dataset
from clf_train.data import blocks
from clf_train.data.augment import draw_epoch
from clf_train.data.blocks import Blocks
from clf_train.data.cache import PixelCache
from clf_train.data.dataset import FileImageSet
from clf_train.data.loading import LoadedDataset, decode_dataset
from clf_train.engine.batches import BatchLoader
from clf_train.engine.trainer import Trainer, TrainerOptions
from clf_train.models.networks import small_resnet
from clf_train.recipe import Recipe

PREPROCESS = Preprocess("RGB", 8, 8, "crop", 1.0, "bilinear", (255, 255, 255))


def write_shards(folder: Path, kind: str = "tar") -> Path:
    """Write three uneven training shards and a test shard."""
    write = write_tar if kind == "tar" else write_parquet
    for name, numbers in (
        ("train-0", range(50)),
        ("train-1", range(50, 60)),
        ("train-2", range(60, 123)),
        ("test-0", range(200, 230)),
    ):
        write(folder / f"{name}.{kind}", numbers)
    (folder / "classes.txt").write_text("\n".join(LABELS))
    return folder


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    """Windows that are smaller than the test data."""
    monkeypatch.setattr(blocks, "_WINDOW_BYTES", 2000)
    monkeypatch.setattr(blocks, "_MIN_BLOCKS", 2)


def draw_blocks(images: int, per_block: int) -> Blocks:
    sizes = np.random.default_rng(0).integers(50, 150, images)
    return Blocks(np.arange(images) // per_block, sizes)


def test_an_order_has_every_image_once_and_holds_at_most_a_window(small_blocks):
    layout = draw_blocks(1000, 7)
    order, draws = draw_epoch(0, 1, 1000, layout)
    again, plain = draw_epoch(0, 1, 1000, layout)[0], draw_epoch(0, 1, 1000)
    assert sorted(order.tolist()) == list(range(1000))
    assert torch.equal(order, again)
    assert torch.equal(draws, plain[1])  # what happens to an image does not depend on where it is
    assert not torch.equal(order, draw_epoch(0, 2, 1000, layout)[0])
    assert not torch.equal(order, draw_epoch(1, 1, 1000, layout)[0])
    held, read, largest = 0, set(), 0
    for image in order.tolist():
        block = layout.block_of[image]
        if block not in read:
            read.add(block)
            held += layout.sizes[layout.block_of == block].sum()
        held -= layout.sizes[image]
        largest = max(largest, held)
    assert held == 0
    assert largest <= 2000 + 7 * 150


def test_neighbors_are_far_apart_in_an_order(small_blocks):
    order = draw_epoch(0, 1, 1000, draw_blocks(1000, 7))[0].tolist()
    together = sum(abs(one - other) == 1 for one, other in itertools.pairwise(order))
    assert together < 100  # 857 without the window


def test_what_fits_into_a_window_is_a_plain_permutation():
    layout = draw_blocks(300, 7)
    assert torch.equal(draw_epoch(3, 1, 300, layout)[0], draw_epoch(3, 1, 300)[0])
    assert draw_epoch(0, 1, 0, draw_blocks(0, 1))[0].tolist() == []


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_processes_share_whole_blocks_and_every_image_once(size):
    layout = draw_blocks(100, 9)
    shares = [layout.share(rank, size) for rank in range(size)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(100))
    assert {len(share) for share in shares} <= {100 // size, 100 // size + 1}
    readers = [sum(block in layout.block_of[share] for share in shares) for block in range(12)]
    assert sum(readers) <= 12 + size - 1


def load(folder: Path, tmp_path: Path, kind: str = "none") -> LoadedDataset:
    return decode_dataset(load_dataset(DataSource(str(folder))), PREPROCESS, PixelCache(kind, tmp_path))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_an_epoch_reads_each_block_once(tmp_path, monkeypatch, small_blocks, kind):
    reads = []
    read_block = ShardIndex.read_block
    monkeypatch.setattr(ShardIndex, "read_block", lambda self, rows: reads.append(rows) or read_block(self, rows))
    loaded = load(write_shards(tmp_path / "s", kind), tmp_path)
    in_index_order = sorted(reads)
    assert sorted(itertools.chain(*reads)) == list(range(30 + 123))
    if kind == "parquet":
        assert max(map(len, reads)) == 7
    reads.clear()
    loader = BatchLoader(loaded.train, 5, 0, torch.device("cpu"))
    seen = torch.cat([batch.pixels for batch in loader.load_epoch(0)])
    assert len(seen) == len(loaded.train) == len(loaded.dataset.train)
    of_training = set(itertools.chain(*reads))
    assert len(of_training) == sum(map(len, reads)) == len(loaded.train)
    assert all(any(set(rows) <= set(block) for block in in_index_order) for rows in reads)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_batches_have_the_images_that_the_order_names(tmp_path, small_blocks, kind):
    folder = write_shards(tmp_path / "s", kind)
    lazy, kept = load(folder, tmp_path), load(folder, tmp_path, "memory")
    batches = [list(BatchLoader(x.train, 6, 0, torch.device("cpu")).load_epoch(1, 2)) for x in (lazy, kept)]
    assert len(batches[0]) == 4
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.draws, other.draws)
    assert lazy.dataset.test.fingerprint() == kept.dataset.test.fingerprint()


def test_tar_shards_and_parquet_files_of_the_same_images_are_the_same_data(tmp_path):
    tar, table = (load_dataset(DataSource(str(write_shards(tmp_path / kind, kind)))) for kind in ("tar", "parquet"))
    assert tar.labels == table.labels == LABELS
    assert tar.test.fingerprint() == table.test.fingerprint()
    assert tar.test.names[0] == "test-0.tar/0200.png"
    assert table.test.names[0] == "test-0.parquet/000000/0200.png"
    assert isinstance(tar.test, FileImageSet)
    assert tar.test.path(0) == f"{tmp_path / 'tar/test-0.tar'}/0200.png"
    assert tar.test.encode(0) == table.test.encode(0) == draw_png(200)


def create_trainer(loaded: LoadedDataset) -> Trainer:
    torch.manual_seed(0)
    recipe = Recipe(epochs=2, batch_size=20, learning_rate=0.1, rotation=5, shift=0.1)
    options = TrainerOptions(recipe, Normalize((0.5,) * 3, (0.5,) * 3), 0, torch.device("cpu"))
    return Trainer(small_resnet((8, 8, 3), 3, width=8), loaded.train, loaded.validation, options)


def test_training_resumes_bit_for_bit_after_any_step_of_an_epoch_in_blocks(tmp_path, small_blocks):
    loaded = load(write_shards(tmp_path / "s"), tmp_path)
    assert loaded.train.blocks is not None
    trainer, states = create_trainer(loaded), []
    while not trainer.is_done:
        states.append(copy.deepcopy(trainer.state()))
        trainer.step()
    expected = trainer.state()["model"]
    for step in (0, 1, 4, 6, 9):
        resumed = create_trainer(loaded)
        resumed.restore(states[step])
        while not resumed.is_done:
            resumed.step()
        assert all(torch.equal(value, resumed.state()["model"][name]) for name, value in expected.items()), step


OPTIONS = ("--data", "../s", "--model", "tiny-convnet", "--epochs", "2", "--batch-size", "32", "--cache", "none")


def test_training_that_was_killed_ends_in_the_same_weights(tmp_path):
    write_shards(tmp_path / "s", "parquet")
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    options = (*OPTIONS, "--checkpoint-every", "0")
    done = run_command("clf-train", *options, cwd=tmp_path / "whole")
    assert done.code == 0, done.err
    command = [str(BIN / "clf-train"), *options]
    assert Zygote.shared().run(command, tmp_path / "killed", dict(os.environ), kill_at=14).code == -9
    done = run_command("clf-train", *options, "--resume", cwd=tmp_path / "killed")
    assert done.code == 0, done.err
    assert "resuming with " in done.err
    weights = [(tmp_path / name / "artifacts/model.pt").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_the_same_shards_serve_evaluation_and_export(tmp_path, command):
    folder = write_shards(tmp_path / "s")
    (tmp_path / "work").mkdir()
    done = command("clf-train", *OPTIONS, cwd=tmp_path / "work")
    assert done.code == 0, done.err
    assert "on 30 test images" in done.out
    history = (tmp_path / "work/artifacts/history.csv").read_text()
    assert len(list(csv.DictReader(io.StringIO(history)))) == 2
    assert "test-0.tar/02" in (tmp_path / "work/artifacts/images.html").read_text()
    done = command("clf-export", "--format", "onnx", cwd=tmp_path / "work")
    assert done.code == 0, done.err
    done = command("clf-eval", "artifacts/model.onnx", "--data", "../s", "--format", "json", cwd=tmp_path / "work")
    assert done.code == 0, done.err
    assert json.loads(done.out)["models"][0]["images"] == 30
    (folder / "train-1.tar").write_bytes((folder / "train-1.tar").read_bytes()[:3000])
    done = command("clf-train", *OPTIONS, "--overwrite", cwd=tmp_path / "work")
    assert (done.code, len(done.err.splitlines())) == (3, 1)
    assert (
        "train-1.tar: the archive is damaged (it ends at byte 3,000 without an end mark); copy or pack it again"
        in done.err
    )


def test_unreadable_samples_are_listed_and_left_out_on_request(tmp_path, command):
    write_parquet(tmp_path / "s/train-0.parquet", range(60))
    table = parquet.read_table(tmp_path / "s/train-0.parquet")
    images = table.column("image").to_pylist()
    images[3]["bytes"], images[40]["bytes"] = None, b"not an image"
    parquet.write_table(table.set_column(0, "image", pyarrow.array(images)), tmp_path / "s/train-0.parquet")
    (tmp_path / "work").mkdir()
    done = command("clf-train", *OPTIONS, cwd=tmp_path / "work")
    assert done.code == 3
    assert "2 of 60 images cannot be read: " in done.err.splitlines()[-1]
    done = command("clf-train", *OPTIONS, "--skip-unreadable", cwd=tmp_path / "work")
    assert done.code == 0, done.err
    rows = (tmp_path / "work/artifacts/unreadable.csv").read_text()
    assert "../s/train-0.parquet/000003/0003.png,empty,the file has zero bytes" in rows
    assert "../s/train-0.parquet/000040/0040.png,not-an-image," in rows
