"""Accuracy and time of transfer learning from a folder of photos, beside a plain fine-tuning script.

usage: transfer.py DATA [--budgets 60s 5min 15min] [--seeds N] [--plain-epochs 3 10] [--published-epochs 2]
                   [--per-class 20 50 100]

DATA has train/ and test/ (CLF_TEST_DATA contains clothing/). Times are from exec to the finished model. --per-class
draws that many training images of each class, and gives the plain script as much time as clf-train took.
--published-epochs also runs the plain script with the published network (pip install efficientnet-lite-pytorch).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from measure import save_result

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent


def train(data: Path, seed: int, options: list[str]) -> dict[str, float]:
    """Run clf-train; return the seconds and the accuracy on the test split."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [BIN / "clf-train", "--data", data, "--seed", str(seed), "-a", folder, *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        metrics = json.loads((Path(folder) / "model.json").read_text())["metrics"]
    return {"seconds": round(seconds, 1), "accuracy": round(metrics["accuracy"], 4)}


def train_plainly(data: Path, seed: int, epochs: int, *options: str) -> list[dict[str, float]]:
    """Run the plain script; return the seconds and the accuracy after each epoch."""
    script = HERE / "plain_fine_tuning.py"
    command = [sys.executable, script, data, "--epochs", str(epochs), "--seed", str(seed), *options]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def summarize(name: str, runs: list[dict[str, float]]) -> dict[str, object]:
    """Return one row of the results: medians, and every run."""
    row = {
        "run": name,
        "seconds": median(run["seconds"] for run in runs),
        "accuracy": median(run["accuracy"] for run in runs),
        "runs": runs,
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def draw_images(data: Path, folder: Path, per_class: int, seed: int) -> Path:
    """Link some training images of each class, and all test images, into a folder."""
    for label in sorted(path for path in (data / "train").iterdir() if path.is_dir()):
        target = folder / "train" / label.name
        target.mkdir(parents=True)
        files = sorted(label.iterdir())
        for file in random.Random(seed).sample(files, min(per_class, len(files))):
            (target / file.name).symlink_to(file.resolve())
    (folder / "test").symlink_to((data / "test").resolve())
    return folder


def compare_small(data: Path, per_class: int, seeds: int) -> list[dict[str, object]]:
    """Train on few images per class, and give the plain script the same time."""
    ours, plain = [], []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            drawn = draw_images(data, Path(folder), per_class, seed)
            ours.append(train(drawn, seed, []))
            first = train_plainly(drawn, seed, 1)[0]["seconds"]
            epochs = max(1, round(ours[-1]["seconds"] / first))
            plain.append(train_plainly(drawn, seed, epochs)[-1])
    return [
        summarize(f"clf-train, {per_class} images per class", ours),
        summarize(f"plain script in the same time, {per_class} images per class", plain),
    ]


def main() -> None:
    """Measure and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--budgets", nargs="*", default=["60s", "5min", "15min"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plain-epochs", nargs="*", type=int, default=[3])
    parser.add_argument("--published-epochs", nargs="*", type=int, default=[])
    parser.add_argument("--per-class", nargs="*", type=int, default=[])
    parser.add_argument("--name", default="transfer", help="of the file of results")
    arguments = parser.parse_args()
    rows = []
    for budget in arguments.budgets:
        runs = [train(arguments.data, seed, ["--budget", budget]) for seed in range(arguments.seeds)]
        rows.append(summarize(f"clf-train --budget {budget}", runs))
    for epochs in arguments.plain_epochs:
        for run in train_plainly(arguments.data, 0, epochs):
            rows.append(summarize(f"plain script, {epochs} epochs: epoch {run['epoch']}", [run]))
    for epochs in arguments.published_epochs:
        for run in train_plainly(arguments.data, 0, epochs, "--published-network"):
            rows.append(summarize(f"plain script, published network, {epochs} epochs: epoch {run['epoch']}", [run]))
    for per_class in arguments.per_class:
        rows += compare_small(arguments.data, per_class, arguments.seeds)
    save_result(arguments.name, rows, ["torch", "torchvision", "numpy", "Pillow"])


if __name__ == "__main__":
    main()
