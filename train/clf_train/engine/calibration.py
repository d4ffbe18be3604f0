"""Calibration of probabilities: the temperature, and bins of confidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from clf_train.data.dataset import Int64Array

Float32Array = npt.NDArray[np.float32]

CALIBRATION_BINS = 15  # of equal width, as in Guo et al. 2017
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0
_SEARCH_STEPS = 60


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose confidence is in [low, high); the last bin includes 1. Both means are 0 without images."""

    low: float
    high: float
    count: int
    accuracy: float  # 0..1
    confidence: float  # mean, 0..1


def bin_by_confidence(
    confidence: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_]
) -> tuple[CalibrationBin, ...]:
    """Group images by confidence.

    Args:
        confidence: the probability (N,) of the predicted class.
        correct: whether the prediction (N,) is correct.

    Returns:
        All CALIBRATION_BINS bins, the lowest first.
    """
    places = np.minimum((confidence.astype(np.float64) * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    bins = []
    for place in range(CALIBRATION_BINS):
        inside = places == place
        count = int(inside.sum())
        accuracy = float(correct[inside].mean()) if count else 0.0
        mean_confidence = float(confidence[inside].mean()) if count else 0.0
        bins.append(
            CalibrationBin(place / CALIBRATION_BINS, (place + 1) / CALIBRATION_BINS, count, accuracy, mean_confidence)
        )
    return tuple(bins)


def compute_calibration_error(confidence: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_]) -> float:
    """Return the expected calibration error: mean |confidence - accuracy| over the bins, weighted by images."""
    return sum(
        bin_.count / len(correct) * abs(bin_.confidence - bin_.accuracy)
        for bin_ in bin_by_confidence(confidence, correct)
    )


def fit_temperature(logits: Float32Array, targets: Int64Array) -> float:
    """Return the temperature with the least loss (Guo et al. 2017).

    An image counts as correct with probability (N + 1) / (N + 2), not 1: N correct answers do not make the next one
    certain, and without this a validation split without errors drives the temperature to zero (Platt 1999). The loss
    is convex in 1/T, so a ternary search over log T ends at its minimum.

    Args:
        logits: (N, classes), of images outside the training and the test split.
        targets: their classes (N,).
    """
    values, classes = torch.from_numpy(logits).double(), torch.from_numpy(targets)
    class_count = values.shape[1]
    smoothing = class_count / (class_count - 1) / (len(targets) + 2)
    low, high = float(np.log(_MIN_TEMPERATURE)), float(np.log(_MAX_TEMPERATURE))
    for _ in range(_SEARCH_STEPS):
        third = (high - low) / 3
        losses = [
            nn.functional.cross_entropy(values / float(np.exp(at)), classes, label_smoothing=smoothing).item()
            for at in (low + third, high - third)
        ]
        low, high = (low, high - third) if losses[0] < losses[1] else (low + third, high)
    return float(np.exp((low + high) / 2))
