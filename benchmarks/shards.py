"""Shards as training data: folder, tar shards and Parquet in turn; one process and two; the index.

usage: shards.py FOLDER [--images N] [--size PIXELS] [--runs N] [--parts reading processes index] [--save NAME]

FOLDER contains a folder of images for each class. At most N of them are copied in a random order into a folder, into
tar shards and into Parquet files, each with 1,000 images per file.

`reading`: the pass over all images before training and then an epoch of batches, without a network and with --cache
none, in turn from each of the three, also with the files dropped from the system's cache. `processes`: clf-train on tar
shards, with --cache none, on one core, on two cores in one process, and on two with a process each; the second of two
epochs.
`index`: time and memory for 100,000 samples of 1 byte.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
from measure import save_result
from pyarrow import parquet

PARTS = ("reading", "processes", "index")
KINDS = ("folder", "tar", "parquet")
PER_SHARD = 1000
INDEXED = 100_000
MODEL = "small-resnet"


@dataclass(frozen=True)
class Way:
    """How the same training is spread; each core has one thread."""

    processes: int
    cores: int


WAYS = (Way(1, 1), Way(1, 2), Way(2, 2))


def write_tar(path: Path, samples: Sequence[tuple[str, bytes, str]]) -> None:
    """Write a shard of WebDataset: samples are (key with extension, content, label)."""
    with tarfile.open(path, "w") as archive:
        for name, content, label in samples:
            for member, data in ((name, content), (f"{Path(name).stem}.cls", label.encode())):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def write_parquet(path: Path, samples: Sequence[tuple[str, bytes, str]]) -> None:
    """Write the same as the library datasets does, except that labels are names."""
    images = [{"bytes": content, "path": name} for name, content, _ in samples]
    table = pyarrow.table({"image": images, "label": [label for _, _, label in samples]})
    parquet.write_table(table, path, row_group_size=100)


def copy_images(source: Path, target: Path, count: int) -> int:
    """Write the data in all three forms; return the number of images."""
    paths = sorted(path for path in source.rglob("*") if path.is_file())
    random.Random(0).shuffle(paths)
    samples = [(f"{n:08}{path.suffix}", path.read_bytes(), path.parent.name) for n, path in enumerate(paths[:count])]
    for kind in KINDS:
        (target / kind).mkdir()
    for name, content, label in samples:
        (target / "folder" / label).mkdir(exist_ok=True)
        (target / "folder" / label / name).write_bytes(content)
    for start in range(0, len(samples), PER_SHARD):
        part = samples[start : start + PER_SHARD]
        write_tar(target / f"tar/{start // PER_SHARD:05}.tar", part)
        write_parquet(target / f"parquet/{start // PER_SHARD:05}.parquet", part)
    return len(samples)


def read_once(data: Path, is_cold: bool, size: int) -> None:
    """Read everything as a training does, in this process, and print how long it took."""
    import numpy as np
    import torch

    from clf_runtime.spec import Preprocess
    from clf_train.config import DataSource, load_dataset
    from clf_train.data.cache import PixelCache
    from clf_train.data.loading import decode_dataset
    from clf_train.engine.batches import BatchLoader

    times = [time.perf_counter()]

    def lap() -> None:
        times.append(time.perf_counter())
        if is_cold:
            drop_from_cache(data)

    lap()
    dataset = load_dataset(DataSource(str(data)))
    lap()
    preprocess = Preprocess("RGB", size, size, "crop", 1.0, "bilinear", (255, 255, 255))
    loaded = decode_dataset(dataset, preprocess, PixelCache("none", data))
    lap()
    loader = BatchLoader(loaded.train, -(-loaded.train.total // 64), 0, torch.device("cpu"))
    assert sum(len(batch.targets) for batch in loader.load_epoch(0)) == len(dataset.train)
    lap()
    seconds = np.diff(times)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    images = sum(map(len, dataset.splits))
    rates = {"find_s": float(seconds[1]), "pass": images / seconds[2], "epoch": len(dataset.train) / seconds[3]}
    print(json.dumps(rates | {"cpu_s": sum(part.ru_utime + part.ru_stime for part in usage)}))


def drop_from_cache(folder: Path) -> None:
    """Let the system forget the content of all files."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure_reading(folder: Path, images: int, size: int, runs: int) -> list[dict[str, object]]:
    """Read from each kind of data in turn; return medians."""
    measured: dict[tuple[str, bool], list[dict[str, float]]] = {}
    for _ in range(runs):
        for is_cold in (False, True):
            for kind in KINDS:
                command = [sys.executable, __file__, str(folder / kind), "--once", "--size", str(size)]
                done = subprocess.run([*command, *["--cold"] * is_cold], check=True, capture_output=True, text=True)
                measured.setdefault((kind, is_cold), []).append(json.loads(done.stdout))
    rows = []
    for (kind, is_cold), results in measured.items():
        folders = measured["folder", is_cold]
        ratios = [one["epoch"] / other["epoch"] for one, other in zip(results, folders, strict=True)]
        rows.append(
            {
                "data": kind,
                "files_in_cache": not is_cold,
                "find_s": round(statistics.median(result["find_s"] for result in results), 2),
                "pass_images_per_s": round(statistics.median(result["pass"] for result in results)),
                "epoch_images_per_s": round(statistics.median(result["epoch"] for result in results)),
                "epoch_ratio_to_folder": round(statistics.median(ratios), 2),
                "cpu_ms_per_image": round(1000 * statistics.median(result["cpu_s"] for result in results) / images, 3),
                "runs": len(results),
            }
        )
    return rows


