"""What the predictions of a model on labeled images amount to: accuracy, and precision, recall and F1 of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from clf_runtime.evaluation.calibration import CalibrationBin, bin_by_confidence, compute_calibration_error
from clf_runtime.evaluation.statistics import wilson_interval

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Scores below which `clf-run --threshold` could answer "unknown".
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

# Below the smallest float32: the loss of a probability that was rounded to zero.
_LEAST_PROBABILITY = 1e-45


@dataclass(frozen=True)
class ScoredImages:
    """What a model returned for N images whose labels it knows.

    Attributes:
        targets: The class (N,) of each image.
        predicted: The class (N,) with the highest probability.
        confidence: The probability (N,) of the predicted class.
        probability: The probability (N,) of the image's own class.
        rank: How many classes (N,) rank above the image's own class; 0 for a correct prediction.
    """

    targets: Int64Array
    predicted: Int64Array
    confidence: Float64Array
    probability: Float64Array
    rank: Int64Array

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def correct(self) -> BoolArray:
        """Whether each prediction (N,) is correct."""
        correct: BoolArray = self.predicted == self.targets
        return correct


@dataclass(frozen=True)
class ClassMetrics:
    """How well one class is recognized.

    Attributes:
        label: Its name.
        images: How many images it has.
        predicted: How many images the model assigns to it.
        correct: How many images both agree on.
    """

    label: str
    images: int
    predicted: int
    correct: int

    @property
    def precision(self) -> float | None:
        """The share of the images assigned to the class that belong to it; None if none are."""
        return self.correct / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """The share of the images of the class that are assigned to it; None if it has none."""
        return self.correct / self.images if self.images else None

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall; None if the class has no images and is never predicted."""
        total = self.images + self.predicted
        return 2 * self.correct / total if total else None


@dataclass(frozen=True)
class ThresholdMetrics:
    """What remains if predictions with a score below a threshold are rejected; the accuracy is None if nothing does."""

    threshold: float
    images: int
    accuracy: float | None


@dataclass(frozen=True)
class EvalMetrics:
    """The metrics of a model on labeled images.

    Attributes:
        images: How many images there are.
        correct: How many of them are classified correctly.
        interval: The 95 % interval of the accuracy, 0..1 (Wilson 1927).
        top: K.
        top_accuracy: The share of images whose label is among the K labels with the highest probabilities.
        balanced_accuracy: The mean recall of the classes that have images.
        macro_f1: The mean F1 of the classes that have images.
        loss: The mean negative log-likelihood, in nats.
        calibration_error: The expected calibration error, 0..1.
        bins: What it is computed from.
        thresholds: Images and accuracy at several thresholds of the score.
        classes: The metrics of each class, in the order of the model's labels.
        confusions: (true class, predicted class) → images; pairs without images are left out.
    """

    images: int
    correct: int
    interval: tuple[float, float]
    top: int
    top_accuracy: float
    balanced_accuracy: float
    macro_f1: float
    loss: float
    calibration_error: float
    bins: tuple[CalibrationBin, ...]
    thresholds: tuple[ThresholdMetrics, ...]
    classes: tuple[ClassMetrics, ...]
    confusions: Mapping[tuple[int, int], int]

    @property
    def accuracy(self) -> float:
        """The share of images that are classified correctly, 0..1."""
        return self.correct / self.images


def compute_metrics(scored: ScoredImages, labels: Sequence[str], top: int) -> EvalMetrics:
    """Compute the metrics of at least one image, for a model with these labels."""
    correct, images = int(scored.correct.sum()), len(scored)
    classes = _compute_class_metrics(scored, labels)
    present = [row for row in classes if row.images]
    return EvalMetrics(
        images=images,
        correct=correct,
        interval=wilson_interval(correct, images),
        top=min(top, len(labels)),
        top_accuracy=float((scored.rank < top).mean()),
        balanced_accuracy=float(np.mean([row.recall or 0.0 for row in present])),
        macro_f1=float(np.mean([row.f1 or 0.0 for row in present])),
        loss=float(-np.log(np.maximum(scored.probability, _LEAST_PROBABILITY)).mean()),
        calibration_error=compute_calibration_error(scored.confidence, scored.correct),
        bins=bin_by_confidence(scored.confidence, scored.correct),
        thresholds=tuple(_metrics_above(scored, threshold) for threshold in THRESHOLDS),
        classes=classes,
        confusions=count_confusions(scored, len(labels)),
    )


def count_confusions(scored: ScoredImages, classes: int) -> dict[tuple[int, int], int]:
    """Return (true class, predicted class) → images, without zeros: 10,000 classes have 100 million such pairs."""
    pairs, counts = np.unique(scored.targets * classes + scored.predicted, return_counts=True)
    return {divmod(pair, classes): count for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)}


def rank_confusions(confusions: Mapping[tuple[int, int], int], limit: int) -> list[tuple[int, int, int]]:
    """Return the most frequent confusions as (true class, predicted class, images), at most `limit`."""
    wrong = [(true, predicted, images) for (true, predicted), images in confusions.items() if true != predicted]
    return sorted(wrong, key=lambda row: (-row[2], row))[:limit]


def rank_mistakes(scored: ScoredImages) -> list[int]:
    """Return the positions of the wrong predictions, the most confident first; equals stay in order."""
    wrong = np.flatnonzero(~scored.correct)
    return [int(position) for position in wrong[np.argsort(-scored.confidence[wrong], kind="stable")]]


def _compute_class_metrics(scored: ScoredImages, labels: Sequence[str]) -> tuple[ClassMetrics, ...]:
    images, predicted, correct = (
        np.bincount(values, minlength=len(labels)).tolist()
        for values in (scored.targets, scored.predicted, scored.targets[scored.correct])
    )
    return tuple(ClassMetrics(*row) for row in zip(labels, images, predicted, correct, strict=True))


def _metrics_above(scored: ScoredImages, threshold: float) -> ThresholdMetrics:
    kept = scored.confidence >= threshold
    images = int(kept.sum())
    return ThresholdMetrics(threshold, images, float(scored.correct[kept].mean()) if images else None)
