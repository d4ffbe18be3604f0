"""report.html: the results of a training run, on one page that needs no network and no other file.

This module combines what `analysis` counts and `charts` lays out; `report.html.j2` arranges and styles it. All text,
labels above all, goes through the template's autoescape; nothing here builds markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clf_runtime import artifacts, files
from clf_runtime.evaluation.calibration import CALIBRATION_BINS, CalibrationBin, bin_by_confidence
from clf_runtime.progress import format_duration
from clf_runtime.spec import Metrics, ModelSpec
from clf_train.history import Epoch
from clf_train.report.analysis import (
    Cell,
    ClassBar,
    Predictions,
    RunResults,
    build_confusion_matrix,
    count_confusions,
    rank_classes,
    rank_confusions,
    rank_mistakes,
)
from clf_train.report.charts import Chart, draw_charts, format_percent
from clf_train.report.images import MAX_PIXELATED_SIDE, data_uri_from_pixels, spread_over_classes

MAX_NUMBERED_CLASSES = 20  # beyond, the cells of the matrix are too small for numbers
MAX_MATRIX_CLASSES = 40  # beyond, a table of confusions says more than 1,681 tiny cells
MAX_IMAGES = 40
MAX_MISTAKES = 20

_MAX_LABEL_LENGTH = 80  # characters; a label can be as long as a page, and the report repeats it many times

# The export section is between these; empty until the first export.
_BEGIN, _END = "<!-- exported -->", "<!-- /exported -->"
_EXPORT_SECTION = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END), re.DOTALL)
_EMPTY_EXPORT_SECTION = Markup(f"{_BEGIN}\n{_END}")


@dataclass(frozen=True)
class Figure:
    """One of the headline figures."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class ImageCard:
    """A test image with its prediction."""

    source: str  # a data URI
    true: str
    predicted: str
    probability: float
    is_correct: bool


@dataclass(frozen=True)
class Page:
    """Everything that the template reads."""

    title: str
    spec: ModelSpec
    history: tuple[Epoch, ...]
    figures: tuple[Figure, ...]
    charts: tuple[Chart, ...]
    bars: tuple[ClassBar, ...]  # worst first
    classes_with_images: int  # classes with a test image
    matrix: tuple[tuple[Cell, ...], ...]  # empty for many classes
    has_numbers: bool  # whether the cells of the matrix are large enough for numbers
    has_short_labels: bool  # whether labels fit into narrow columns without being turned
    confusions: tuple[Cell, ...]  # most frequent first; only for many classes
    images: tuple[ImageCard, ...]
    mistakes: tuple[ImageCard, ...]  # most confident first
    mistake_count: int
    unreadable_images: int
    uncalibrated_error: float | None  # calibration error without the temperature
    is_pixelated: bool
    bins: tuple[CalibrationBin, ...]
    warnings: tuple[str, ...]  # what is wrong with the training


def html_from_run(results: RunResults) -> str:
    """Return the report as the text of one HTML file, well below 1.5 MB."""
    page = _build_page(results)
    return environment().get_template("report.html.j2").render(page=page, export_section=_EMPTY_EXPORT_SECTION)


def write_export_section(folder: Path, section: str) -> None:
    """Insert the export section into a folder's report, or replace it.

    Args:
        folder: the artifacts folder. If training wrote no report there, the page contains only this section.
        section: trusted HTML.

    Raises:
        OSError: the report cannot be written; the existing one is unchanged.
    """
    path = folder / artifacts.REPORT
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        page = ""
    if not _EXPORT_SECTION.search(page):
        page = environment().get_template("only_exported.html.j2").render(export_section=_EMPTY_EXPORT_SECTION)
    # A function, since the section may contain what re.sub would read as a reference to a group.
    page = _EXPORT_SECTION.sub(lambda _: f"{_BEGIN}\n{section}\n{_END}", page, count=1)
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(page.encode("utf-8"))


