"""Every image is decoded once, before the first epoch: what cannot be read is listed, what fits nowhere is fine."""

from __future__ import annotations

import csv
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from awkward import drawing
from conftest import BIN

from clf_runtime import machine
from clf_runtime.errors import DataError, MachineError
from clf_runtime.preprocess import pixels_from_image
from clf_runtime.spec import Preprocess
from clf_train.data import cache, decoding, folder
from clf_train.data.cache import LazyPixels, allocate_pixels, choose_cache
from clf_train.data.decoding import Decoder
from clf_train.data.loading import load

HOW = Preprocess("RGB", 24, 24, "crop", 1.0, "bilinear", (255, 255, 255))


def make(root: Path, count: int = 12) -> Path:
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for number in range(count):
            drawing(30 + number % 20, 30).save(root / label / f"{number:03}.png")
    return root


@pytest.mark.parametrize("place", ["memory", "disk", "none"])
def test_wherever_the_pixels_are_they_are_those_that_a_device_sees(tmp_path, place):
    dataset = folder.load(make(tmp_path / "data"), 0.25, 0)
    (tmp_path / "work").mkdir()
    loaded = load(dataset, HOW, place, tmp_path / "work")
    expected = np.stack([pixels_from_image(path, HOW) for path in dataset.train.paths])
    config = np.random.default_rng(0).permutation(len(expected))
    batches = list(loaded.train.pixels.batches([config[:5], config[5:6], config[6:]]))
    assert [len(batch) for batch in batches] == [5, 1, len(config) - 6]
    np.testing.assert_array_equal(np.concatenate(batches), expected[config])
    np.testing.assert_array_equal(loaded.train.pixels[3], expected[3])
    assert loaded.dataset.train.fingerprint() == dataset.train.fingerprint()
    assert not list((tmp_path / "work").iterdir())


def test_the_cache_changes_no_weight(command, tmp_path):
    make(tmp_path / "data")
    weights = set()
    for kind in ("memory", "disk", "none"):
        done = command("clf-train", "--data", "data", "--epochs", 2, "-a", kind, "--cache", kind)
        assert done.code == 0, done.err
        weights.add((tmp_path / kind / "model.pt").read_bytes())
        assert {path.name for path in (tmp_path / kind).iterdir()} == {
            *("model.pt", "model.json", "history.csv", "report.html", "samples")
        }
    assert len(weights) == 1


def test_what_does_not_fit_memory_goes_to_disk_and_what_does_not_fit_there_nowhere(tmp_path, monkeypatch):
    free = 1000 * 24 * 24 * 3
    monkeypatch.setattr(cache, "usable_memory", lambda: free)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10 * free}))
    assert choose_cache(500, HOW.shape, tmp_path) == "memory"
    assert choose_cache(501, HOW.shape, tmp_path) == "disk"
    assert choose_cache(5001, HOW.shape, tmp_path) == "none"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_cache(500, HOW.shape, tmp_path) == "disk"


def test_a_disk_without_room_is_told_before_anything_is_written_to_it(tmp_path):
    with pytest.raises(OSError, match=r"No space left|File too large"):
        allocate_pixels(2**40, HOW.shape, "disk", tmp_path)
    assert not list(tmp_path.iterdir())


def damage(root: Path) -> list[Path]:
    """Make three images unreadable, each in its own way."""
    broken = [root / "cat" / "001.png", root / "cat" / "005.png", root / "dog" / "002.png"]
    broken[0].write_bytes(b"")
    broken[1].write_text("<html>")
    broken[2].write_bytes(broken[2].read_bytes()[:60])
    return broken


def test_unreadable_images_are_listed_in_a_file_and_refused(command, tmp_path):
    broken = damage(make(tmp_path / "data"))
    done = command("clf-train", "--data", "data", "--epochs", 1)
    assert done.code == 3
    assert "3 of 24 images cannot be read: data/" in done.error
    assert done.error.endswith(
        "all are listed in artifacts/unreadable.csv; mend or remove them, or leave them out by --skip-unreadable"
    )
    with (tmp_path / "artifacts/unreadable.csv").open() as file:
        rows = {row["path"]: row["kind"] for row in csv.DictReader(file)}
    assert rows == {
        str(path.relative_to(tmp_path)): kind
        for path, kind in zip(broken, ("empty", "not-an-image", "damaged"), strict=True)
    }


