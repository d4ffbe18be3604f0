"""`clf-run --stream`: frames per second against the processor's limit, latency, and memory.

usage: streams.py [rate|latency|memory]... [--rounds N] [--frames N]

Frames of 1280 x 720 pixels, as MJPEG, for small-resnet and MobileNetV3-small with random weights. The limit is cores /
(processor seconds per frame for decoding and inference, on one thread); the latency is compared with the time that
decoding and inference take alone, on one thread: frame after frame, and at the rate of the camera, because caches are
cold and clocks low after a pause. All of it is measured before and after each process, because the machine's speed
changes; the results are medians of the ratios. `processor_share` is what decoding and inference take of all processor
time of clf-run, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from measure import save_result
from PIL import Image

from clf_runtime import Classifier
from clf_runtime.machine import usable_cores

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
CORES = usable_cores()
MODELS = ("small-resnet", "mobilenet_v3_small")
CAMERA_FPS = 30
MEMORY_FRAMES, MEMORY_STEP = 200_000, 20_000
SUMMARY = re.compile(r"([\d.e+]+) frames/s, latency ([\d.e+]+) ms \(p50\), ([\d.e+]+) ms \(p95\)")


@dataclass(frozen=True)
class Alone:
    """What decoding and inference of a frame take on one thread, in seconds."""

    cpu_s: float
    wall_s: float
    paced_wall_s: float  # at the rate of the camera


@dataclass(frozen=True)
class StreamResult:
    """What a process of clf-run printed, and its processor time, with its start."""

    fps: float
    p50_s: float
    p95_s: float
    cpu_s: float


def draw_frames(count: int, size: tuple[int, int] = (1280, 720)) -> list[bytes]:
    """Return different frames with about as much detail as a photo, as JPEG files."""
    random = np.random.default_rng(0)
    frames = []
    for _ in range(count):
        coarse = random.integers(0, 256, (max(1, size[1] // 12), max(1, size[0] // 12), 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
        frames.append(file.getvalue())
    return frames


def measure_alone(classifier: Classifier, frames: Sequence[bytes]) -> Alone:
    """Decode and classify every frame on this thread, three times."""
    cpu, wall = _measure_calls(classifier, [*frames] * 3, 0.0)
    _, paced_wall = _measure_calls(classifier, frames, 1 / CAMERA_FPS)
    return Alone(statistics.mean(cpu), statistics.median(wall), statistics.median(paced_wall))


def _measure_calls(
    classifier: Classifier, frames: Sequence[bytes], interval_s: float
) -> tuple[list[float], list[float]]:
    """Return the processor time and the time that each frame takes, after a pause."""
    cpu, wall = [], []
    for frame in frames:
        time.sleep(interval_s)
        started, cpu_started = time.perf_counter(), time.thread_time()
        classifier.run(classifier.decoder.decode(frame)[None])
        cpu.append(time.thread_time() - cpu_started)
        wall.append(time.perf_counter() - started)
    return cpu, wall


def run_stream(model: Path, options: Sequence[str], source: Path | Iterator[bytes]) -> StreamResult:
    """Run clf-run --stream with frames from a file, or from a camera that writes them at its rate."""
    command = [str(BIN / "clf-run"), "--stream", *options, "--device", "cpu", "--model", str(model)]
    with source.open("rb") if isinstance(source, Path) else contextlib.nullcontext(subprocess.PIPE) as stdin:
        process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if not isinstance(source, Path):
        write_paced(source, process)
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    found = SUMMARY.search(errors)
    if process.returncode or found is None:
        raise RuntimeError(errors)
    fps, p50_ms, p95_ms = map(float, found.groups())
    return StreamResult(fps, p50_ms / 1000, p95_ms / 1000, usage.ru_utime + usage.ru_stime)


def write_paced(frames: Iterator[bytes], process: subprocess.Popen[bytes]) -> None:
    """Write frames at the rate of a camera; late ones follow at once."""
    assert process.stdin is not None
    due = time.monotonic()
    for frame in frames:
        due = max(due + 1 / CAMERA_FPS, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        process.stdin.write(frame)
        process.stdin.flush()
    process.stdin.close()


def repeat(
    model: Path, frames: Sequence[bytes], rounds: int, stream: Callable[[], StreamResult]
) -> list[tuple[Alone, StreamResult]]:
    """Measure alone, a stream, alone, … and return each stream with the mean of what is around it."""
    with Classifier.load(model, device="cpu", threads=1) as classifier:
        measure_alone(classifier, frames)
        alone, streams = [measure_alone(classifier, frames)], []
        for _ in range(rounds):
            streams.append(stream())
            alone.append(measure_alone(classifier, frames))
    around = [
        Alone(*((one + other) / 2 for one, other in zip(astuple(first), astuple(second), strict=True)))
        for first, second in itertools.pairwise(alone)
    ]
    return list(zip(around, streams, strict=True))


def rate(model: Path, frames: Sequence[bytes], count: int, rounds: int) -> dict[str, object]:
    """Measure frames per second with --every, from a file, so that no other process needs the processor."""
    with tempfile.TemporaryDirectory() as folder:
        one, all_ = Path(folder, "one.mjpeg"), Path(folder, "all.mjpeg")
        one.write_bytes(frames[0])
        with all_.open("wb") as file:
            file.writelines(itertools.islice(itertools.cycle(frames), count))
        pairs = repeat(model, frames, rounds, lambda: run_stream(model, ["--every"], all_))
        start_s = statistics.median(run_stream(model, ["--every"], one).cpu_s for _ in range(3))
    reached = [stream.fps * alone.cpu_s / CORES for alone, stream in pairs]
    return {
        "model": model.stem,
        "frames": count,
        "limit_fps": round(statistics.median(CORES / alone.cpu_s for alone, _ in pairs), 1),
        "fps": round(statistics.median(stream.fps for _, stream in pairs), 1),
        "reached": round(statistics.median(reached), 3),
        "reached_in_each_round": [round(ratio, 3) for ratio in reached],
        "processor_share": round(
            statistics.median(alone.cpu_s * count / (stream.cpu_s - start_s) for alone, stream in pairs), 3
        ),
    }


def latency(model: Path, frames: Sequence[bytes], count: int, rounds: int) -> dict[str, object]:
    """Measure the time from a frame's last byte to its record, for a camera of 30 frames per second."""
    pairs = repeat(
        model,
        frames,
        rounds,
        lambda: run_stream(model, ["--latest"], itertools.islice(itertools.cycle(frames), count)),
    )
    ratios = [stream.p95_s / alone.wall_s for alone, stream in pairs]
    paced_ratios = [stream.p95_s / alone.paced_wall_s for alone, stream in pairs]
    return {
        "model": model.stem,
        "frames": count,
        "alone_ms": round(statistics.median(alone.wall_s for alone, _ in pairs) * 1000, 2),
        "alone_at_camera_rate_ms": round(statistics.median(alone.paced_wall_s for alone, _ in pairs) * 1000, 2),
        "p50_ms": round(statistics.median(stream.p50_s for _, stream in pairs) * 1000, 2),
        "p95_ms": round(statistics.median(stream.p95_s for _, stream in pairs) * 1000, 2),
        "p95_ratio": round(statistics.median(ratios), 3),
        "p95_ratio_in_each_round": [round(ratio, 3) for ratio in ratios],
        "p95_ratio_to_camera_rate": round(statistics.median(paced_ratios), 3),
        "p95_ratio_to_camera_rate_in_each_round": [round(ratio, 3) for ratio in paced_ratios],
    }


