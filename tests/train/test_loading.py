"""All images are decoded once, before the first epoch: unreadable ones are listed, and the cache suits the machine."""

from __future__ import annotations

import csv
import os
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_images import drawing

from clf_runtime.errors import DataError, MachineError
from clf_runtime.preprocess import pixels_from_image
from clf_runtime.spec import Preprocess
from clf_train.config import DataSource, TrainConfig
from clf_train.data import cache, decoding, folder
from clf_train.data.cache import LazyPixels, PixelCache, choose_cache
from clf_train.data.decoding import Decoder
from clf_train.data.loading import decode_dataset
from clf_train.distributed import SINGLE_PROCESS
from clf_train.inputs import Workplace, prepare_inputs
from clf_train.progress import Progress

PREPROCESS = Preprocess("RGB", 24, 24, "crop", 1.0, "bilinear", (255, 255, 255))


def draw_pets(root: Path, count: int = 12) -> Path:
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for number in range(count):
            # With few colors, unlike photos, which would get a pretrained network.
            drawing(30 + number % 20, 30).quantize(32).convert("RGB").save(root / label / f"{number:03}.png")
    return root


@pytest.mark.parametrize("kind", ["memory", "disk", "none"])
def test_the_pixels_are_those_that_a_device_sees_wherever_they_stay(tmp_path, kind):
    dataset = folder.load(draw_pets(tmp_path / "data"), 0.25, 0)
    (tmp_path / "work").mkdir()
    loaded = decode_dataset(dataset, PREPROCESS, PixelCache(kind, tmp_path / "work"))
    expected = np.stack([pixels_from_image(path, PREPROCESS) for path in dataset.train.files])
    order = np.random.default_rng(0).permutation(len(expected))
    batches = list(loaded.train.pixels.batches([order[:5], order[5:6], order[6:]]))
    assert [len(batch) for batch in batches] == [5, 1, len(order) - 6]
    np.testing.assert_array_equal(np.concatenate(batches), expected[order])
    np.testing.assert_array_equal(loaded.train.pixels[3], expected[3])
    assert loaded.dataset.train.fingerprint() == dataset.train.fingerprint()
    assert not list((tmp_path / "work").iterdir())


def test_the_cache_does_not_change_the_weights(command, tmp_path):
    draw_pets(tmp_path / "data")
    weights = set()
    for kind in ("memory", "disk", "none"):
        done = command("clf-train", "--data", "data", "--epochs", 2, "-a", kind, "--cache", kind)
        assert done.code == 0, done.err
        weights.add((tmp_path / kind / "model.pt").read_bytes())
        assert {path.name for path in (tmp_path / kind).iterdir()} == {
            *("model.pt", "model.json", "history.csv", "report.html", "images.html", "samples")
        }
    assert len(weights) == 1


def test_images_that_do_not_fit_into_memory_stay_on_disk_and_otherwise_nowhere(tmp_path, monkeypatch):
    free = 1000 * 24 * 24 * 3
    monkeypatch.setattr(cache, "usable_memory", lambda: free)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10 * free}))
    assert choose_cache(500, PREPROCESS.shape, tmp_path).kind == "memory"
    assert choose_cache(501, PREPROCESS.shape, tmp_path).kind == "disk"
    assert choose_cache(5001, PREPROCESS.shape, tmp_path).kind == "none"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_cache(500, PREPROCESS.shape, tmp_path).kind == "disk"


def test_a_line_says_that_every_epoch_decodes_again(tmp_path, monkeypatch, capsys):
    draw_pets(tmp_path / "data")
    monkeypatch.setattr(cache, "usable_memory", lambda: 0)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 0}))
    workplace = Workplace(tmp_path, tmp_path, torch.device("cpu"), SINGLE_PROCESS, Progress())
    inputs = prepare_inputs(TrainConfig(DataSource(str(tmp_path / "data"))), workplace)
    assert isinstance(inputs.loaded.train.pixels, LazyPixels)
    line = "the decoded images fit neither into memory nor on this disk, so they are decoded again for each epoch"
    assert line in capsys.readouterr().err.splitlines()