def test_they_are_left_out_where_that_is_asked_for_and_the_export_knows(command, tmp_path):
    damage(make(tmp_path / "data", 30))
    for path in (tmp_path / "data/cat").iterdir():  # of what is held out some are unreadable too, then
        if int(path.stem) % 4 == 0:
            path.write_bytes(b"")
    done = command("clf-train", "--data", "data", "--epochs", 1, "--skip-unreadable")
    assert done.code == 0, done.err
    assert "note: 11 of 60 images cannot be read and are left out: artifacts/unreadable.csv" in done.err
    assert "49 images" not in done.out
    assert "11 images of the data could not be read" in (tmp_path / "artifacts/report.html").read_text()
    exported = command("clf-export")
    assert exported.code == 0, exported.err
    # And once they are mended, a training without them says so no more.
    make(tmp_path / "whole")
    assert command("clf-train", "--data", "whole", "--epochs", 1, "--overwrite").code == 0
    assert not (tmp_path / "artifacts/unreadable.csv").exists()


def test_a_class_of_which_nothing_can_be_read_is_refused(command, tmp_path):
    for path in (make(tmp_path / "data") / "dog").iterdir():
        path.write_bytes(b"")
    done = command("clf-train", "--data", "data", "--epochs", 1, "--skip-unreadable")
    assert done.code == 3
    assert "class 'dog': none of " in done.err.splitlines()[-1]


def test_a_image_that_is_gone_when_it_is_decoded_anew_is_told(tmp_path):
    dataset = folder.load(make(tmp_path / "data"), 0.25, 0)
    Path(dataset.train.path(2)).unlink()
    with pytest.raises(DataError, match=r"1 of .* images cannot be read: .*: not-found: "):
        list(LazyPixels(dataset.train, HOW).batches([np.arange(5)]))
    with pytest.raises(DataError, match=r"1 of .* images cannot be read: .*: not-found: "):
        dataset.train.fingerprint()


@pytest.fixture
def many(tmp_path) -> list[str]:
    """More images than threads are taken for."""
    drawing(20, 20).save(tmp_path / "one.png")
    return [str(tmp_path / "one.png")] * (decoding._MOST_FOR_THREADS + 1)


def test_many_images_are_decoded_by_processes_in_order(many, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    many[100] = str(tmp_path / "bad.png")
    with Decoder(len(many)) as decoder:
        chunks = list(decoder.decoded(many, HOW))
        digests = decoder.digests(many)
    faults = [fault for chunk in chunks for fault in chunk.faults]
    assert [index for index, fault in enumerate(faults) if fault] == [100]
    assert sum(len(chunk.pixels) for chunk in chunks) == len(many) - 1
    assert [digest for chunk in chunks for digest in chunk.digests][:100] == digests[:100]
    assert faults[100].kind == "empty"


def test_a_killed_decoding_process_is_told_and_not_waited_for(many):
    with Decoder(len(many)) as decoder:
        found = decoder.decoded(many, HOW)
        next(found)
        for process in list(decoder._pool._processes.values()):
            process.kill()
        with pytest.raises(MachineError, match="a process that decoded images was ended from outside"):
            list(found)


def test_decoding_processes_end_with_the_one_that_started_them(tmp_path):
    make(tmp_path / "data", 400)
    arguments = [BIN / "clf-train", "--data", "data", "--cache", "none", "--epochs", "100000"]
    with subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert any("epoch 1/" in line for line in process.stderr)
        assert _soon(lambda: len(_children(process.pid)) > machine.usable_cores())  # and multiprocessing's own one
        children = _children(process.pid)
        process.send_signal(signal.SIGKILL)
    assert _soon(lambda: not any(_runs(child) for child in children))


def _soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def _children(process: int) -> list[str]:
    tasks = Path(f"/proc/{process}/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]


def _runs(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_preview_shows_every_class_and_trains_nothing(command, tmp_path):
    make(tmp_path / "data")
    (tmp_path / "data/cat").rename(tmp_path / "data/<b>cat")
    done = command("clf-train", "--data", "data", "--preview")
    assert done.code == 0, done.err
    assert done.out == "artifacts/preview.html; without --preview the same command trains\n"
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["preview.html"]
    page = (tmp_path / "artifacts/preview.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * 18  # those to train on, each plain and augmented
    assert "&lt;b&gt;cat" in page
    assert "<b>cat" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert command("clf-train", "--data", "data", "--epochs", 1).code == 0


def test_tensorboard_gets_what_the_history_has(command, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert command("clf-train", "--epochs", 2, "--tensorboard").code == 0
    events = EventAccumulator(str(tmp_path / "artifacts/tensorboard"))
    events.Reload()
    with (tmp_path / "artifacts/history.csv").open() as file:
        history = list(csv.DictReader(file))
    for name, column in (("loss/train", "train_loss"), ("accuracy/validation", "validation_accuracy")):
        written = [(event.step, event.value) for event in events.Scalars(name)]
        assert written == [(int(row["epoch"]), pytest.approx(float(row[column]))) for row in history]
    assert events.Scalars("held-out/calibration_error_before_temperature")
