"""Time to accuracy: clf-train beside the tutorials' own scripts, in turn, on the same machine.

usage: train.py TUTORIALS DATA_ROOT [--case NAME]...

TUTORIALS is a script that trains as the tutorials do: `tutorials.py NUMBER DATA_ROOT EPOCHS` prints a JSON line per
epoch, {"train_s", "accuracy"}, with the time without evaluation. DATA_ROOT contains mnist/ (in torchvision's layout)
and cifar10/ (train/ and test/ with a folder of JPEG files per class).

The clock of clf-train runs from the first access to the data to the end of the last step: finding, reading and decoding
every image (those of the test split too), training, and validation after each epoch. Imports count on neither side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from measure import RESULTS, save_result


@dataclass(frozen=True)
class Case:
    """A target: an accuracy within a share of the time that a tutorial takes for some epochs."""

    name: str
    data: str
    model: str
    our_epochs: float | None  # None for the recipe's
    tutorial: str | None
    epochs: int  # the tutorial's
    accuracy: float
    within: float  # of the tutorial's time; seconds if there is no tutorial
    runs: int = 1  # of each side, in turn; short runs vary most


CASES = (
    Case("digits 98.5 %", "digits", "auto", None, None, 0, 0.985, 20, runs=3),
    Case("MNIST 98 %", "mnist", "tiny-convnet", 0.3, "002", 1, 0.98, 1 / 12, runs=3),
    Case("MNIST 99.6 %", "mnist", "auto", None, "002", 5, 0.996, 1),
    Case("CIFAR-10 52 %", "cifar10", "tiny-convnet", 0.5, "004", 2, 0.52, 1 / 8, runs=3),
    Case("CIFAR-10 80 %", "cifar10", "small-resnet", 9, "004", 2, 0.8, 3),
)


class Clock:
    """Measures a training run: until the data is decoded, and until the last epoch has ended."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.read_s = self.trained_s = 0.0

    def on_decode_start(self, images: int) -> None: ...
    def on_decode(self, images: int) -> None: ...
    def on_step(self, images_done: int) -> None: ...
    def on_warning(self, message: str) -> None: ...

    def on_train_start(self, summary: str, epochs: float, images: int, images_done: int) -> None:
        """Everything is decoded."""
        self.read_s = time.perf_counter() - self.started

    def on_epoch(self, row: object) -> None:
        """An epoch is trained and validated."""
        self.trained_s = time.perf_counter() - self.started


def train_once(case: Case, data_root: Path) -> None:
    """Train in a separate process, and print the times and the accuracy on the test split."""
    import torchvision  # noqa: F401 (counted on neither side)

    from clf_train.allocator import keep_freed_memory
    from clf_train.config import DataSource, TrainConfig
    from clf_train.training import train

    keep_freed_memory()
    source = DataSource(case.data)
    if case.data == "mnist":
        source = DataSource("mnist", str(data_root / "mnist"))
    elif case.data == "cifar10":  # the folder of JPEG files, not the named data set
        source = DataSource(str(data_root / "cifar10"))
    config = TrainConfig(source, model=case.model, epochs=case.our_epochs)
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        metrics = train(config, Path(folder), clock).spec.metrics
    print(json.dumps({"seconds": clock.trained_s, "read_seconds": clock.read_s, "accuracy": metrics.accuracy}))


def measure_ours(case: Case, data_root: Path) -> dict[str, float]:
    """Train with clf-train."""
    return _read_json_lines([sys.executable, __file__, "--once", case.name, str(data_root)])[-1]


def measure_tutorial(script: Path, case: Case, data_root: Path) -> dict[str, float]:
    """Train as the tutorial does; return the result of its last epoch."""
    assert case.tutorial is not None
    last = _read_json_lines([sys.executable, str(script), case.tutorial, str(data_root), str(case.epochs)])[-1]
    return {"seconds": last["train_s"], "accuracy": last["accuracy"]}


def _read_json_lines(command: list[str]) -> list[dict[str, float]]:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _read_all(folder: Path) -> None:
    """Read all files into the system's cache, so that neither side waits for the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()


def summarize(case: Case, our: list[dict[str, float]], their: list[dict[str, float]]) -> dict[str, object]:
    """Return the row of a case: medians, and whether every run reached the target."""
    seconds = statistics.median(run["seconds"] for run in our)
    result: dict[str, object] = {
        "case": case.name,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "seconds": round(seconds, 2),
        "reading_seconds": round(statistics.median(run["read_seconds"] for run in our), 2),
        "accuracies": [round(run["accuracy"], 4) for run in our],
        "runs": len(our),
    }
    limit = case.within
    if their:
        reference = statistics.median(run["seconds"] for run in their)
        result |= {
            "tutorial": f"{case.tutorial}, {case.epochs} epochs",
            "tutorial_seconds": round(reference, 1),
            "tutorial_accuracies": [run["accuracy"] for run in their],
            "speedup": round(reference / seconds, 2),
        }
        limit *= reference
    result["target"] = f"{case.accuracy:.1%} within {limit:.1f} s"
    result["reached"] = seconds <= limit and min(run["accuracy"] for run in our) >= case.accuracy
    return result


def main() -> None:
    """Measure and save the results."""
    if sys.argv[1:2] == ["--once"]:
        case = next(case for case in CASES if case.name == sys.argv[2])
        train_once(case, Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tutorials", type=Path)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    arguments = parser.parse_args()
    rows = []
    for case in CASES:
        if arguments.case and case.name not in arguments.case:
            continue
        our, their = [], []
        _read_all(arguments.data_root)
        for _ in range(case.runs):
            our.append(measure_ours(case, arguments.data_root))
            if case.tutorial is not None:
                their.append(measure_tutorial(arguments.tutorials, case, arguments.data_root))
        rows.append(summarize(case, our, their))
        print(json.dumps(rows[-1], ensure_ascii=False), file=sys.stderr)
    # Cases that were not selected keep their previous results, with their dates.
    before = json.loads((RESULTS / "train.json").read_text()) if (RESULTS / "train.json").exists() else {"result": []}
    known = {row["case"]: row for row in [*before["result"], *rows]}
    ordered = [known[case.name] for case in CASES if case.name in known]
    save_result("train", ordered, ["torch", "torchvision", "numpy", "pillow"])


if __name__ == "__main__":
    main()
