"""Many images: the fraction of the processor's limit that the pipeline of clf-run reaches, and its memory.

usage: throughput.py [reach|processes|memory|photos]... [--data DIR] [--rounds N] [--ultralytics PYTHON]

The limit is cores / (processor seconds per image for decoding and resizing, and for inference in batches of 8),
measured on one thread. Limit and pipeline are measured in turn, because the machine's speed changes; the results are
medians.
--data is a folder with photos/ (JPEG files) and mnist/ (in torchvision's layout), by default that of CLF_TEST_DATA.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measure import run_in_turn, save_result, summarize
from PIL import Image

from clf_runtime import Classifier
from clf_runtime.machine import usable_cores
from clf_runtime.preprocess import pixels_from_image

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
CORES = usable_cores()
BATCH = 8
PHOTOS = 200  # from exec to the last result; twice as many for `reach`
PROCESSES = 8
WARM_UP_S, MEASURED_S = 2.0, 8.0


@dataclass(frozen=True)
class Workload:
    """A model and the images for it."""

    model: Path
    images: list[str]


def load_classifier(model: Path) -> Classifier:
    """Load a model as clf-run does for more than one image."""
    return Classifier.load(model, device="cpu", threads=CORES, workers=CORES)


def measure_limit(classifier: Classifier, images: Sequence[str]) -> float:
    """Return the images per second if every core decoded, resized and inferred at the speed of one thread alone."""
    seconds = 0.0
    for start in range(0, len(images), BATCH):
        started = time.thread_time()
        pixels = [pixels_from_image(image, classifier.spec.preprocess) for image in images[start : start + BATCH]]
        decoded = time.thread_time()
        batch = np.stack(pixels)
        ready = time.thread_time()
        classifier.run(batch)
        seconds += time.thread_time() - ready + decoded - started
    return CORES * len(images) / seconds


def measure_rate(classifier: Classifier, images: Sequence[str]) -> float:
    """Return the images per second of the pipeline."""
    started = time.perf_counter()
    count = sum(1 for _ in classifier.predict_files(images))
    return count / (time.perf_counter() - started)


def reach(load: Workload, rounds: int) -> dict[str, object]:
    """Measure limit, pipeline, limit, pipeline, … and compare each run with the mean of the limits around it."""
    classifier = load_classifier(load.model)
    measure_rate(classifier, load.images[:500])
    limits, rates = [measure_limit(classifier, load.images)], []
    for _ in range(rounds):
        rates.append(measure_rate(classifier, load.images))
        limits.append(measure_limit(classifier, load.images))
    ratios = [rate / (sum(around) / 2) for rate, around in zip(rates, itertools.pairwise(limits), strict=True)]
    return {
        "model": load.model.stem,
        "images": len(load.images),
        "limit": round(statistics.median(limits)),
        "images_per_second": round(statistics.median(rates)),
        "reached": round(statistics.median(ratios), 3),
        "reached_in_each_round": [round(ratio, 3) for ratio in ratios],
    }


def processes(load: Workload, rounds: int) -> dict[str, object]:
    """Measure one process, several, one, … and compare the several with the mean of the single ones around them.

    All of them run before the measurement starts and until after it ends: it compares how fast they run, not how long
    they need to warm up, nor how long the last one has both cores after the others have ended.
    """
    single, several = [_rate_of_processes(load, 1)], []
    for _ in range(rounds):
        several.append(_rate_of_processes(load, PROCESSES))
        single.append(_rate_of_processes(load, 1))
    ratios = [rate / (sum(around) / 2) for rate, around in zip(several, itertools.pairwise(single), strict=True)]
    return {
        "model": load.model.stem,
        "processes": PROCESSES,
        "one": round(statistics.median(single)),
        "together": round(statistics.median(several)),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_in_each_round": [round(ratio, 3) for ratio in ratios],
    }


# Loads the model, prints a line, waits for one, classifies, and counts the results between two moments.
_PROCESS = """
import itertools, os, sys, time
from clf_runtime import Classifier
model, cores, warm, measured, *images = sys.argv[1:]
classifier = Classifier.load(model, device="cpu", threads=int(cores), workers=int(cores))
print("ready", flush=True)
sys.stdin.readline()
begin = time.monotonic() + float(warm)
end = begin + float(measured)
count = 0
for _ in classifier.predict_files(itertools.cycle(images)):
    now = time.monotonic()
    if now > end:
        break
    count += now > begin
