"""Time to accuracy: clf-train beside the tutorials' own way of doing it, in turn, on the same machine.

usage: train.py TUTORIALS DATA_ROOT [--case NAME]...

TUTORIALS is a script that trains as the tutorials do: `tutorials.py NUMBER DATA_ROOT EPOCHS` prints a JSON line per
epoch, {"train_s", "accuracy"}, its time without evaluation. DATA_ROOT has mnist/ (as torchvision lays it out) and
cifar10/ (train/ and test/ with a folder of JPEG files per class).

On our side the clock runs from the first look at the data to the end of the last step: finding, reading and decoding
every image (the held-out ones too), training, and validating after each epoch. Imports count on neither side.
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
    """An aim: to be so accurate within a share of the time that a tutorial takes for so many epochs."""

    name: str
    config: dict[str, object]  # of clf-train
    tutorial: str | None
    epochs: int  # the tutorial's
    accuracy: float
    within: float  # of the tutorial's time; seconds where there is no tutorial
    runs: int = 1  # of each side, in turn; the short ones vary most


CASES = (
    Case("digits 98.5 %", {"data": "digits"}, None, 0, 0.985, 20, runs=3),
    Case("MNIST 98 %", {"data": "mnist", "model": "tiny-convnet", "epochs": 0.3}, "002", 1, 0.98, 1 / 12, runs=3),
    Case("MNIST 99.6 %", {"data": "mnist"}, "002", 5, 0.996, 1),
    Case("CIFAR-10 52 %", {"data": "cifar10", "model": "tiny-convnet", "epochs": 0.5}, "004", 2, 0.52, 1 / 8, runs=3),
    Case("CIFAR-10 80 %", {"data": "cifar10", "model": "small-resnet", "epochs": 9}, "004", 2, 0.8, 3),
)


class Clock:
    """Watches a training: when it began to look at the data, and when its last step was done."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.read_s = self.trained_s = 0.0

    def decoding(self, images: int) -> None: ...
    def decoded(self, images: int) -> None: ...
    def stepped(self, images_done: int) -> None: ...
    def noticed(self, what: str) -> None: ...

    def trainer(self, config: str, epochs: float, images: int, done: int) -> None:
        """Everything was read."""
        self.read_s = time.perf_counter() - self.started

    def epoch(self, row: object) -> None:
        """An epoch was trained and validated."""
        self.trained_s = time.perf_counter() - self.started


def train_once(config: dict[str, object]) -> None:
    """In a process of its own: train, and print the times and the held-out accuracy."""
    import torchvision  # noqa: F401 (counted on neither side)

    from clf_train.allocator import keep_freed_memory
    from clf_train.config import TrainConfig
    from clf_train.training import train

    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        metrics = train(TrainConfig(**config), Path(folder), clock).spec.metrics  # type: ignore[arg-type]
    print(json.dumps({"seconds": clock.trained_s, "read_seconds": clock.read_s, "accuracy": metrics.accuracy}))


def ours(case: Case, data_root: Path) -> dict[str, float]:
    """Train as `case` says."""
    config = dict(case.config)
    if config["data"] == "mnist":
        config["data_root"] = str(data_root / "mnist")
    elif config["data"] == "cifar10":
        config["data"] = str(data_root / "cifar10")
    return _json_lines([sys.executable, __file__, "--once", json.dumps(config)])[-1]


def theirs(script: Path, case: Case, data_root: Path) -> dict[str, float]:
    """Train as the tutorial does; what it has after its last epoch."""
    assert case.tutorial is not None
    last = _json_lines([sys.executable, str(script), case.tutorial, str(data_root), str(case.epochs)])[-1]
    return {"seconds": last["train_s"], "accuracy": last["accuracy"]}


def _json_lines(command: list[str]) -> list[dict[str, float]]:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _read_all(folder: Path) -> None:
    """Have the system keep the files in memory: neither side should wait for the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()


def row(case: Case, our: list[dict[str, float]], their: list[dict[str, float]]) -> dict[str, object]:
    """Sum up a case: medians, and whether each run reached its accuracy in time."""
    seconds = statistics.median(one["seconds"] for one in our)
    result: dict[str, object] = {
        "case": case.name,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "seconds": round(seconds, 2),
        "of which reading": round(statistics.median(one["read_seconds"] for one in our), 2),
        "accuracies": [round(one["accuracy"], 4) for one in our],
        "runs": len(our),
    }
    limit = case.within
    if their:
        reference = statistics.median(one["seconds"] for one in their)
        result |= {
            "tutorial": f"{case.tutorial}, {case.epochs} epochs",
            "tutorial_seconds": round(reference, 1),
            "tutorial_accuracies": [one["accuracy"] for one in their],
            "times as fast": round(reference / seconds, 2),
        }
        limit *= reference
    result["wanted"] = f"{case.accuracy:.1%} within {limit:.1f} s"
    result["reached"] = seconds <= limit and min(one["accuracy"] for one in our) >= case.accuracy
    return result


def main() -> None:
    """Measure and keep."""
    if sys.argv[1:2] == ["--once"]:
        train_once(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tutorials", type=Path)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    asked = parser.parse_args()
    rows = []
    for case in CASES:
        if asked.case and case.name not in asked.case:
            continue
        our, their = [], []
        _read_all(asked.data_root)
        for _ in range(case.runs):
            our.append(ours(case, asked.data_root))
            if case.tutorial is not None:
                their.append(theirs(asked.tutorials, case, asked.data_root))
        rows.append(row(case, our, their))
        print(json.dumps(rows[-1], ensure_ascii=False), file=sys.stderr)
    # Of the cases that were not asked for, what was measured before stays, with the date at which it was.
    before = json.loads((RESULTS / "train.json").read_text()) if (RESULTS / "train.json").exists() else {"result": []}
    known = {each["case"]: each for each in [*before["result"], *rows]}
    ordered = [known[case.name] for case in CASES if case.name in known]
    save_result("train", ordered, ["torch", "torchvision", "numpy", "pillow"])


if __name__ == "__main__":
    main()
