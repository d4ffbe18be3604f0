"""One process of `clf-bench`: prepares the images, or measures one model, and prints the result as JSON.

usage: python -m clf_runtime.bench.worker FILE, where FILE contains {"task": NAME, "fields": …} as JSON
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np

from clf_runtime import onnx_file
from clf_runtime.bench.measure import STAGES, ImageSet, MeasureTask, PrepareTask, WarmRun
from clf_runtime.classifier import Classifier
from clf_runtime.command import execute
from clf_runtime.diagnostics.info import find_placement
from clf_runtime.diagnostics.selftest import read_self_test
from clf_runtime.errors import DataError, ImageError
from clf_runtime.machine import usable_cores
from clf_runtime.preprocess import decode_image, resize_image
from clf_runtime.session import silence_log
from clf_runtime.sources import find_images
from clf_runtime.spec import Preprocess

_MIN_RUNS = 20  # of everything that is timed; fewer have no percentiles
_WARM_UP_RUNS = 3


def prepare_images(task: PrepareTask) -> ImageSet:
    """Return the images to measure with. Those that cannot be read are counted. Raises InvalidModelError, DataError."""
    file = onnx_file.read_trusted(Path(task.model), keys=())
    if not task.arguments:
        cases = read_self_test(file).cases
        paths = [Path(task.folder, f"{number}.image") for number in range(len(cases))]
        for path, case in zip(paths, cases, strict=True):
            path.write_bytes(case.image)
        return ImageSet(tuple(map(str, paths)), unreadable=0)
    contents = [source.content for source in find_images(task.arguments, task.recursive)]
    preprocess = file.spec.preprocess
    readable = [content for content in contents if isinstance(content, str) and _is_readable(content, preprocess)]
    if not readable:
        raise DataError(
            f"{', '.join(task.arguments)}: no image can be read; name other images, or none to use the model's own"
        )
    return ImageSet(tuple(readable), unreadable=len(contents) - len(readable))


def measure(task: MeasureTask) -> WarmRun:
    """Measure throughput, memory, latency and stages. Raises InvalidModelError, MachineError, ImageError."""
    cores = task.threads or usable_cores()
    parallel = Classifier.load(task.model, device=task.device, threads=cores, workers=cores)
    throughput = _measure_throughput(parallel, task)
    peak_bytes = _peak_bytes()
    single = Classifier.load(task.model, device=task.device, threads=cores)
    return WarmRun(
        provider=single.provider,
        warning=single.warning,
        nodes=find_placement(single.file, task.device).nodes,
        size_bytes=single.file.size_bytes,
        throughput=throughput,
        peak_bytes=peak_bytes,
        latency_ms=_measure_latency(single.predict, task.paths, task.seconds),
        stages_ms=_measure_stages(single, task),
    )


def _is_readable(path: str, preprocess: Preprocess) -> bool:
    try:
        decode_image(path, preprocess)
    except ImageError:
        return False
    return True


def _measure_throughput(classifier: Classifier, task: MeasureTask) -> float:
    """Return the images per second from the first one read to the last result, after a warm-up."""
    for _ in classifier.predict_files(task.paths[: 2 * task.batch_size], batch_size=task.batch_size):
        pass
    started = time.perf_counter()

    def paths_until_the_end() -> Iterator[str]:
        count = 0
        while count < _MIN_RUNS or time.perf_counter() - started < task.seconds:
            yield task.paths[count % len(task.paths)]
            count += 1

    count = sum(1 for _ in classifier.predict_files(paths_until_the_end(), batch_size=task.batch_size))
    return count / (time.perf_counter() - started)


def _measure_latency(work: Callable[[str], object], paths: Sequence[str], seconds: float) -> list[float]:
    """Return the milliseconds of each call of `work`, one after another."""
    latency_ms: list[float] = []
    end = time.perf_counter() + seconds
    while len(latency_ms) < _MIN_RUNS + _WARM_UP_RUNS or time.perf_counter() < end:
        started = time.perf_counter()
        work(paths[len(latency_ms) % len(paths)])
        latency_ms.append(round(1000 * (time.perf_counter() - started), 4))
    return latency_ms[_WARM_UP_RUNS:]


def _measure_stages(classifier: Classifier, task: MeasureTask) -> dict[str, float]:
    """Return the median milliseconds of each stage of one image: inference on all cores, the others on one."""
    durations_ms: dict[str, list[float]] = {stage: [] for stage in STAGES}
    preprocess = classifier.spec.preprocess

    def classify_in_stages(path: str) -> None:
        times = [time.perf_counter()]
        content = Path(path).read_bytes()
        times.append(time.perf_counter())
        image = decode_image(content, preprocess)
        times.append(time.perf_counter())
        pixels = np.asarray(resize_image(image, preprocess)).reshape(1, *preprocess.shape)
        times.append(time.perf_counter())
        classifier.run(pixels)
        times.append(time.perf_counter())
        for stage, start, end in zip(STAGES, times, times[1:], strict=False):
            durations_ms[stage].append(1000 * (end - start))

    _measure_latency(classify_in_stages, task.paths, task.seconds)
    return {stage: round(float(np.median(values[_WARM_UP_RUNS:])), 4) for stage, values in durations_ms.items()}


def _peak_bytes() -> int | None:
    """Return the peak memory of this process, or None if the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@click.command("clf-bench")
@click.argument("file", type=click.Path(path_type=Path))
def command(file: Path) -> None:
    """Do the task in FILE, and print its result."""
    content = json.loads(file.read_bytes())
    silence_log()
    result: ImageSet | WarmRun
    if content["task"] == PrepareTask.__name__:
        result = prepare_images(PrepareTask(**content["fields"]))
    else:
        result = measure(MeasureTask(**content["fields"]))
    click.echo(json.dumps(asdict(result)))


if __name__ == "__main__":
    execute(command)