print(count, flush=True)
os._exit(0)
"""


def _rate_of_processes(load: Workload, count: int) -> float:
    command = [
        sys.executable,
        "-c",
        _PROCESS,
        str(load.model),
        str(CORES),
        str(WARM_UP_S),
        str(MEASURED_S),
        *load.images,
    ]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = sum(int(process.stdout.readline()) for process in started if process.stdout)
    for process in started:
        process.communicate()
    return results / MEASURED_S


def memory(load: Workload, few: int = 1_000, many: int = 100_000) -> dict[str, object]:
    """Compare the resident memory after many images with that after few, in the same process."""
    classifier = load_classifier(load.model)
    after = {}
    for count, _ in enumerate(classifier.predict_files(itertools.islice(itertools.cycle(load.images), many)), 1):
        if count in (few, many):
            after[count] = _resident_mb()
    growth = round(after[many] - after[few], 2)
    return {"model": load.model.stem, "after": few, "mb": after[few], "and_after": many, "growth_mb": growth}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 2)


def photos(load: Workload, rounds: int, ultralytics: str | None) -> list[dict[str, object]]:
    """Measure 200 photos from exec to the last result, beside Ultralytics if its Python is given."""
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(load.images[:PHOTOS]):
            (Path(folder) / f"{number:03}.jpg").symlink_to(path)
        ours = "clf-run FOLDER"
        commands = {ours: [str(BIN / "clf-run"), folder, "--model", str(load.model)]}
        if ultralytics:
            commands["Ultralytics"] = [ultralytics, str(HERE / "ultralytics_answers.py"), folder]
        return [{"photos": PHOTOS, **row} for row in summarize(run_in_turn(commands, rounds), baseline=ours)]


def mnist(data: Path, folder: Path) -> list[str]:
    """Write the 10,000 test images of MNIST as PNG files."""
    raw = next(data.rglob("t10k-images-idx3-ubyte")).read_bytes()
    paths = []
    for number, pixels in enumerate(np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)):
        paths.append(str(folder / f"{number:05}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return paths


def main() -> None:
    """Measure what was requested, by default everything, and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["reach", "processes", "memory", "photos", []])
    parser.add_argument("--data", default=os.environ.get("CLF_TEST_DATA", "data"), metavar="DIR")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ultralytics", metavar="PYTHON", help="of an environment that has Ultralytics")
    parser.add_argument("--models", default=str(Path(tempfile.gettempdir()) / "clf-benchmark-models"), metavar="DIR")
    arguments = parser.parse_args()
    if not (Path(arguments.data) / "photos").is_dir() or not (Path(arguments.data) / "mnist").is_dir():
        print(
            f"throughput.py: {arguments.data}: no photos/ or no mnist/ in this folder; "
            "name one that has both with --data or CLF_TEST_DATA"
        )
        return

    def exported(name: str) -> Path:
        # In a separate process: with torch in this one, each fork would copy 500 MB of page tables.
        process = subprocess.run(
            [sys.executable, HERE / "models.py", name, arguments.models], capture_output=True, text=True
        )
        if process.returncode:
            raise RuntimeError(process.stderr)
        return Path(process.stdout.strip())

    with tempfile.TemporaryDirectory() as folder:
        digits = mnist(Path(arguments.data) / "mnist", Path(folder))
        images = [str(path) for path in sorted((Path(arguments.data) / "photos").iterdir())]
        large = list(itertools.islice(itertools.cycle(images), PHOTOS))
        mobile, small = Workload(exported("mobilenet_v3_small"), large * 2), exported("small-resnet")
        packages = ["onnxruntime", "numpy", "pillow"]
        if "reach" in (arguments.what or "reach"):
            loads = (
                mobile,
                Workload(exported("resnet18"), large * 2),
                Workload(small, digits),
                Workload(exported("tiny-convnet"), digits),
            )
            save_result("throughput", [reach(load, arguments.rounds) for load in loads], packages)
        if "processes" in (arguments.what or "processes"):
            save_result("throughput_processes", processes(Workload(mobile.model, large), arguments.rounds), packages)
        if "memory" in (arguments.what or "memory"):
            save_result("throughput_memory", memory(Workload(small, digits)), packages)
        if "photos" in (arguments.what or "photos"):
            save_result("throughput_photos", photos(mobile, arguments.rounds, arguments.ultralytics), packages)


if __name__ == "__main__":
    main()
