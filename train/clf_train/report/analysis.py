"""The model's answers to the held-out images, counted and sorted for report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clf_train.data.cache import PixelStore
from clf_train.data.dataset import Int64Array

Float32Array = npt.NDArray[np.float32]

BINS = 15  # as in clf_runtime.spec.Metrics.calibration_error
MOST_BARS = 30
MOST_CONFUSIONS = 30


@dataclass(frozen=True)
class Answers:
    """The model's answers to the held-out images."""

    labels: tuple[str, ...]
    pixels: PixelStore
    targets: Int64Array  # (N,)
    predicted: Int64Array  # (N,)
    confidence: Float32Array  # (N,) the predicted class's probability


@dataclass(frozen=True)
class ClassBar:
    """A class and how many of its images were answered right."""

    label: str
    right: int
    total: int

    @property
    def share(self) -> float:
        return self.right / self.total


@dataclass(frozen=True)
class Cell:
    """Images of one class that were given one label; `share` of the class, 0..1."""

    true: str
    predicted: str
    count: int
    share: float
    right: bool


@dataclass(frozen=True)
class Bin:
    """Images whose confidence is in [low, high), the last bin's up to 1; both means are 0 where there are none."""

    low: float
    high: float
    count: int
    accuracy: float
    confidence: float


def confusion_counts(answers: Answers) -> Int64Array:
    """Give int64 (classes, classes): rows are true, columns predicted."""
    counts = np.zeros((len(answers.labels), len(answers.labels)), dtype=np.int64)
    np.add.at(counts, (answers.targets, answers.predicted), 1)
    return counts


def bars(counts: Int64Array, labels: Sequence[str]) -> tuple[ClassBar, ...]:
    """Give the classes that have images, the worst first and at most MOST_BARS."""
    totals = counts.sum(axis=1)
    bars = [
        ClassBar(label, int(counts[index, index]), int(totals[index]))
        for index, label in enumerate(labels)
        if totals[index] > 0
    ]
    return tuple(sorted(bars, key=lambda bar: (bar.share, -bar.total))[:MOST_BARS])


def _cell(counts: Int64Array, labels: Sequence[str], true: int, predicted: int) -> Cell:
    count = int(counts[true, predicted])
    share = count / max(int(counts[true].sum()), 1)
    return Cell(labels[true], labels[predicted], count, share, right=true == predicted)


def matrix(counts: Int64Array, labels: Sequence[str]) -> tuple[tuple[Cell, ...], ...]:
    """Give all cells of the confusion matrix: rows are true, columns predicted."""
    classes = range(len(labels))
    return tuple(tuple(_cell(counts, labels, true, predicted) for predicted in classes) for true in classes)


def confusions(counts: Int64Array, labels: Sequence[str]) -> tuple[Cell, ...]:
    """Give the wrong cells that have images, the most frequent first and at most MOST_CONFUSIONS."""
    wrong = counts * (1 - np.eye(len(labels), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = (divmod(int(flat), len(labels)) for flat in order if wrong.flat[flat] > 0)
    return tuple(_cell(counts, labels, true, predicted) for true, predicted in pairs)


def mistakes(answers: Answers) -> list[int]:
    """Give the wrongly answered images, the most confident first, and of equals the earlier."""
    wrong = np.flatnonzero(answers.predicted != answers.targets)
    return [int(index) for index in wrong[np.argsort(-answers.confidence[wrong], kind="stable")]]


def bins(answers: Answers) -> tuple[Bin, ...]:
    """Give the reliability diagram's BINS bins of confidence, the lowest first."""
    right = answers.predicted == answers.targets
    # The bins of clf_train.engine.evaluate, so that the bars and the calibration error tell of the same thing.
    places = np.minimum((answers.confidence.astype(np.float64) * BINS).astype(np.int64), BINS - 1)
    bins = []
    for place in range(BINS):
        here = places == place
        count = int(here.sum())
        accuracy = float(right[here].mean()) if count else 0.0
        confidence = float(answers.confidence[here].mean()) if count else 0.0
        bins.append(Bin(place / BINS, (place + 1) / BINS, count, accuracy, confidence))
    return tuple(bins)