def train(data: Path, way: Way) -> dict[str, float]:
    """Train for two epochs; return the seconds of the second one, the processor time of all of it, and the accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        torchrun = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--no-python"]
        options = ["--model", MODEL, "--epochs", "2", "--cache", "none", "--data", str(data), "-a", folder]
        clf_train = [str(Path(sys.executable).parent / "clf-train"), *options]
        environment = os.environ | {"OMP_NUM_THREADS": str(way.cores // way.processes)}
        command = [*torchrun, "--nproc-per-node", str(way.processes), *clf_train]
        cores = os.sched_getaffinity(0)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        os.sched_setaffinity(0, sorted(cores)[: way.cores])
        try:
            subprocess.run(command, check=True, capture_output=True, env=environment)
        finally:
            os.sched_setaffinity(0, cores)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        rows = list(csv.DictReader((Path(folder) / "history.csv").open()))
        spec = json.loads((Path(folder) / "model.json").read_text())
    return {
        "epoch_s": float(rows[-1]["seconds"]),
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "test_accuracy": spec["metrics"]["accuracy"],
    }


def measure_processes(data: Path, runs: int) -> list[dict[str, object]]:
    """Train in all ways in turn; return medians."""
    measured: dict[Way, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(runs):
        for way, results in measured.items():
            results.append(train(data, way))
    rows: list[dict[str, object]] = []
    for way, results in measured.items():
        ratios = [one["epoch_s"] / two["epoch_s"] for one, two in zip(measured[WAYS[0]], results, strict=True)]
        rows.append(
            {
                "processes": way.processes,
                "cores": way.cores,
                "model": MODEL,
                "epoch_s": round(statistics.median(result["epoch_s"] for result in results), 2),
                "speedup": round(statistics.median(ratios), 2),
                "cpu_s_of_the_command": round(statistics.median(result["cpu_s"] for result in results), 1),
                "test_accuracies": [round(result["test_accuracy"], 4) for result in results],
                "runs": len(results),
            }
        )
    return rows


def index_once(data: Path) -> None:
    """Find the images of shards, and print the time and the memory that it took."""
    from clf_runtime.labeled import find_labeled_images

    find_labeled_images(data / "small")  # imports
    before = resident_bytes()
    started, started_cpu = time.perf_counter(), time.process_time()
    images = find_labeled_images(data / "large")
    seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    each = (resident_bytes() - before) / len(images)
    print(
        json.dumps(
            {
                "seconds": round(seconds, 1),
                "cpu_us_per_image": round(cpu / len(images) * 1e6, 1),
                "bytes_per_image": round(each),
            }
        )
    )


def resident_bytes() -> int:
    """Return the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_index(folder: Path) -> dict[str, object]:
    """Write shards with many tiny samples, and index them."""
    result: dict[str, object] = {"samples": INDEXED}
    for kind, write in (("tar", write_tar), ("parquet", write_parquet)):
        for size, count in (("small", 10), ("large", INDEXED)):
            target = folder / f"index-{kind}/{size}"
            target.mkdir(parents=True)
            for start in range(0, count, 10 * PER_SHARD):
                rows = range(start, min(count, start + 10 * PER_SHARD))
                write(target / f"{start:08}.{kind}", [(f"{row:08}.jpg", b"x", str(row % 10)) for row in rows])
        command = [sys.executable, __file__, str(folder / f"index-{kind}"), "--index-once"]
        result[kind] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def main() -> None:
    """Measure and save the results."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--save", default="shards")
    parser.add_argument("--note", default="")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    for name in ("--once", "--cold", "--index-once"):
        parser.add_argument(name, action="store_true")
    options = parser.parse_args()
    if options.once:
        read_once(options.folder, options.cold, options.size)
        return
    if options.index_once:
        index_once(options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        images = copy_images(options.folder, work, options.images)
        result: dict[str, object] = {"images": images, "size": options.size, "note": options.note}
        if "reading" in options.parts:
            result["reading"] = measure_reading(work, images, options.size, options.runs)
        if "processes" in options.parts:
            result["processes"] = measure_processes(work / "tar", options.runs)
        if "index" in options.parts:
            result["index"] = measure_index(work)
    save_result(options.save, result, ("clf-edge", "torch", "pyarrow", "pillow"))


if __name__ == "__main__":
    main()
