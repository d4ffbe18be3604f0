"""Many small images are decoded by processes: the same answers, in order, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import cycle, islice
from pathlib import Path

import pytest
from conftest import BIN

from clf_runtime.classifier import Classifier
from clf_runtime.errors import ImageError
from clf_runtime.predictions import Failure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")


@pytest.fixture(scope="module")
def parallel(model):
    return Classifier.load(model, threads=2, workers=2, device="cpu")


def processes(of: int | None = None) -> list[int]:
    """Give the processes that another has started, by default this one."""
    tasks = Path(f"/proc/{of or os.getpid()}/task").glob("*/children")
    return [int(each) for task in tasks for each in task.read_text().split() if not _is_the_zygote(int(each))]


def _is_the_zygote(pid: int) -> bool:
    return b"zygote.py" in Path(f"/proc/{pid}/cmdline").read_bytes()


def wait_until(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came to that")


def test_answers_are_those_of_one_thread_in_order_with_faults_in_their_places(parallel, model, samples, tmp_path):
    (tmp_path / "cut.png").write_bytes(samples[0].read_bytes()[:60])
    paths = list(islice(cycle([*samples, tmp_path / "cut.png", tmp_path / "none.png"]), 900))
    alone = dict(zip(paths[:18], Classifier.load(model, threads=1).predict_files(paths[:18]), strict=True))
    started = set()
    given = []
    for result in parallel.predict_files(paths, top=2):
        given.append(result)
        started |= set(processes())
    assert len(started) == 2
    assert not processes()
    assert [result.path for result in given] == [str(path) for path in paths]
    for path, result in zip(paths, given, strict=True):
        if isinstance(result, Failure):
            assert result == alone[path]
        else:
            assert (len(result.top), result.label) == (2, alone[path].label)
            assert result.score == pytest.approx(alone[path].score, abs=1e-6)
    assert {result.kind for result in given if isinstance(result, Failure)} == {"damaged", "not-found"}


def test_processes_that_are_killed_cost_no_answer(parallel, samples):
    paths = list(islice(cycle(samples), 3000))
    given = []
    for result in parallel.predict_files(paths):
        given.append(result)
        if len(given) == 600:
            assert len(processes()) == 2
            for each in processes():
                os.kill(each, signal.SIGKILL)
    assert [result.path for result in given] == [str(path) for path in paths]
    assert not any(isinstance(result, Failure) for result in given)
    assert not processes()


def test_a_stream_that_is_left_early_leaves_no_process(parallel, samples):
    stream = parallel.predict_files(cycle(samples))
    for _ in islice(stream, 400):
        pass
    assert len(processes()) == 2
    stream.close()
    assert not processes()


def test_nothing_is_forked_beside_another_thread(parallel, samples):
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    started = set()
    for _ in parallel.predict_files(islice(cycle(samples), 600)):
        started |= set(processes())
    done.set()
    other.join()
    assert not started


def test_where_no_process_can_be_had_threads_do_it(parallel, samples, monkeypatch):
    def fail() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fail)
    results = list(parallel.predict_files(islice(cycle(samples), 300)))
    assert len(results) == 300
    assert not any(isinstance(result, Failure) for result in results)


def test_large_images_are_decoded_by_threads(parallel, tmp_path):
    from awkward import drawing

    drawing(300, 300).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 20_000
    started = set()
    for _ in parallel.predict_files([tmp_path / "large.png"] * 300):
        started |= set(processes())
    assert not started


@pytest.fixture
def running(home, samples):
    """Give a clf-run that has begun with very many small images, each of which it is told of by name."""
    arguments = [str(path) for path in islice(cycle(samples), 20_000)]
    pipe = subprocess.PIPE
    process = subprocess.Popen([BIN / "clf-run", *arguments], cwd=home, stdout=pipe, stderr=pipe, text=True)
    wait_until(lambda: len(processes(process.pid)) == 2)
    yield process
    process.kill()
    process.communicate()


def test_ctrl_c_ends_all_of_them_with_one_line(running):
    started = processes(running.pid)
    for each in [*started, running.pid]:  # a terminal tells every process of the group
        os.kill(each, signal.SIGINT)
    assert running.communicate(timeout=60)[1].strip() == "clf-run: interrupted"
    assert running.returncode == 130
    assert not any(Path(f"/proc/{each}").exists() for each in started)


def test_they_end_with_a_first_process_that_is_killed(running):
    started = processes(running.pid)
    running.kill()
    wait_until(lambda: not any(_is_alive(each) for each in started))


def _is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_refusal_survives_the_way_between_processes():
    import pickle

    refusal = pickle.loads(pickle.dumps(ImageError("damaged", "it is")))
    assert (refusal.kind, str(refusal)) == ("damaged", "it is")
