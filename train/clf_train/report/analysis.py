"""Counts of a model's predictions on the test split, for report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath

import numpy as np
import numpy.typing as npt

from clf_runtime.evaluation.metrics import ClassMetrics
from clf_runtime.preprocess import UInt8Array
from clf_runtime.spec import Metrics, ModelSpec
from clf_train.data.cache import PixelStore
from clf_train.data.dataset import Int64Array
from clf_train.engine.features import ImageFeatures
from clf_train.history import Epoch
from clf_train.portable import portable_path
from clf_train.report.splits import LabeledSplits

Float32Array = npt.NDArray[np.float32]

MAX_CONFUSIONS = 30

_MAX_LABEL_LENGTH = 80  # characters; a label can be as long as a page, and the report repeats it many times


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
    warnings: tuple[str, ...] = ()  # what is wrong with the training
    names: Sequence[str] = ()  # of the N images; empty if they have none
    splits: LabeledSplits | None = None  # all images; None if they were not kept
    features: ImageFeatures | None = None  # of all images; None if no pretrained network computed them
    findings: tuple[str, ...] = ()  # what people should know about the data
    hashes: UInt8Array | None = None  # (training + validation + test images, 32), perceptual


@dataclass(frozen=True)
class Predictions:
    """The model's predictions on the test split."""

    labels: tuple[str, ...]
    pixels: PixelStore
    names: tuple[str, ...]  # (N,)
    targets: Int64Array  # (N,)
    predicted: Int64Array  # (N,)
    confidence: Float32Array  # (N,): the probability of the predicted class

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each prediction (N,) is correct."""
        correct: npt.NDArray[np.bool_] = self.predicted == self.targets
        return correct


@dataclass(frozen=True)
class RankedClass:
    """How well one class of the test split is recognized."""

    index: int  # of the class
    metrics: ClassMetrics


@dataclass(frozen=True)
class Cell:
    """The images of one class with one predicted label; `share` of the class, 0..1."""

    true: str
    predicted: str
    count: int
    share: float
    is_correct: bool
    link: str  # the fragment of images.html that shows these images


def count_confusions(predictions: Predictions) -> Int64Array:
    """Return int64 (classes, classes): rows are true, columns predicted."""
    counts = np.zeros((len(predictions.labels), len(predictions.labels)), dtype=np.int64)
    np.add.at(counts, (predictions.targets, predictions.predicted), 1)
    return counts


def predict(results: RunResults) -> Predictions:
    """Return the predictions of a run, with labels that are short enough to be shown."""
    return Predictions(
        labels=tuple(shorten(label) for label in results.spec.labels),
        pixels=results.pixels,
        names=tuple(portable_path(name) for name in results.names) or ("",) * len(results.targets),
        targets=results.targets,
        predicted=results.probabilities.argmax(axis=1).astype(np.int64),
        confidence=np.nan_to_num(results.probabilities.max(axis=1)),  # a diverged model has none
    )


def title_of(spec: ModelSpec) -> str:
    """Return the name of a model: its architecture, and what it was trained on."""
    if spec.provenance is None or spec.provenance.data is None:
        return spec.architecture
    # The last component of the folder's path, on any system; the provenance shows the complete path.
    data = PureWindowsPath(spec.provenance.data).name or spec.provenance.data
    return f"{spec.architecture} on {shorten(data)}"


def shorten(label: str) -> str:
    """Return a text of at most 80 characters."""
    return label if len(label) <= _MAX_LABEL_LENGTH else f"{label[: _MAX_LABEL_LENGTH - 1]}…"


def rank_classes(counts: Int64Array, labels: Sequence[str]) -> tuple[RankedClass, ...]:
    """Return the metrics of the classes that have images, the worst first."""
    images, predicted, correct = counts.sum(axis=1).tolist(), counts.sum(axis=0).tolist(), counts.diagonal().tolist()
    rows = zip(labels, images, predicted, correct, strict=True)
    classes = [RankedClass(index, ClassMetrics(*row)) for index, row in enumerate(rows) if images[index]]
    return tuple(sorted(classes, key=lambda ranked: (ranked.metrics.f1 or 0.0, -ranked.metrics.images)))


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
    link = f"true={true}&predicted={predicted}"
    return Cell(labels[true], labels[predicted], count, share, true == predicted, link)
