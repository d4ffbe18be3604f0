"""Accuracy and training time of the default recipes: digits, and MNIST upright and inverted.

usage: accuracy.py [--data-root DIR] [--digits-only]     (MNIST in torchvision's layout, or a network connection)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import save_result

from clf_runtime import Classifier
from clf_train.config import DataSource, load_dataset

BIN = Path(sys.executable).parent


def evaluate(data: str, data_root: str) -> dict[str, object]:
    """Train with the defaults, export, and run the exported file on the test split."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        arguments = ["--data", data, "--data-root", data_root, "-a", folder]
        subprocess.run([BIN / "clf-train", *arguments], check=True)
        seconds = time.perf_counter() - started
        subprocess.run([BIN / "clf-export", "-a", folder], check=True)
        classifier = Classifier.load(Path(folder) / "model.onnx")
        test = load_dataset(DataSource(data, data_root)).test
        pixels = test.decode(classifier.spec.preprocess)
        return {
            "data": data,
            "train_seconds": round(seconds, 1),
            "images": len(test),
            "accuracy": compute_accuracy(classifier, pixels, test.targets),
            "accuracy_inverted": compute_accuracy(classifier, 255 - pixels, test.targets),
        }


def compute_accuracy(classifier: Classifier, pixels: np.ndarray, targets: np.ndarray) -> float:
    """Return the share of images that are predicted correctly."""
    logits = np.concatenate([classifier.run(pixels[start : start + 100])[0] for start in range(0, len(pixels), 100)])
    return round(float((logits.argmax(axis=1) == targets).mean()), 5)


def main() -> None:
    """Measure and save the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--digits-only", action="store_true")
    arguments = parser.parse_args()
    data = ["digits"] if arguments.digits_only else ["digits", "mnist"]
    save_result(
        "accuracy", [evaluate(name, arguments.data_root) for name in data], ["torch", "torchvision", "onnxruntime"]
    )


if __name__ == "__main__":
    main()
