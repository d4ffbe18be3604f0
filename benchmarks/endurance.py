"""One Classifier and very many images: does its memory stay what it is?

usage: endurance.py [--images N] [--model FILE] [--folder DIR]     (default: artifacts/, as `make demo` leaves it)

A third each by `predict`, by `predict_files` on one thread, and by threads, chunk after chunk in turn, with an image
that cannot be read now and then. Resident memory is told after each 100,000; the first 100,000 are the warm-up.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from measure import keep

from clf_runtime import Classifier, Failure, ImageError
from clf_runtime.machine import usable_cores

CHUNK = 1_000
STEP = 100_000
MOST_MB_PER_STEP = 1.0


def answered(alone: Classifier, together: Classifier, images: Iterator[str]) -> int:
    """Classify three chunks, one in each way, and give how many of them could be read."""
    read = 0
    for path in itertools.islice(images, CHUNK):
        try:
            alone.predict(path)
            read += 1
        except ImageError:
            pass
    for classifier in (alone, together):
        results = classifier.predict_files(itertools.islice(images, CHUNK))
        read += sum(not isinstance(result, Failure) for result in results)
    return read


def resident_mb() -> float:
    """Give what this process holds in memory, shared libraries included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Measure and keep; exit code 1 where memory grew by more than 1 MB in 100,000 images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--model", default="artifacts/model.onnx")
    parser.add_argument("--folder", default="artifacts/samples")
    asked = parser.parse_args()
    for needed in (asked.model, asked.folder):
        if not Path(needed).exists():
            parser.error(f"{needed}: there is none; `make demo` makes it")
    paths = [str(path) for path in sorted(Path(asked.folder).iterdir())]
    images = itertools.cycle([*paths * 7, "gone.png", __file__])
    cores = usable_cores()
    with Classifier.load(asked.model) as alone, Classifier.load(asked.model, threads=cores, workers=cores) as together:
        done, read, marks, started = 0, 0, [], time.perf_counter()
        while done < asked.images:
            read += answered(alone, together, images)
            done += 3 * CHUNK
            if done // STEP > len(marks) or done >= asked.images:
                marks.append({"images": done, "resident_mb": round(resident_mb(), 2)})
                print(marks[-1], file=sys.stderr)
    grown = (marks[-1]["resident_mb"] - marks[0]["resident_mb"]) / max(1, marks[-1]["images"] - marks[0]["images"])
    result = {
        "images": done,
        "of_them_read": read,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "grown_mb_per_100000_after_the_first": round(grown * STEP, 3),
        "marks": marks,
    }
    keep("endurance", result, ["onnxruntime", "numpy", "pillow"])
    sys.exit(grown * STEP > MOST_MB_PER_STEP)


if __name__ == "__main__":
    main()
