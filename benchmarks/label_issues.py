"""How well likely wrong labels are found: labels of a folder are flipped, and the analysis has to find them.

usage: label_issues.py [--features FILE.npz] FOLDER     (photos, one folder per class; FILE keeps the features)

Flips are uniform over the other classes, or to the class that the flipped one is most often confused with. The folder
has wrong labels of its own: an image that is found without being flipped counts as a false alarm, so the precision is a
lower limit; `precision_without_known` leaves out the images that are found before any label is flipped.
The learning curve is checked, too: it is measured on a half of the images, and its forecast for twice as many is
compared with the accuracy on all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measure import save_result
from torch import nn

from clf_train.config import DataSource, InputOptions, load_dataset
from clf_train.data.dataset import Int64Array
from clf_train.data_quality.analysis import analyze
from clf_train.data_quality.label_issues import LabelIssue, find_label_issues
from clf_train.data_quality.learning_curve import measure_learning_curve
from clf_train.data_quality.out_of_fold import assign_folds, count_fitted, predict_out_of_fold, take_share
from clf_train.data_quality.pool import ImagePool
from clf_train.engine.evaluate import normalize_images
from clf_train.engine.features import Float32Array
from clf_train.models.weights import create_model
from clf_train.plan import resolve_input

SHARE = 0.05
SEEDS = range(5)
SURE = -0.5  # a margin below which few alarms are false


def compute_pool(folder: str) -> ImagePool:
    """Return the images of a folder with the features of EfficientNet-Lite0."""
    preprocess, normalize = resolve_input("efficientnet_lite0", InputOptions())
    dataset = load_dataset(DataSource(folder))
    model = create_model("efficientnet_lite0", "DEFAULT", preprocess.shape, len(dataset.labels)).eval()
    model._dropout, model._fc = nn.Identity(), nn.Identity()
    features = []
    for split in dataset.splits:
        pixels = split.decode(preprocess)
        for start in range(0, len(pixels), 32):
            with torch.inference_mode():
                images = normalize_images(torch.from_numpy(pixels[start : start + 32]), normalize)
                features.append(model(images).numpy())
    targets = np.concatenate([split.targets for split in dataset.splits])
    splits = np.repeat(np.arange(3), [len(split) for split in dataset.splits])
    return ImagePool(np.concatenate(features), targets, splits, len(dataset.labels))


def predict(pool: ImagePool) -> Float32Array:
    """Return the probabilities out of fold."""
    return predict_out_of_fold(pool, assign_folds(pool.targets, np.arange(len(pool))), count_fitted(len(pool)))


def flip(targets: Int64Array, seed: int, confused_with: Int64Array | None) -> tuple[Int64Array, Int64Array]:
    """Return flipped labels, and which ones were flipped."""
    generator = np.random.default_rng(seed)
    flipped = np.sort(generator.choice(len(targets), round(SHARE * len(targets)), replace=False))
    labels, classes = targets.copy(), int(targets.max()) + 1
    if confused_with is None:
        labels[flipped] = (labels[flipped] + generator.integers(1, classes, len(flipped))) % classes
    else:
        labels[flipped] = confused_with[labels[flipped]]
    return labels, flipped


def score(issues: Sequence[LabelIssue], flipped: Int64Array, known: set[int], targets: Int64Array) -> dict[str, float]:
    """Return precision and recall, and how often the suggested label is the original one."""
    found, true = {issue.index for issue in issues}, set(flipped.tolist())
    hits = len(found & true)
    return {
        "found": len(found),
        "precision": hits / max(1, len(found)),
        "precision_without_known": hits / max(1, hits + len(found - true - known)),
        "recall": hits / len(true),
        "right_suggestions": statistics.mean(
            float(issue.suggested == targets[issue.index]) for issue in issues if issue.index in true
        ),
    }


def measure(pool: ImagePool, probabilities: Float32Array, kind: str) -> dict[str, object]:
    """Return the medians over the seeds."""
    confusions = np.zeros((pool.classes, pool.classes))
    np.add.at(confusions, (pool.targets, probabilities.argmax(axis=1)), 1)
    np.fill_diagonal(confusions, -1)
    known = {issue.index for issue in find_label_issues(probabilities, pool.targets)}
    every, sure = [], []
    for seed in SEEDS:
        labels, flipped = flip(pool.targets, seed, confusions.argmax(axis=1) if kind == "asymmetric" else None)
        issues = find_label_issues(predict(replace(pool, targets=labels)), labels)
        every.append(score(issues, flipped, known, pool.targets))
        sure.append(score([issue for issue in issues if issue.margin < SURE], flipped, known, pool.targets))
    return {"flips": kind, "all": summarize(every), f"margin below {SURE}": summarize(sure)}


def summarize(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each number."""
    return {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}


def check_learning_curve(pool: ImagePool) -> list[dict[str, object]]:
    """Forecast the accuracy of all images from a half of them, for each seed."""
    # Probes fitted on all images: their accuracy is what the curve of a half has to forecast.
    accuracy = float((predict(pool).argmax(axis=1) == pool.targets).mean())
    rows: list[dict[str, object]] = []
    for seed in SEEDS:
        half = pool.take(take_share(pool.targets, 0.5, seed))
        folds = assign_folds(half.targets, np.arange(len(half)))
        curve = measure_learning_curve(half, folds, predict_out_of_fold(half, folds, count_fitted(len(half))))
        assert curve is not None
        last = curve.points[-1]
        rows.append(
            {
                "images": last.images,
                "accuracy": round(last.accuracy, 4),
                "forecast_gain_pp": [round(100 * gain, 2) for gain in (curve.gain_low, curve.gain, curve.gain_high)],
                "forecast": [
                    round(value, 4) for value in (curve.doubled.low, curve.doubled.accuracy, curve.doubled.high)
                ],
                "accuracy_of_all": round(accuracy, 4),
            }
        )
    return rows


def main() -> None:
    """Measure and save the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--features", type=Path)
    arguments = parser.parse_args()
    if arguments.features is not None and arguments.features.exists():
        stored = np.load(arguments.features)
        pool = ImagePool(stored["features"], stored["targets"], stored["splits"], int(stored["targets"].max()) + 1)
    else:
        pool = compute_pool(arguments.folder)
        if arguments.features is not None:
            np.savez(arguments.features, features=pool.features, targets=pool.targets, splits=pool.splits)
    started = time.process_time()
    analyze(pool)
    seconds = time.process_time() - started
    probabilities = predict(pool)
    result = {
        "images": len(pool),
        "classes": pool.classes,
        "flipped_share": SHARE,
        "seeds": len(SEEDS),
        "accuracy_out_of_fold": round(float((probabilities.argmax(axis=1) == pool.targets).mean()), 4),
        "found_without_flips": len(find_label_issues(probabilities, pool.targets)),
        "cpu_seconds_of_the_complete_analysis": round(seconds, 1),
        "label_issues": [measure(pool, probabilities, kind) for kind in ("uniform", "asymmetric")],
        "learning_curve": check_learning_curve(pool),
    }
    save_result("label_issues", result, ["torch", "numpy"])


if __name__ == "__main__":
    main()
