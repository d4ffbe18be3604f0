"""How well probabilities match the accuracy: bins of confidence, and the expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CALIBRATION_BINS = 15  # of equal width, as in Guo et al. 2017


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
        confidence: The probability (N,) of the predicted class.
        correct: Whether the prediction (N,) is correct.

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
