"""What `clf-bench` measures: complete processes and single images, of several models in turn.

Every figure comes from a separate process. They are started in turn, model after model and round after round, so that
changes in the machine's speed affect all models alike. This process stays small, because the system counts its memory
as that of the processes it starts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clf_runtime.errors import ClfError

STAGES = ("read", "decode", "resize", "inference")
_RUN = "from clf_runtime.cli import main; main()"
# Without the current folder on the module path: a file in it may be named like a module.
_SAFE_PATH = {"PYTHONSAFEPATH": "1"}


@dataclass(frozen=True)
class BenchOptions:
    """What to measure, and for how long."""

    models: tuple[Path, ...]
    images: tuple[str, ...]  # empty: the self-test images of each model
    recursive: bool
    device: str
    threads: int | None
    batch_size: int
    rounds: int
    seconds: float  # for each of throughput, latency and stages, per round


@dataclass(frozen=True)
class BenchResult:
    """The figures of one model: medians over the rounds, unless noted otherwise."""

    model: str
    images: int
    unreadable: int  # images that cannot be read
    provider: str
    warning: str
    nodes: Mapping[str, int] | None  # per provider; None if onnxruntime does not report them
    size_bytes: int
    cold_start_ms: float  # from exec to exit, one image
    cold_peak_bytes: int | None
    latency_p50_ms: float  # one image at a time, over all rounds
    latency_p90_ms: float
    latency_p99_ms: float
    latencies: int
    throughput: float  # images per second, all cores
    peak_bytes: int | None  # of the process that measured throughput
    stages_ms: Mapping[str, float]  # of one image


@dataclass(frozen=True)
class PrepareTask:
    """Task of a worker: find the images to measure a model with, and check that they can be read."""

    model: str
    arguments: tuple[str, ...]  # empty: write the images of the model's self-test into `folder`
    recursive: bool
    folder: str


@dataclass(frozen=True)
class MeasureTask:
    """Task of a worker: load a model and measure it."""

    model: str
    paths: tuple[str, ...]
    device: str
    threads: int | None
    batch_size: int
    seconds: float


@dataclass(frozen=True)
class ImageSet:
    """The images to measure a model with."""

    paths: tuple[str, ...]
    unreadable: int


@dataclass(frozen=True)
class ColdStart:
    """One process of clf-run with one image."""

    duration_ms: float  # from exec to exit
    peak_bytes: int | None  # None if the system does not report it


@dataclass(frozen=True)
class WarmRun:
    """One process that measured a loaded model."""

    provider: str
    warning: str
    nodes: Mapping[str, int] | None
    size_bytes: int
    throughput: float
    peak_bytes: int | None
    latency_ms: Sequence[float]
    stages_ms: Mapping[str, float]


@dataclass
class _Series:
    """What has been measured of one model so far."""

    model: Path
    images: ImageSet
    cold: list[ColdStart] = field(default_factory=list)
    warm: list[WarmRun] = field(default_factory=list)


class ProcessError(ClfError):
    """A process ended with an error of its own; this command ends with the same message and exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        """Store the exit code beside the message."""
        super().__init__(message)
        self.exit_code = exit_code


def measure(options: BenchOptions, on_progress: Callable[[str], None]) -> list[BenchResult]:
    """Measure all models in turn. Raises ProcessError if a process fails."""
    with tempfile.TemporaryDirectory(prefix="clf-bench-") as folder:
        all_series = [
            _Series(model, _prepare_images(options, model, Path(folder) / str(number)))
            for number, model in enumerate(options.models)
        ]
        for series in all_series:  # uncounted: afterwards the system has all files in memory
            _run_cold(options, series.model, series.images.paths[0])
        for round_ in range(1, options.rounds + 1):
            for series in all_series:
                on_progress(f"round {round_} of {options.rounds}: {series.model}")
                paths = series.images.paths
                series.cold.append(_run_cold(options, series.model, paths[round_ % len(paths)]))
                series.warm.append(_run_warm(options, series))
    return [_summarize(series) for series in all_series]


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the smallest of the values that is not exceeded by `fraction` of them (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -int(-fraction * len(ordered) // 1) - 1)]


def _prepare_images(options: BenchOptions, model: Path, folder: Path) -> ImageSet:
    folder.mkdir()
    content = _run_worker(PrepareTask(str(model), options.images, options.recursive, str(folder)))
    return ImageSet(tuple(content["paths"]), content["unreadable"])


def _run_warm(options: BenchOptions, series: _Series) -> WarmRun:
    task = MeasureTask(
        model=str(series.model),
        paths=series.images.paths,
        device=options.device,
        threads=options.threads,
        batch_size=options.batch_size,
        seconds=options.seconds,
    )
    return WarmRun(**_run_worker(task))


def _run_worker(task: PrepareTask | MeasureTask) -> dict[str, Any]:
    # In a file: the names of 100,000 images are longer than a command line may be.
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump({"task": type(task).__name__, "fields": asdict(task)}, file)
    try:
        process = subprocess.run(
            [sys.executable, "-m", "clf_runtime.bench.worker", file.name],
            capture_output=True,
            check=False,
            env=os.environ | _SAFE_PATH,
        )
    finally:
        Path(file.name).unlink()
    _check_exit_code(process.returncode, process.stderr)
    content: dict[str, Any] = json.loads(process.stdout)
    return content


def _run_cold(options: BenchOptions, model: Path, image: str) -> ColdStart:
    """Run clf-run with one image, and measure its process."""
    threads = [] if options.threads is None else ["--threads", str(options.threads)]
    command = [sys.executable, "-c", _RUN, image, "--model", str(model), "--device", options.device, *threads]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | _SAFE_PATH)
    assert process.stderr is not None
    stderr = process.stderr.read()
    peak_bytes = None
    if hasattr(os, "wait4"):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        peak_bytes = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
    else:
        process.wait()
    duration_ms = 1000 * (time.perf_counter() - started)
    process.stderr.close()
    _check_exit_code(process.returncode, stderr)
    return ColdStart(duration_ms, peak_bytes)


def _check_exit_code(exit_code: int, stderr: bytes) -> None:
    """Raise ProcessError if a process ended with an error of its own, and RuntimeError if it crashed."""
    if exit_code == 0:
        return
    message = stderr.decode(errors="replace").strip()
    if exit_code not in range(1, 10):
        raise RuntimeError(f"a process ended with exit code {exit_code}: {message}")
    raise ProcessError(message.splitlines()[-1].removeprefix("clf-bench: ").removeprefix("clf-run: "), exit_code)


def _summarize(series: _Series) -> BenchResult:
    cold, warm, last = series.cold, series.warm, series.warm[-1]
    latencies = [latency for run in warm for latency in run.latency_ms]
    return BenchResult(
        model=str(series.model),
        images=len(series.images.paths),
        unreadable=series.images.unreadable,
        provider=last.provider,
        warning=last.warning,
        nodes=last.nodes,
        size_bytes=last.size_bytes,
        cold_start_ms=round(statistics.median(run.duration_ms for run in cold), 1),
        cold_peak_bytes=_median([run.peak_bytes for run in cold]),
        latency_p50_ms=percentile(latencies, 0.5),
        latency_p90_ms=percentile(latencies, 0.9),
        latency_p99_ms=percentile(latencies, 0.99),
        latencies=len(latencies),
        throughput=round(statistics.median(run.throughput for run in warm), 2),
        peak_bytes=_median([run.peak_bytes for run in warm]),
        stages_ms={stage: round(statistics.median(run.stages_ms[stage] for run in warm), 4) for stage in STAGES},
    )


def _median(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return int(statistics.median(known)) if known else None