def memory(model: Path, count: int = MEMORY_FRAMES) -> dict[str, object]:
    """Return the resident memory of one process after every 20,000 of many small frames."""
    frames = draw_frames(64, (28, 28))
    command = [str(BIN / "clf-run"), "--stream", "--every", "--device", "cpu", "--model", str(model)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    writer = threading.Thread(
        target=_write_and_close, args=(process.stdin, itertools.islice(itertools.cycle(frames), count))
    )
    writer.start()
    marks = []
    for number, _ in enumerate(process.stdout, 1):
        if number % MEMORY_STEP == 0:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            marks.append({"frames": number, "resident_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 2)})
    writer.join()
    if process.wait():
        raise RuntimeError(f"exit code {process.returncode}")
    return {
        "model": model.stem,
        "growth_mb": round(marks[-1]["resident_mb"] - marks[0]["resident_mb"], 2),
        "marks": marks,
    }


def _write_and_close(pipe: BinaryIO, frames: Iterable[bytes]) -> None:
    pipe.writelines(frames)
    pipe.close()


def main() -> None:
    """Measure what was requested, by default everything, and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["rate", "latency", "memory", []])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, default=600, help="of each stream")
    parser.add_argument("--models", default=str(Path(tempfile.gettempdir()) / "clf-benchmark-models"), metavar="DIR")
    arguments = parser.parse_args()

    def exported(name: str) -> Path:
        # In a separate process, without torch's threads and memory in this one.
        process = subprocess.run(
            [sys.executable, HERE / "models.py", name, arguments.models], capture_output=True, text=True
        )
        if process.returncode:
            raise RuntimeError(process.stderr)
        return Path(process.stdout.strip())

    models, frames = [exported(name) for name in MODELS], draw_frames(32)
    packages = ["onnxruntime", "numpy", "pillow"]
    size_kb = round(statistics.mean(map(len, frames)) / 1000)
    for name, measure in (("rate", rate), ("latency", latency)):
        if name in (arguments.what or name):
            rows = [{"kb": size_kb, **measure(model, frames, arguments.frames, arguments.rounds)} for model in models]
            save_result(f"streams_{name}", rows, packages)
    if "memory" in (arguments.what or "memory"):
        save_result("streams_memory", memory(models[0]), packages)


if __name__ == "__main__":
    main()
