"""Counts of a model's predictions on the test split, for report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clf_runtime.spec import Metrics, ModelSpec
from clf_train.data.cache import PixelStore
from clf_train.data.dataset import Int64Array
from clf_train.engine.features import ImageFeatures
from clf_train.history import Epoch

Float32Array = npt.NDArray[np.float32]

MAX_BARS = 30
MAX_CONFUSIONS = 30


@dataclass(frozen=True)
class RunResults:
    """A finished training run: everything that the report is made from."""

    spec: ModelSpec
    history: Sequence[Epoch]
    pixels: PixelStore  # the N images of the test split
    targets: Int64Array  # (N,)
    probabilities: Float32Array  # (N, classes), with the temperature
    uncalibrated: Metrics | None = None  # without the temperature
    unreadable_images: int = 0
    features: ImageFeatures | None = None  # of a pretrained network
    warnings: tuple[str, ...] = ()  # what is wrong with the training


@dataclass(frozen=True)
class Predictions:
    """The model's predictions on the test split."""

    labels: tuple[str, ...]
    pixels: PixelStore
    targets: Int64Array  # (N,)
    predicted: Int64Array  # (N,)
    confidence: Float32Array  # (N,): the probability of the predicted class

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each prediction (N,) is correct."""
        correct: npt.NDArray[np.bool_] = self.predicted == self.targets
        return correct


@dataclass(frozen=True)
class ClassBar:
    """A class and how many of its images are predicted correctly."""

    label: str
    correct: int
    total: int

    @property
    def share(self) -> float:
        """The accuracy of the class, 0..1."""
        return self.correct / self.total


@dataclass(frozen=True)
class Cell:
    """The images of one class with one predicted label; `share` of the class, 0..1."""

    true: str
    predicted: str
    count: int
    share: float
    is_correct: bool


def count_confusions(predictions: Predictions) -> Int64Array:
    """Return int64 (classes, classes): rows are true, columns predicted."""
    counts = np.zeros((len(predictions.labels), len(predictions.labels)), dtype=np.int64)
    np.add.at(counts, (predictions.targets, predictions.predicted), 1)
    return counts


def rank_classes(counts: Int64Array, labels: Sequence[str]) -> tuple[ClassBar, ...]:
    """Return the classes that have images, the worst first and at most MAX_BARS."""
    totals = counts.sum(axis=1)
    bars = [
        ClassBar(label, int(counts[index, index]), int(totals[index]))
        for index, label in enumerate(labels)
        if totals[index] > 0
    ]
    return tuple(sorted(bars, key=lambda bar: (bar.share, -bar.total))[:MAX_BARS])


def build_confusion_matrix(counts: Int64Array, labels: Sequence[str]) -> tuple[tuple[Cell, ...], ...]:
    """Return all cells of the confusion matrix: rows are true, columns predicted."""
    classes = range(len(labels))
    return tuple(tuple(_build_cell(counts, labels, true, predicted) for predicted in classes) for true in classes)


def rank_confusions(counts: Int64Array, labels: Sequence[str]) -> tuple[Cell, ...]:
    """Return the wrong cells that have images, the most frequent first and at most MAX_CONFUSIONS."""
    wrong = counts * (1 - np.eye(len(labels), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS]
    pairs = (divmod(int(flat), len(labels)) for flat in order if wrong.flat[flat] > 0)
    return tuple(_build_cell(counts, labels, true, predicted) for true, predicted in pairs)


def rank_mistakes(predictions: Predictions) -> list[int]:
    """Return the indices of the wrong predictions, the most confident first; equals stay in order."""
    wrong = np.flatnonzero(~predictions.correct)
    return [int(index) for index in wrong[np.argsort(-predictions.confidence[wrong], kind="stable")]]


def _build_cell(counts: Int64Array, labels: Sequence[str], true: int, predicted: int) -> Cell:
    count = int(counts[true, predicted])
    share = count / max(int(counts[true].sum()), 1)
    return Cell(labels[true], labels[predicted], count, share, is_correct=true == predicted)
