"""Whatever dies, the rows are exactly the inputs: workers, machines, the driver.

Run by `make test-batch`; it takes minutes.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra [batch] is not installed")
from batch_runs import rows_of, run_here
from conftest import BIN

from clf_batch.callbacks import Callbacks
from clf_batch.manifest import MANIFEST_FILE, Manifest
from clf_batch.options import BatchOptions
from clf_batch.run import run
from clf_runtime.errors import InvalidModelError, MachineError

pytestmark = pytest.mark.slow

IMAGES = 4000
SILENT = Callbacks(lambda: None, lambda part: None, lambda warning: None)


@pytest.fixture(scope="module")
def names(digits, tmp_path_factory) -> Path:
    """A list of 4,000 names that lead to 360 images, and each hundredth to none."""
    images = sorted(digits.rglob("*.png"))
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text(
        "\n".join(f"{images[n % len(images)]}{'.gone' if n % 100 == 7 else ''}" for n in range(IMAGES)) + "\n"
    )
    return path


@pytest.fixture
def expected(names, options, tmp_path) -> list[dict[str, object]]:
    """The rows of an undisturbed run."""
    run_here(options(f"@{names}", shard_size=40, output=str(tmp_path / "undisturbed")))
    return rows_of(tmp_path / "undisturbed")


def check_complete(output: Path, done: Manifest, expected: list[dict[str, object]]) -> None:
    """Check that the rows are exactly those of an undisturbed run: none lost, none twice."""
    assert rows_of(output) == expected
    assert (done.images, done.failures) == (len(expected), len(expected) // 100)
    assert {part.file for part in done.parts} == {path.name for path in output.glob("part-*")}
    assert not list(output.glob(".*.tmp"))


def processes_below(root: int) -> Iterator[tuple[int, str]]:
    """Yield the id and the command line of each process below one."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            line = path.joinpath("cmdline").read_text()
        except (OSError, ValueError):
            continue
        if parent == root:
            yield int(path.name), line
            yield from processes_below(int(path.name))


def kill_a_worker(root: int, generator: random.Random) -> bool:
    """Kill a worker below a process, if there is one."""
    workers = [process for process, line in processes_below(root) if line.startswith("ray::ShardWorker")]
    if workers:
        os.kill(generator.choice(sorted(workers)), signal.SIGKILL)
    return bool(workers)


def run_disturbed(options: BatchOptions, disturb: Callable[[], bool], times: int, seed: int) -> tuple[Manifest, int]:
    """Run, and do something at random moments meanwhile. Return the manifest, and how often it was done."""
    generator, ended, done = random.Random(seed), threading.Event(), []

    def disturb_repeatedly() -> None:
        while len(done) < times and not ended.wait(generator.uniform(0.2, 2.0)):
            if disturb():
                done.append(time.monotonic())

    thread = threading.Thread(target=disturb_repeatedly)
    thread.start()
    try:
        return run(options, SILENT), len(done)
    finally:
        ended.set()
        thread.join()


def test_workers_that_are_killed_lose_nothing(cluster, options, names, expected, tmp_path):
    generator = random.Random(1)
    run_options = options(f"@{names}", shard_size=40, address=cluster.address)
    done, kills = run_disturbed(run_options, lambda: kill_a_worker(os.getpid(), generator), 6, seed=1)
    print(f"{kills} workers killed")
    assert kills >= 3
    check_complete(tmp_path / "out", done, expected)


def start_machine(address: str) -> subprocess.Popen[bytes]:
    """Start the processes of one more machine of a cluster."""
    command = [BIN / "ray", "start", "--address", address, "--block", "--num-cpus", "1"]
    return subprocess.Popen(
        [*map(str, command), "--object-store-memory", "100000000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_machine(machine: subprocess.Popen[bytes]) -> None:
    """Kill all processes of a machine at once."""
    for process in [machine.pid, *(process for process, _ in processes_below(machine.pid))]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    machine.wait()


def test_machines_that_are_killed_lose_nothing(cluster, options, names, expected, tmp_path):
    import ray

    machines = [start_machine(cluster.address)]

    def replace_the_second_machine() -> bool:
        if sum(node["Alive"] for node in ray.nodes()) < 2:
            return False  # the new one has not joined yet
        kill_machine(machines.pop())
        machines.append(start_machine(cluster.address))
        return True

    kills = runs = 0
    try:
        while kills < 20:
            lists = [f"@{names}"] * 3
            run_options = options(*lists, shard_size=40, address=cluster.address, overwrite=True)
            done, more = run_disturbed(run_options, replace_the_second_machine, 20 - kills, seed=kills)
            kills, runs = kills + more, runs + 1
            check_complete(tmp_path / "out", done, 3 * expected)
    finally:
        kill_machine(machines.pop())
    print(f"{kills} machines killed in {runs} runs")


def test_a_driver_that_is_killed_resumes_without_loss_or_repetition(names, expected, artifacts, tmp_path):
    generator = random.Random(2)
    arguments = (f"@{names}", "-o", "out", "-a", artifacts, "--shard-size", "40", "--device", "cpu", "--resume")
    command = [BIN / "clf-batch", *map(str, arguments)]
    output, kills = tmp_path / "out", 0
    while kills < 5:
        before = len(list(output.glob("part-*")))
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and len(list(output.glob("part-*"))) < before + 10:
            time.sleep(0.05)
        time.sleep(generator.uniform(0, 0.5))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    print(f"{kills} drivers killed")
    assert kills >= 3
    assert (done.returncode, (output / MANIFEST_FILE).exists()) == (1, True), done.stderr
    assert rows_of(output) == expected


def test_a_shard_that_ends_its_workers_ends_the_run(cluster, options, samples, monkeypatch):
    from clf_batch import pool

    monkeypatch.setattr(pool, "_ATTEMPTS", 2)
    ended, generator = threading.Event(), random.Random(3)

    def kill_all() -> None:
        while not ended.wait(0.5):
            kill_a_worker(os.getpid(), generator)

    thread = threading.Thread(target=kill_all)
    thread.start()
    try:
        with pytest.raises(MachineError, match=r"has ended 2 workers|died while they started"):
            run(options(*[samples[0]] * 50_000, shard_size=50_000, address=cluster.address), SILENT)
    finally:
        ended.set()
        thread.join()


def test_errors_of_workers_reach_the_driver_as_they_are(cluster, options, samples, tmp_path, monkeypatch):
    from clf_batch import pool

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(MachineError, match="--device cuda: "):
        run(options(samples[0], address=cluster.address, device="cuda"), SILENT)
    assert signal.getsignal(signal.SIGTERM) is before
    put = pool.ray.put
    monkeypatch.setattr(pool.ray, "put", lambda files: put(replace(files, content=files.content[:-1])))
    with pytest.raises(InvalidModelError, match="not an ONNX file"):
        run(options(samples[0], address=cluster.address, output=str(tmp_path / "other")), SILENT)
