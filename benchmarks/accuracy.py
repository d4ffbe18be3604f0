"""What the default recipes reach, and how long they take: digits, and MNIST upright and inverted.

usage: accuracy.py [--data-root DIR] [--digits-only]     (MNIST in torchvision's layout, or a network)
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
from clf_train.config import TrainConfig, load_dataset

BIN = Path(sys.executable).parent


def evaluate(data: str, data_root: str) -> dict[str, object]:
    """Train with the defaults, export, and let the exported file answer for the held-out images."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        arguments = ["--data", data, "--data-root", data_root, "-a", folder]
        subprocess.run([BIN / "clf-train", *arguments], check=True)
        seconds = time.perf_counter() - started
        subprocess.run([BIN / "clf-export", "-a", folder], check=True)
        classifier = Classifier.load(Path(folder) / "model.onnx")
        test = load_dataset(TrainConfig(data=data, data_root=data_root)).test
        pixels = test.decoded(classifier.spec.preprocess)
        return {
            "data": data,
            "train_seconds": round(seconds, 1),
            "images": len(test),
            "accuracy": share_right(classifier, pixels, test.targets),
            "accuracy_inverted": share_right(classifier, 255 - pixels, test.targets),
        }


def share_right(classifier: Classifier, pixels: np.ndarray, targets: np.ndarray) -> float:
    """Give the share of images whose class is the model's first answer."""
    logits = np.concatenate([classifier.run(pixels[at : at + 100])[0] for at in range(0, len(pixels), 100)])
    return round(float((logits.argmax(axis=1) == targets).mean()), 5)


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--digits-only", action="store_true")
    asked = parser.parse_args()
    data = ["digits"] if asked.digits_only else ["digits", "mnist"]
    save_result("accuracy", [evaluate(each, asked.data_root) for each in data], ["torch", "torchvision", "onnxruntime"])


if __name__ == "__main__":
    main()
