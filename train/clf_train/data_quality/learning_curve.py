"""How accuracy grows with the number of training images, and what more images would bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clf_train.data.dataset import Int64Array
from clf_train.data_quality.out_of_fold import count_fitted, predict_out_of_fold
from clf_train.data_quality.pool import ImagePool
from clf_train.engine.features import Float32Array

BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]

SHARES = (0.25, 0.5, 0.75)
# Below, the interval of the gain would say nothing.
MIN_IMAGES = 100

_DRAWS = 1000
_QUANTILES = (2.5, 97.5)


@dataclass(frozen=True)
class CurvePoint:
    """The accuracy of a probe that was fitted on so many images, with the 95 % interval of the measurement."""

    images: int
    accuracy: float  # 0..1, as the following
    low: float
    high: float


@dataclass(frozen=True)
class LearningCurve:
    """Measured points and an extrapolation: the error falls as a power of the number of images (Hestness et al. 2017).

    The interval of the gain is that of the measurement, and it assumes that the power law goes on. If the error has a
    floor, such as wrong labels, the gain is smaller.
    """

    points: tuple[CurvePoint, ...]  # measured
    doubled: CurvePoint  # extrapolated to twice the images of the last point
    gain: float  # of the accuracy, 0..1, from doubling the images
    gain_low: float
    gain_high: float


def measure_learning_curve(pool: ImagePool, folds: Int64Array, full: Float32Array) -> LearningCurve | None:
    """Fit probes on growing shares of the images, and extrapolate; return None if there are too few images.

    Args:
        pool: the images.
        folds: the fold (N,) of each.
        full: the probabilities (N, classes) out of fold of the probes that were fitted on everything.
    """
    if len(pool) < MIN_IMAGES:
        return None
    largest = count_fitted(len(pool))
    smaller = [round(share * largest) for share in SHARES]
    wrong = [_find_wrong(predict_out_of_fold(pool, folds, size), pool.targets) for size in smaller]
    return extrapolate([*smaller, largest], np.stack([*wrong, _find_wrong(full, pool.targets)]))


def extrapolate(sizes: Sequence[int], wrong: BoolArray) -> LearningCurve:
    """Return the curve of these measurements.

    Args:
        sizes: how many images each probe was fitted on, ascending.
        wrong: for each of them, which of the same N images it gets wrong, (sizes, N).
    """
    images = wrong.shape[1]
    errors = wrong.mean(axis=1)
    # Bootstrap: the same images are drawn for all sizes, since their differences matter. Images on which all probes
    # agree are alike, so that their counts are drawn.
    patterns, counts = np.unique(wrong, axis=1, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(images, counts / images, _DRAWS) @ patterns.T / images
    doubled = _extrapolate_error(sizes, np.vstack([errors, drawn]), images)
    gains = np.append(errors[-1], drawn[:, -1]) - doubled
    least, most = np.percentile(drawn, _QUANTILES, axis=0)
    ends = np.percentile(np.column_stack([doubled, gains])[1:], _QUANTILES, axis=0)
    return LearningCurve(
        points=tuple(
            CurvePoint(size, *(1 - float(error) for error in measured))
            for size, *measured in zip(sizes, errors, most, least, strict=True)
        ),
        doubled=CurvePoint(2 * sizes[-1], *(1 - float(error) for error in (doubled[0], ends[1, 0], ends[0, 0]))),
        gain=float(gains[0]),
        gain_low=float(ends[0, 1]),
        gain_high=float(ends[1, 1]),
    )


def _find_wrong(probabilities: Float32Array, targets: Int64Array) -> BoolArray:
    wrong: BoolArray = probabilities.argmax(axis=1) != targets
    return wrong


def _extrapolate_error(sizes: Sequence[int], errors: Float64Array, images: int) -> Float64Array:
    """Return the error with twice the images, for each row of errors (rows, sizes), by a power law.

    The law gives the ratio of the errors, and the last measured error is where it starts.
    """
    logs = np.log(np.maximum(errors, 0.5 / images))  # no error at all would be minus infinity
    x = np.log(np.asarray(sizes, dtype=np.float64))
    centered = x - x.mean()
    slopes = logs @ centered / (centered @ centered)
    doubled: Float64Array = errors[:, -1] * 2 ** np.minimum(slopes, 0)
    return doubled