def test_a_disk_without_room_is_reported_before_anything_is_written(tmp_path):
    with pytest.raises(OSError, match=r"No space left|File too large"):
        PixelCache("disk", tmp_path).allocate(2**40, PREPROCESS.shape)
    assert not list(tmp_path.iterdir())


def break_three_images(root: Path) -> list[Path]:
    """Make three images unreadable, each for another reason."""
    broken = [root / "cat" / "001.png", root / "cat" / "005.png", root / "dog" / "002.png"]
    broken[0].write_bytes(b"")
    broken[1].write_text("<html>")
    broken[2].write_bytes(broken[2].read_bytes()[:60])
    return broken


def test_unreadable_images_are_an_error_and_a_file_lists_them(command, tmp_path):
    broken = break_three_images(draw_pets(tmp_path / "data"))
    done = command("clf-train", "--data", "data", "--epochs", 1)
    assert done.code == 3
    assert "3 of 24 images cannot be read: data/" in done.error
    assert done.error.endswith(
        "artifacts/unreadable.csv lists all of them; repair or remove them, or leave them out with --skip-unreadable"
    )
    with (tmp_path / "artifacts/unreadable.csv").open() as file:
        rows = {row["path"]: row["kind"] for row in csv.DictReader(file)}
    assert rows == {
        str(path.relative_to(tmp_path)): kind
        for path, kind in zip(broken, ("empty", "not-an-image", "damaged"), strict=True)
    }


def test_unreadable_images_are_skipped_on_request_by_the_training_and_by_the_export(command, tmp_path):
    break_three_images(draw_pets(tmp_path / "data", 30))
    for path in (tmp_path / "data/cat").iterdir():  # so that some images of the test split are unreadable, too
        if int(path.stem) % 4 == 0:
            path.write_bytes(b"")
    done = command("clf-train", "--data", "data", "--epochs", 1, "--skip-unreadable")
    assert done.code == 0, done.err
    assert "warning: 11 of 60 images cannot be read and are left out; artifacts/unreadable.csv lists them" in done.err
    assert "49 images" not in done.out
    assert "11 images of the data could not be read" in (tmp_path / "artifacts/report.html").read_text()
    exported = command("clf-export")
    assert exported.code == 0, exported.err
    # When all images are readable again, the next training run removes the list.
    draw_pets(tmp_path / "repaired")
    assert command("clf-train", "--data", "repaired", "--epochs", 1, "--overwrite").code == 0
    assert not (tmp_path / "artifacts/unreadable.csv").exists()


def test_a_class_without_a_readable_image_is_an_error(command, tmp_path):
    for path in (draw_pets(tmp_path / "data") / "dog").iterdir():
        path.write_bytes(b"")
    done = command("clf-train", "--data", "data", "--epochs", 1, "--skip-unreadable")
    assert done.code == 3
    assert "class 'dog': none of " in done.err.splitlines()[-1]


def test_an_image_that_disappears_during_training_is_reported(tmp_path):
    dataset = folder.load(draw_pets(tmp_path / "data"), 0.25, 0)
    Path(dataset.train.path(2)).unlink()
    with pytest.raises(DataError, match=r"1 of .* images cannot be read: .*: not-found: "):
        list(LazyPixels(dataset.train, PREPROCESS).batches([np.arange(5)]))
    with pytest.raises(DataError, match=r"1 of .* images cannot be read: .*: not-found: "):
        dataset.train.fingerprint()


@pytest.fixture
def many_paths(tmp_path) -> list[str]:
    """One path, more often than threads decode."""
    drawing(20, 20).save(tmp_path / "image.png")
    return [str(tmp_path / "image.png")] * (decoding._MAX_IMAGES_FOR_THREADS + 1)


