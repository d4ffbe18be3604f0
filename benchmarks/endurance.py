"""One Classifier and a million images: does its memory grow?

usage: endurance.py [--images N] [--model FILE] [--folder DIR]     (default: artifacts/ from `make demo`)

One third each is classified by `predict`, by `predict_files` on one thread, and by `predict_files` on all cores, in
turn; some of the images cannot be read. Resident memory is printed every 100,000 images; the first 100,000 are the
warm-up.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from measure import save_result

from clf_runtime import Classifier, Failure, ImageError
from clf_runtime.machine import usable_cores

CHUNK = 1_000
STEP = 100_000
MAX_MB_PER_STEP = 1.0


def classify_chunks(single: Classifier, parallel: Classifier, images: Iterator[str]) -> int:
    """Classify three chunks, one by each method, and return the number of images that could be read."""
    read = 0
    for path in itertools.islice(images, CHUNK):
        with contextlib.suppress(ImageError):  # counted as not read
            single.predict(path)
            read += 1
    for classifier in (single, parallel):
        results = classifier.predict_files(itertools.islice(images, CHUNK))
        read += sum(not isinstance(result, Failure) for result in results)
    return read


def resident_mb() -> float:
    """Return the resident memory of this process, including shared libraries."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Measure, and save the result. The exit code is 1 if memory grows by more than 1 MB per 100,000 images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--model", default="artifacts/model.onnx")
    parser.add_argument("--folder", default="artifacts/samples")
    arguments = parser.parse_args()
    for path in (arguments.model, arguments.folder):
        if not Path(path).exists():
            parser.error(f"{path}: not found; create it with `make demo`")
    paths = [str(path) for path in sorted(Path(arguments.folder).iterdir())]
    images = itertools.cycle([*paths * 7, "gone.png", __file__])
    cores = usable_cores()
    with (
        Classifier.load(arguments.model) as single,
        Classifier.load(arguments.model, threads=cores, workers=cores) as parallel,
    ):
        done, read, marks, started = 0, 0, [], time.perf_counter()
        while done < arguments.images:
            read += classify_chunks(single, parallel, images)
            done += 3 * CHUNK
            if done // STEP > len(marks) or done >= arguments.images:
                marks.append({"images": done, "resident_mb": round(resident_mb(), 2)})
                print(marks[-1], file=sys.stderr)
    growth = (marks[-1]["resident_mb"] - marks[0]["resident_mb"]) / max(1, marks[-1]["images"] - marks[0]["images"])
    result = {
        "images": done,
        "images_read": read,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "growth_mb_per_100000_after_the_first": round(growth * STEP, 3),
        "marks": marks,
    }
    save_result("endurance", result, ["onnxruntime", "numpy", "pillow"])
    sys.exit(growth * STEP > MAX_MB_PER_STEP)


if __name__ == "__main__":
    main()
