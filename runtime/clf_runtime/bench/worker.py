"""One process of `clf-bench`: lays the images out, or measures one model; prints JSON.

usage: python -m clf_runtime.bench.worker FILE, where FILE holds JSON: {"lay_out": …} or {"measure": …}
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from clf_runtime import onnx_file
from clf_runtime.classifier import Classifier
from clf_runtime.command import execute
from clf_runtime.diagnostics.info import here
from clf_runtime.diagnostics.selftest import read_self_test
from clf_runtime.errors import DataError, ImageError
from clf_runtime.machine import usable_cores
from clf_runtime.preprocess import decode_image, resize_image
from clf_runtime.sources import find_images
from clf_runtime.spec import ModelSpec

_LEAST_RUNS = 20  # of whatever is timed; fewer have no percentiles
_WARM_UP_RUNS = 3


def lay_out(model: str, named: list[str], recursive: bool, folder: str) -> dict[str, Any]:
    """Give the paths of the images to measure with: those named, or the model's own, written into `folder`.

    What cannot be read is left out and counted. Raises InvalidModelError, DataError.
    """
    file = onnx_file.read(Path(model))
    spec = ModelSpec.from_json(file.metadata[onnx_file.SPEC_KEY], model)
    if not named:
        paths = [Path(folder, f"{number}.image") for number in range(len(read_self_test(file).cases))]
        for path, case in zip(paths, read_self_test(file).cases, strict=True):
            path.write_bytes(case.image)
        return {"images": list(map(str, paths)), "unreadable": 0}
    found = list(find_images(named, recursive))
    readable = [each.source for each in found if isinstance(each.source, str) and _is_readable(each.source, spec)]
    if not readable:
        raise DataError(f"{', '.join(named)}: no image can be read; name some, or none to take the model's own")
    return {"images": readable, "unreadable": len(found) - len(readable)}


def _is_readable(path: str, spec: ModelSpec) -> bool:
    try:
        decode_image(path, spec.preprocess)
    except ImageError:
        return False
    return True


def measure(
    model: str, images: list[str], device: str, threads: int | None, batch_size: int, seconds: float
) -> dict[str, Any]:
    """Measure throughput, memory, latency and stages, each for `seconds`.

    Raises InvalidModelError, MachineError, ImageError.
    """
    cores = threads or usable_cores()
    many = Classifier.load(model, device=device, threads=cores, workers=cores)
    throughput = _throughput(many, images, batch_size, seconds)
    peak = _peak_bytes()
    one = Classifier.load(model, device=device, threads=cores)
    where = here(one.file, device)
    return {
        "provider": one.provider,
        "warning": one.warning,
        "nodes": where.nodes,
        "size_bytes": one.file.size_bytes,
        "throughput": throughput,
        "peak_bytes": peak,
        "latency_ms": _latencies(lambda path: one.predict(path), images, seconds),
        "stages_ms": _stages(one, images, seconds),
    }


def _throughput(classifier: Classifier, images: list[str], batch_size: int, seconds: float) -> float:
    """Images per second, from the first one taken to the last answer; the first few are not counted."""
    for _ in classifier.predict_files(images[: 2 * batch_size], batch_size=batch_size):
        pass
    started = time.perf_counter()

    def until_the_end() -> Iterator[str]:
        given = 0
        while given < _LEAST_RUNS or time.perf_counter() - started < seconds:
            yield images[given % len(images)]
            given += 1

    count = sum(1 for _ in classifier.predict_files(until_the_end(), batch_size=batch_size))
    return count / (time.perf_counter() - started)


def _latencies(work: Callable[[str], object], images: list[str], seconds: float) -> list[float]:
    """Milliseconds of each run of `work`, one after another."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < _LEAST_RUNS + _WARM_UP_RUNS or time.perf_counter() < end:
        started = time.perf_counter()
        work(images[len(taken) % len(images)])
        taken.append(round(1000 * (time.perf_counter() - started), 4))
    return taken[_WARM_UP_RUNS:]


def _stages(classifier: Classifier, images: list[str], seconds: float) -> dict[str, float]:
    """Median milliseconds of what one image goes through; inference with every core, the rest on one."""
    taken: dict[str, list[float]] = {"read": [], "decode": [], "resize": [], "inference": []}
    preprocess = classifier.spec.preprocess

    def staged(path: str) -> None:
        times = [time.perf_counter()]
        content = Path(path).read_bytes()
        times.append(time.perf_counter())
        image = decode_image(content, preprocess)
        times.append(time.perf_counter())
        pixels = np.asarray(resize_image(image, preprocess)).reshape(1, *preprocess.shape)
        times.append(time.perf_counter())
        classifier.run(pixels)
        times.append(time.perf_counter())
        for stage, start, end in zip(taken, times, times[1:], strict=False):
            taken[stage].append(1000 * (end - start))

    _latencies(staged, images, seconds)
    return {stage: round(float(np.median(each[_WARM_UP_RUNS:])), 4) for stage, each in taken.items()}


def _peak_bytes() -> int | None:
    """The most memory that this process had, or None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@click.command("clf-bench")
@click.argument("order", type=click.Path(path_type=Path))
def command(options: Path) -> None:
    """Do what ORDER says, and print what came of it."""
    ((what, arguments),) = json.loads(options.read_bytes()).items()
    click.echo(json.dumps(lay_out(**arguments) if what == "lay_out" else measure(**arguments)))


if __name__ == "__main__":
    execute(command)