def environment(package: str = "clf_train.report") -> Environment:
    """Return the environment of a package's templates: text is escaped, and an undefined name is an error."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("clf_train.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = format_percent
    environment.filters["duration"] = _format_duration
    return environment


def _build_page(results: RunResults) -> Page:
    predictions = _predict(results)
    labels = predictions.labels
    counts = count_confusions(predictions)
    has_matrix = len(labels) <= MAX_MATRIX_CLASSES
    mistakes = rank_mistakes(predictions)
    return Page(
        title=_title(results.spec),
        spec=results.spec,
        history=tuple(results.history),
        figures=(*_quality_figures(results, predictions), *_model_figures(results)),
        charts=draw_charts(results.history),
        bars=rank_classes(counts, labels),
        classes_with_images=int((counts.sum(axis=1) > 0).sum()),
        matrix=build_confusion_matrix(counts, labels) if has_matrix else (),
        has_numbers=len(labels) <= MAX_NUMBERED_CLASSES,
        has_short_labels=max(map(len, labels)) <= 3,
        confusions=() if has_matrix else rank_confusions(counts, labels),
        images=_build_cards(predictions, spread_over_classes(predictions.targets, MAX_IMAGES)),
        mistakes=_build_cards(predictions, mistakes[:MAX_MISTAKES]),
        mistake_count=len(mistakes),
        unreadable_images=results.unreadable_images,
        uncalibrated_error=results.uncalibrated.calibration_error if results.uncalibrated else None,
        is_pixelated=max(predictions.pixels.shape[:2]) <= MAX_PIXELATED_SIDE,
        bins=bin_by_confidence(predictions.confidence, predictions.correct),
        warnings=results.warnings,
    )


def _predict(results: RunResults) -> Predictions:
    return Predictions(
        labels=tuple(_shorten(label) for label in results.spec.labels),
        pixels=results.pixels,
        targets=results.targets,
        predicted=results.probabilities.argmax(axis=1).astype(np.int64),
        confidence=np.nan_to_num(results.probabilities.max(axis=1)),  # a diverged model has none
    )


def _title(spec: ModelSpec) -> str:
    if spec.provenance is None or spec.provenance.data is None:
        return spec.architecture
    # The last component of the folder's path, on any system; the provenance shows the complete path.
    data = PureWindowsPath(spec.provenance.data).name or spec.provenance.data
    return f"{spec.architecture} on {_shorten(data)}"


def _shorten(label: str) -> str:
    return label if len(label) <= _MAX_LABEL_LENGTH else f"{label[: _MAX_LABEL_LENGTH - 1]}…"


def _quality_figures(results: RunResults, predictions: Predictions) -> tuple[Figure, ...]:
    metrics = results.spec.metrics
    if metrics is None:
        correct, images = int(predictions.correct.sum()), len(predictions.targets)
        return (
            Figure("Accuracy", format_percent(correct / images), f"{correct:,} of {images:,} correct"),
            Figure("Test images", f"{images:,}", "not used for training"),
        )
    correct = round(metrics.accuracy * metrics.images)
    return (
        Figure("Accuracy", format_percent(metrics.accuracy), f"{correct:,} of {metrics.images:,} correct"),
        Figure("Test images", f"{metrics.images:,}", f"split: {metrics.split}"),
        Figure("Loss", f"{metrics.loss:.4f}", "negative log-likelihood, nats"),
        _calibration_figure(metrics, results.uncalibrated),
    )


def _calibration_figure(metrics: Metrics, uncalibrated: Metrics | None) -> Figure:
    before = ""
    if uncalibrated is not None:
        before = f"; {format_percent(uncalibrated.calibration_error)} before temperature scaling"
    note = f"expected (ECE), {CALIBRATION_BINS} bins{before}"
    return Figure("Calibration error", format_percent(metrics.calibration_error), note)


def _model_figures(results: RunResults) -> tuple[Figure, ...]:
    spec, history = results.spec, results.history
    preprocess = spec.preprocess
    return (
        Figure("Temperature", f"{spec.temperature:.3g}", "divides the logits"),
        Figure("Classes", f"{len(spec.labels):,}", "labels to choose from"),
        Figure("Epochs", f"{len(history):,}", "passes over the training images"),
        Figure("Training time", _format_duration(sum(epoch.seconds for epoch in history)), "without validation"),
        Figure(
            "Input",
            f"{preprocess.width} × {preprocess.height}",  # noqa: RUF001
            "pixels, " + ("gray" if preprocess.color == "L" else "RGB"),
        ),
    )


def _build_cards(predictions: Predictions, indices: Sequence[int]) -> tuple[ImageCard, ...]:
    return tuple(
        ImageCard(
            source=data_uri_from_pixels(predictions.pixels[index]),
            true=predictions.labels[predictions.targets[index]],
            predicted=predictions.labels[predictions.predicted[index]],
            probability=float(predictions.confidence[index]),
            is_correct=bool(predictions.correct[index]),
        )
        for index in indices
    )


def _format_duration(seconds: float) -> str:
    return format_duration(seconds).replace(" ", "\u00a0")