def test_processes_decode_many_images_in_order(many_paths, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    many_paths[100] = str(tmp_path / "bad.png")
    with Decoder(len(many_paths)) as decoder:
        chunks = list(decoder.decode(many_paths, PREPROCESS))
        digests = decoder.compute_digests(many_paths)
    errors = [error for chunk in chunks for error in chunk.errors]
    assert [index for index, error in enumerate(errors) if error] == [100]
    assert sum(len(chunk.pixels) for chunk in chunks) == len(many_paths) - 1
    assert [digest for chunk in chunks for digest in chunk.digests][:100] == digests[:100]
    assert errors[100].kind == "empty"


def test_a_killed_decoding_process_is_reported(many_paths):
    with Decoder(len(many_paths)) as decoder:
        chunks = decoder.decode(many_paths, PREPROCESS)
        next(chunks)
        for process in list(decoder._pool._processes.values()):
            process.kill()
        with pytest.raises(MachineError, match="a decoding process was killed"):
            list(chunks)


# A process of the executor ends while it sends its result.
DIE_WHILE_SENDING = """
import inspect, os, time
from clf_runtime.errors import MachineError
from clf_train.data.decoding import Decoder

def die(item):
    frame = inspect.currentframe()
    while "result_queue" not in frame.f_locals:
        frame = frame.f_back
    os.write(frame.f_locals["result_queue"]._writer.fileno(), bytes([0, 0, 1, 0, 1]))  # 1 of 256 bytes
    time.sleep(0.5)  # the executor waits for the rest now
    os._exit(1)

if __name__ == "__main__":
    with Decoder(1_000_000) as decoder:
        try:
            next(decoder._map(die, [1]))
        except MachineError as error:
            print(error)
"""


def test_a_process_that_is_killed_while_it_sends_its_result_is_reported(tmp_path):
    (tmp_path / "die.py").write_text(DIE_WHILE_SENDING)
    done = subprocess.run([sys.executable, "die.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0
    assert "a decoding process was killed" in done.stdout


# Decodes an image for ever, in processes.
DECODE_FOR_EVER = """
import itertools, sys
from clf_runtime.spec import Preprocess
from clf_train.data.decoding import Decoder

if __name__ == "__main__":
    with Decoder(1_000_000) as decoder:
        preprocess = Preprocess("RGB", 24, 24, "crop", 1.0, "bilinear", (255, 255, 255))
        for chunk in decoder.decode(itertools.repeat(sys.argv[1]), preprocess):
            print(len(chunk.pixels), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd_open and /proc")
def test_decoding_processes_end_when_the_process_that_started_them_is_killed(many_paths, tmp_path):
    (tmp_path / "decode.py").write_text(DECODE_FOR_EVER)
    arguments = [sys.executable, "decode.py", many_paths[0]]
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"64\n"  # so the processes are running
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        assert len(children) >= 2  # one of multiprocessing's own, and at least one that decodes
        waiting = {os.pidfd_open(child) for child in children}
        process.kill()
    try:
        while waiting:
            ended, _, _ = select.select(waiting, [], [], 60)
            assert ended, f"{len(waiting)} of {len(children)} processes are still running"
            for descriptor in ended:
                waiting.remove(descriptor)
                os.close(descriptor)
    finally:
        for descriptor in waiting:
            os.close(descriptor)


def test_a_preview_shows_every_class_and_trains_nothing(command, tmp_path):
    draw_pets(tmp_path / "data")
    (tmp_path / "data/cat").rename(tmp_path / "data/<b>cat")
    done = command("clf-train", "--data", "data", "--preview")
    assert done.code == 0, done.err
    assert done.out == "wrote artifacts/preview.html; the same command without --preview trains\n"
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["preview.html"]
    page = (tmp_path / "artifacts/preview.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * 18  # the training images, each plain and augmented
    assert "&lt;b&gt;cat" in page
    assert "<b>cat" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert command("clf-train", "--data", "data", "--epochs", 1).code == 0


def test_tensorboard_receives_the_metrics_of_the_history(command, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert command("clf-train", "--epochs", 2, "--model", "tiny-convnet", "--tensorboard").code == 0
    events = EventAccumulator(str(tmp_path / "artifacts/tensorboard"))
    events.Reload()
    with (tmp_path / "artifacts/history.csv").open() as file:
        history = list(csv.DictReader(file))
    for name, column in (("loss/train", "train_loss"), ("accuracy/validation", "validation_accuracy")):
        written = [(event.step, event.value) for event in events.Scalars(name)]
        assert written == [(int(row["epoch"]), pytest.approx(float(row[column]))) for row in history]
    assert events.Scalars("test/calibration_error_uncalibrated")
