"""Calibration of probabilities: the temperature."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from clf_train.data.dataset import Int64Array

Float32Array = npt.NDArray[np.float32]

_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0
_SEARCH_STEPS = 60


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
