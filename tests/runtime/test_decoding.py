"""Many small images are decoded by processes: same results, same order, and no process is left behind."""

from __future__ import annotations

import errno
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import pytest
from conftest import BIN
from odd_images import drawing

from clf_runtime.classifier import Classifier
from clf_runtime.errors import ImageError
from clf_runtime.predictions import Failure

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(os, "fork"), reason="processes are forked on Linux only"
)


@pytest.fixture(scope="module")
def parallel(model):
    return Classifier.load(model, threads=2, workers=2, device="cpu")


def child_processes(parent: int | None = None) -> list[int]:
    """Return the ids of the processes that another one, by default this one, has started."""
    tasks = Path(f"/proc/{parent or os.getpid()}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return [child for child in children if b"zygote.py" not in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_results_are_those_of_one_thread_in_order_with_failures_in_their_places(parallel, model, samples, tmp_path):
    (tmp_path / "cut.png").write_bytes(samples[0].read_bytes()[:60])
    paths = list(islice(cycle([*samples, tmp_path / "cut.png", tmp_path / "none.png"]), 900))
    expected = dict(zip(paths[:18], Classifier.load(model, threads=1).predict_files(paths[:18]), strict=True))
    started = set()
    results = []
    for result in parallel.predict_files(paths, top=2):
        results.append(result)
        started |= set(child_processes())
    assert len(started) == 2
    assert not child_processes()
    assert [result.path for result in results] == [str(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, Failure):
            assert result == expected[path]
        else:
            assert (len(result.top), result.label) == (2, expected[path].label)
            assert result.score == pytest.approx(expected[path].score, abs=1e-6)
    assert {result.kind for result in results if isinstance(result, Failure)} == {"damaged", "not-found"}


def test_open_files_may_follow_after_paths(parallel, samples):
    images = [*islice(cycle(map(str, samples)), 140), *(path.open("rb") for path in samples), *map(str, samples)]
    results = parallel.predict_batch(images)
    for image in images[140:156]:
        image.close()
    labels = [result.label for result in results]
    assert labels[140:156] == labels[156:] == labels[:16]


def test_no_result_is_lost_if_decoding_processes_are_killed(parallel, samples):
    paths = list(islice(cycle(samples), 3000))
    results = []
    for result in parallel.predict_files(paths):
        results.append(result)
        if len(results) == 600:
            assert len(child_processes()) == 2
            for child in child_processes():
                os.kill(child, signal.SIGKILL)
    assert [result.path for result in results] == [str(path) for path in paths]
    assert not any(isinstance(result, Failure) for result in results)
    assert not child_processes()


def test_a_generator_that_is_closed_early_leaves_no_process(parallel, samples):
    stream = parallel.predict_files(cycle(samples))
    for _ in islice(stream, 400):
        pass
    assert len(child_processes()) == 2
    stream.close()
    assert not child_processes()


def test_nothing_is_forked_while_another_thread_runs(parallel, samples):
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    started = set()
    for _ in parallel.predict_files(islice(cycle(samples), 600)):
        started |= set(child_processes())
    done.set()
    other.join()
    assert not started


def test_threads_decode_if_no_process_can_be_started(parallel, samples, monkeypatch):
    def fail() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fail)
    results = list(parallel.predict_files(islice(cycle(samples), 300)))
    assert len(results) == 300
    assert not any(isinstance(result, Failure) for result in results)


def test_large_images_are_decoded_by_threads(parallel, tmp_path):
    drawing(300, 300).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 20_000
    started = set()
    for _ in parallel.predict_files([tmp_path / "large.png"] * 300):
        started |= set(child_processes())
    assert not started


@pytest.fixture
def run_with_decoders(home, samples) -> Iterator[subprocess.Popen]:
    """A clf-run in the middle of many small images, with its decoding processes running."""
    arguments = [str(path) for path in islice(cycle(samples), 20_000)]
    pipe = subprocess.PIPE
    # Ctrl-C in the middle of coverage's own code leaves coverage's lock locked: 2 of 60 processes never ended.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [BIN / "clf-run", *arguments]
    process = subprocess.Popen(command, cwd=home, env=environment, stdout=pipe, stderr=pipe, text=True)
    for _ in range(400):  # the processes decode from the 129th image on; then it waits until somebody reads on
        process.stdout.readline()
    assert len(child_processes(process.pid)) == 2
    yield process
    process.kill()
    process.communicate()


def test_ctrl_c_ends_all_processes_with_one_line(run_with_decoders):
    children = child_processes(run_with_decoders.pid)
    for process in [*children, run_with_decoders.pid]:  # a terminal sends it to the whole process group
        os.kill(process, signal.SIGINT)
    assert run_with_decoders.communicate(timeout=60)[1].strip() == "clf-run: interrupted"
    assert run_with_decoders.returncode == 130
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_decoding_processes_end_if_the_first_process_is_killed(run_with_decoders):
    children = [os.pidfd_open(child) for child in child_processes(run_with_decoders.pid)]
    run_with_decoders.kill()
    for child in children:
        ended, _, _ = select.select([child], [], [], 60)  # readable as soon as the process has ended
        assert ended
        os.close(child)


def test_an_image_error_is_the_same_after_being_sent_between_processes():
    error = pickle.loads(pickle.dumps(ImageError("damaged", "the data ends early")))
    assert (error.kind, str(error)) == ("damaged", "the data ends early")
