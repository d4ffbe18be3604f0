"""Many images: what clf-run's pipeline reaches of what the processor allows, and what it needs for that.

usage: throughput.py [reach|processes|memory|photos]... [--data DIR] [--rounds N] [--ultralytics PYTHON]

The limit is cores / (processor seconds per image of decoding with resizing, and of inference in batches of 8), each
measured alone on one thread. It and the pipeline are measured in turn, since the machine drifts; medians. --data has
photos/ with JPEG files, and mnist/ in torchvision's layout; by default what CLF_TEST_DATA names.
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
from measure import in_turn, keep, table
from PIL import Image

from clf_runtime import Classifier
from clf_runtime.machine import usable_cores
from clf_runtime.preprocess import pixels_from_image

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
CORES = usable_cores()
BATCH = 8
PHOTOS = 200  # from exec to the last answer; twice as many for what is reached
TOGETHER = 8  # processes
WARM, MEASURED = 2.0, 8.0  # seconds


@dataclass(frozen=True)
class Load:
    """A model and the images for it."""

    model: Path
    images: list[str]


def classifier_for(model: Path) -> Classifier:
    """Open a model as clf-run does for more than one image."""
    return Classifier.load(model, device="cpu", threads=CORES, workers=CORES)


def limit(classifier: Classifier, images: Sequence[str]) -> float:
    """Give images per second, if every core did nothing but decode, resize and infer as one thread does alone."""
    seconds = 0.0
    for start in range(0, len(images), BATCH):
        started = time.thread_time()
        pixels = [pixels_from_image(each, classifier.spec.preprocess) for each in images[start : start + BATCH]]
        decoded = time.thread_time()
        batch = np.stack(pixels)
        ready = time.thread_time()
        classifier.run(batch)
        seconds += time.thread_time() - ready + decoded - started
    return CORES * len(images) / seconds


def rate(classifier: Classifier, images: Sequence[str]) -> float:
    """Give images per second of the pipeline."""
    started = time.perf_counter()
    count = sum(1 for _ in classifier.predict_files(images))
    return count / (time.perf_counter() - started)


def reach(load: Load, rounds: int) -> dict[str, object]:
    """Measure limit, pipeline, limit, pipeline, … and relate each run to the mean of the limits around it."""
    classifier = classifier_for(load.model)
    rate(classifier, load.images[:500])
    limits, rates = [limit(classifier, load.images)], []
    for _ in range(rounds):
        rates.append(rate(classifier, load.images))
        limits.append(limit(classifier, load.images))
    shares = [given / (sum(around) / 2) for given, around in zip(rates, itertools.pairwise(limits), strict=True)]
    return {
        "model": load.model.stem,
        "images": len(load.images),
        "limit": round(statistics.median(limits)),
        "images_per_second": round(statistics.median(rates)),
        "reached": round(statistics.median(shares), 3),
        "reached_in_each_round": [round(each, 3) for each in shares],
    }


def processes(load: Load, rounds: int) -> dict[str, object]:
    """Let one process classify, then several, one, … and relate each to the mean of the single ones around it.

    All go on for as long as is measured, and begin before: what is compared is how fast they run, not how soon
    they are warm, nor how long the last one is alone with two cores after seven have ended.
    """
    alone, together = [_rate_of_processes(load, 1)], []
    for _ in range(rounds):
        together.append(_rate_of_processes(load, TOGETHER))
        alone.append(_rate_of_processes(load, 1))
    shares = [several / (sum(around) / 2) for several, around in zip(together, itertools.pairwise(alone), strict=True)]
    return {
        "model": load.model.stem,
        "processes": TOGETHER,
        "one": round(statistics.median(alone)),
        "together": round(statistics.median(together)),
        "kept": round(statistics.median(shares), 3),
        "kept_in_each_round": [round(each, 3) for each in shares],
    }


# Opens the model, says so, waits for a line, and classifies; counts what it gives between two moments from then on.
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


def _rate_of_processes(load: Load, count: int) -> float:
    command = [sys.executable, "-c", _PROCESS, str(load.model), str(CORES), str(WARM), str(MEASURED), *load.images]
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
    answered = sum(int(process.stdout.readline()) for process in started if process.stdout)
    for process in started:
        process.communicate()
    return answered / MEASURED


def memory(load: Load, few: int = 1_000, many: int = 100_000) -> dict[str, object]:
    """Compare the resident memory after many images with that after few, in the same run."""
    classifier = classifier_for(load.model)
    after = {}
    for count, _ in enumerate(classifier.predict_files(itertools.islice(itertools.cycle(load.images), many)), 1):
        if count in (few, many):
            after[count] = _resident_mb()
    grown = round(after[many] - after[few], 2)
    return {"model": load.model.stem, "after": few, "mb": after[few], "and_after": many, "grown_mb": grown}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 2)


def photos(load: Load, rounds: int, ultralytics: str | None) -> list[dict[str, object]]:
    """Time 200 photographs from exec to the last answer, beside Ultralytics where its Python is named."""
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(load.images[:PHOTOS]):
            (Path(folder) / f"{number:03}.jpg").symlink_to(path)
        ours = "clf-run FOLDER"
        commands = {ours: [str(BIN / "clf-run"), folder, "--model", str(load.model)]}
        if ultralytics:
            commands["Ultralytics"] = [ultralytics, str(HERE / "ultralytics_answers.py"), folder]
        return [{"photos": PHOTOS, **row} for row in table(in_turn(commands, rounds), floor=ours)]


def mnist(data: Path, folder: Path) -> list[str]:
    """Write the 10,000 test images of MNIST as PNG files."""
    raw = next(data.rglob("t10k-images-idx3-ubyte")).read_bytes()
    paths = []
    for number, pixels in enumerate(np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)):
        paths.append(str(folder / f"{number:05}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return paths


def main() -> None:
    """Measure what was asked for, all by default, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["reach", "processes", "memory", "photos", []])
    parser.add_argument("--data", default=os.environ.get("CLF_TEST_DATA", "data"), metavar="DIR")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ultralytics", metavar="PYTHON", help="of an environment that has Ultralytics")
    parser.add_argument("--models", default=str(Path(tempfile.gettempdir()) / "clf-benchmark-models"), metavar="DIR")
    asked = parser.parse_args()
    if not (Path(asked.data) / "photos").is_dir() or not (Path(asked.data) / "mnist").is_dir():
        print(
            f"throughput.py: {asked.data} has no photos/ or no mnist/; --data or CLF_TEST_DATA names a folder with both"
        )
        return

    def exported(name: str) -> Path:
        # In a process of its own: torch in this one would have each fork copy 500 MB of page tables.
        made = subprocess.run([sys.executable, HERE / "models.py", name, asked.models], capture_output=True, text=True)
        if made.returncode:
            raise RuntimeError(made.stderr)
        return Path(made.stdout.strip())

    with tempfile.TemporaryDirectory() as folder:
        digits = mnist(Path(asked.data) / "mnist", Path(folder))
        images = [str(path) for path in sorted((Path(asked.data) / "photos").iterdir())]
        large = list(itertools.islice(itertools.cycle(images), PHOTOS))
        mobile, small = Load(exported("mobilenet_v3_small"), large * 2), exported("small-resnet")
        packages = ["onnxruntime", "numpy", "pillow"]
        if "reach" in (asked.what or "reach"):
            loads = (
                mobile,
                Load(exported("resnet18"), large * 2),
                Load(small, digits),
                Load(exported("tiny-convnet"), digits),
            )
            keep("throughput", [reach(each, asked.rounds) for each in loads], packages)
        if "processes" in (asked.what or "processes"):
            keep("throughput_processes", processes(Load(mobile.model, large), asked.rounds), packages)
        if "memory" in (asked.what or "memory"):
            keep("throughput_memory", memory(Load(small, digits)), packages)
        if "photos" in (asked.what or "photos"):
            keep("throughput_photos", photos(mobile, asked.rounds, asked.ultralytics), packages)


if __name__ == "__main__":
    main()
