"""What `clf-bench` measures: whole processes and single images, of several models in turn.

Every figure comes from processes of their own, started in turn, model after model and round after round, so that
a machine that drifts does so for all of them. This process stays small: what it has in memory, the system counts to
those that it starts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clf_runtime.errors import ClfError

STAGES = ("read", "decode", "resize", "inference")
_RUN = "from clf_runtime.cli import main; main()"
# Without what lies in the folder that a person is in: a file of theirs may be called like a module.
_SAFE = {"PYTHONSAFEPATH": "1"}


@dataclass(frozen=True)
class BenchOptions:
    """What to measure, and how long."""

    models: tuple[Path, ...]
    images: tuple[str, ...]  # none: the self-test images of each model
    recursive: bool
    device: str
    threads: int | None
    batch_size: int
    rounds: int
    seconds: float  # for each of throughput, latency and stages, per round


@dataclass(frozen=True)
class BenchResult:
    """What was measured of one model; medians over rounds, where nothing else is said."""

    model: str
    images: int
    unreadable: int  # that cannot be read
    provider: str
    warning: str
    nodes: Mapping[str, int] | None  # per provider, where onnxruntime tells
    size_bytes: int
    cold_start_ms: float  # from exec to exit, one image
    cold_peak_bytes: int | None
    latency_p50_ms: float  # one image at a time, all rounds together
    latency_p90_ms: float
    latency_p99_ms: float
    latencies: int
    throughput: float  # images per second, all cores
    peak_bytes: int | None  # of the process that ran those
    stages_ms: Mapping[str, float]  # of one image


class Ended(ClfError):
    """A process ended as a command does that cannot go on, and this one ends likewise."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def measure(options: BenchOptions, noticed: Callable[[str], None]) -> list[BenchResult]:
    """Measure all models, in turn. Raises ClfError, as the processes end."""
    with tempfile.TemporaryDirectory(prefix="clf-bench-") as folder:
        laid_out = [_laid_out(options, model, Path(folder) / str(n)) for n, model in enumerate(options.models)]
        cold: list[list[tuple[float, int | None]]] = [[] for _ in options.models]
        warm: list[list[dict[str, Any]]] = [[] for _ in options.models]
        for round_ in range(options.rounds + 1):
            for number, model in enumerate(options.models):
                images = laid_out[number]["images"]
                if round_ == 0:  # what the system has to read from the disk, it has in memory then
                    _cold_start(options, model, images[0])
                    continue
                noticed(f"round {round_} of {options.rounds}: {model}")
                cold[number].append(_cold_start(options, model, images[round_ % len(images)]))
                warm[number].append(_warm(options, model, images))
    return [_summed_up(*each) for each in zip(options.models, laid_out, cold, warm, strict=True)]


def percentile(values: list[float], share: float) -> float:
    """Give the smallest value that is not exceeded by `share` of all (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def _laid_out(options: BenchOptions, model: Path, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    asked = {
        "model": str(model),
        "named": list(options.images),
        "recursive": options.recursive,
        "folder": str(folder),
    }
    return _worker({"lay_out": asked})


def _warm(options: BenchOptions, model: Path, images: list[str]) -> dict[str, Any]:
    asked = {
        "model": str(model),
        "images": images,
        "device": options.device,
        "threads": options.threads,
        "batch_size": options.batch_size,
        "seconds": options.seconds,
    }
    return _worker({"measure": asked})


def _worker(options: dict[str, Any]) -> dict[str, Any]:
    # Through a file name as argument, a folder of 100,000 images would be longer than a command line may be.
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(options, file)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "clf_runtime.bench.worker", file.name],
            capture_output=True,
            check=False,
            env=os.environ | _SAFE,
        )
    finally:
        Path(file.name).unlink()
    _raise_failed(done.returncode, done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _cold_start(options: BenchOptions, model: Path, image: str) -> tuple[float, int | None]:
    """Milliseconds from exec to exit of clf-run with one image, and the bytes that it had at most."""
    threads = [] if options.threads is None else ["--threads", str(options.threads)]
    command = [sys.executable, "-c", _RUN, image, "--model", str(model), "--device", options.device, *threads]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | _SAFE)
    assert process.stderr is not None
    said = process.stderr.read()
    peak = None
    if hasattr(os, "wait4"):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
    else:
        process.wait()
    taken = 1000 * (time.perf_counter() - started)
    process.stderr.close()
    _raise_failed(process.returncode, said)
    return taken, peak


def _raise_failed(code: int, said: bytes) -> None:
    if code == 0:
        return
    message = said.decode(errors="replace").strip()
    if code not in range(1, 10):
        raise RuntimeError(f"a process ended with {code}: {message}")
    raise Ended(message.splitlines()[-1].removeprefix("clf-bench: ").removeprefix("clf-run: "), code)


def _summed_up(
    model: Path, laid_out: dict[str, Any], cold: list[tuple[float, int | None]], warm: list[dict[str, Any]]
) -> BenchResult:
    latencies = [each for one in warm for each in one["latency_ms"]]
    last = warm[-1]
    return BenchResult(
        model=str(model),
        images=len(laid_out["images"]),
        unreadable=laid_out["unreadable"],
        provider=last["provider"],
        warning=last["warning"],
        nodes=last["nodes"],
        size_bytes=last["size_bytes"],
        cold_start_ms=round(statistics.median(seconds for seconds, _ in cold), 1),
        cold_peak_bytes=_median([peak for _, peak in cold]),
        latency_p50_ms=percentile(latencies, 0.5),
        latency_p90_ms=percentile(latencies, 0.9),
        latency_p99_ms=percentile(latencies, 0.99),
        latencies=len(latencies),
        throughput=round(statistics.median(one["throughput"] for one in warm), 2),
        peak_bytes=_median([one["peak_bytes"] for one in warm]),
        stages_ms={stage: round(statistics.median(one["stages_ms"][stage] for one in warm), 4) for stage in STAGES},
    )


def _median(values: list[int | None]) -> int | None:
    known = [each for each in values if each is not None]
    return int(statistics.median(known)) if known else None
