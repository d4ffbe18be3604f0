"""report.html: the results of a training run, on one page that needs no network and no other file.

This module combines what `analysis` counts, `charts` lays out and `quality` prepares; `report.html.j2` and its sections
arrange and style it. All text, labels above all, goes through the template's autoescape; nothing here builds markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clf_runtime.evaluation.calibration import CalibrationBin, bin_by_confidence
from clf_runtime.spec import ModelSpec
from clf_train.data_quality.analysis import DataQuality
from clf_train.history import Epoch
from clf_train.report.analysis import (
    Cell,
    RankedClass,
    RunResults,
    build_confusion_matrix,
    count_confusions,
    predict,
    rank_classes,
    rank_confusions,
    rank_mistakes,
    title_of,
)
from clf_train.report.cards import ImageCard, build_cards
from clf_train.report.charts import Chart, draw_charts
from clf_train.report.export_section import EMPTY_EXPORT_SECTION
from clf_train.report.figures import Figure, build_figures
from clf_train.report.images import MAX_PIXELATED_SIDE, spread_over_classes
from clf_train.report.quality import QualitySection, build_quality_section
from clf_train.report.rendering import environment

MAX_NUMBERED_CLASSES = 20  # beyond, the cells of the matrix are too small for numbers
MAX_MATRIX_CLASSES = 40  # beyond, a table of confusions says more than 1,681 tiny cells
MAX_CLASSES, MAX_MORE_CLASSES = 30, 170  # shown at once, and on request
MAX_IMAGES = 40
MAX_MISTAKES = 20

# The page stays below 1.5 MB; its text takes 0.4 MB at most (200 classes with labels of 80 escaped characters).
_IMAGES_BYTES, _MISTAKES_BYTES = 250_000, 250_000

_CHOSEN_BY_SEED = "chosen by the seed"
_SPLITS = (
    ("Training split", "train", "fits the weights"),
    ("Validation split", "validation", "shows the progress and fits the temperature"),
    ("Test split", "test", "measures what this page shows, and nothing else"),
)


@dataclass(frozen=True)
class SplitRow:
    """A split, and where its images come from."""

    name: str
    origin: str
    images: int | None  # None if it is not known
    use: str


@dataclass(frozen=True)
class Page:
    """Everything that the template reads."""

    title: str
    spec: ModelSpec
    history: tuple[Epoch, ...]
    figures: tuple[Figure, ...]
    charts: tuple[Chart, ...]
    classes: tuple[RankedClass, ...]  # worst first
    more_classes: tuple[RankedClass, ...]  # the next ones
    classes_with_images: int  # classes with a test image
    matrix: tuple[tuple[Cell, ...], ...]  # empty for many classes
    has_numbers: bool  # whether the cells of the matrix are large enough for numbers
    has_short_labels: bool  # whether labels fit into narrow columns without being turned
    confusions: tuple[Cell, ...]  # most frequent first; only for many classes
    images: tuple[ImageCard, ...]
    test_images: int
    mistakes: tuple[ImageCard, ...]  # most confident first
    mistake_count: int
    splits: tuple[SplitRow, ...]
    quality: QualitySection | None
    has_features: bool
    findings: tuple[str, ...]  # what people should know about the data
    unreadable_images: int
    uncalibrated_error: float | None  # calibration error without the temperature
    is_pixelated: bool
    bins: tuple[CalibrationBin, ...]
    warnings: tuple[str, ...]  # what is wrong with the training


def html_from_run(results: RunResults, quality: DataQuality | None = None) -> str:
    """Return the report as the text of one HTML file, well below 1.5 MB.

    Args:
        results: of the run.
        quality: what the features say about the data; None if there are no features.
    """
    page = _build_page(results, quality)
    return environment().get_template("report.html.j2").render(page=page, export_section=EMPTY_EXPORT_SECTION)


def _build_page(results: RunResults, quality: DataQuality | None) -> Page:
    predictions = predict(results)
    labels = predictions.labels
    counts = count_confusions(predictions)
    classes = rank_classes(counts, labels)
    has_matrix = len(labels) <= MAX_MATRIX_CLASSES
    mistakes = rank_mistakes(predictions)
    return Page(
        title=title_of(results.spec),
        spec=results.spec,
        history=tuple(results.history),
        figures=build_figures(results, predictions),
        charts=draw_charts(results.history),
        classes=classes[:MAX_CLASSES],
        more_classes=classes[MAX_CLASSES : MAX_CLASSES + MAX_MORE_CLASSES],
        classes_with_images=len(classes),
        matrix=build_confusion_matrix(counts, labels) if has_matrix else (),
        has_numbers=len(labels) <= MAX_NUMBERED_CLASSES,
        has_short_labels=max(map(len, labels)) <= 3,
        confusions=() if has_matrix else rank_confusions(counts, labels),
        images=build_cards(predictions, spread_over_classes(predictions.targets, MAX_IMAGES), _IMAGES_BYTES),
        test_images=len(predictions.targets),
        mistakes=build_cards(predictions, mistakes[:MAX_MISTAKES], _MISTAKES_BYTES),
        mistake_count=len(mistakes),
        splits=_describe_splits(results),
        quality=_build_quality(results, quality, labels),
        has_features=results.features is not None,
        findings=results.findings,
        unreadable_images=results.unreadable_images,
        uncalibrated_error=results.uncalibrated.calibration_error if results.uncalibrated else None,
        is_pixelated=max(predictions.pixels.shape[:2]) <= MAX_PIXELATED_SIDE,
        bins=bin_by_confidence(predictions.confidence, predictions.correct),
        warnings=results.warnings,
    )


def _build_quality(results: RunResults, quality: DataQuality | None, labels: Sequence[str]) -> QualitySection | None:
    if quality is None or results.splits is None:
        return None
    return build_quality_section(results.splits, quality, labels)


def _describe_splits(results: RunResults) -> tuple[SplitRow, ...]:
    provenance = results.spec.provenance
    origins = provenance.splits if provenance is not None and provenance.splits is not None else {}
    counts = [len(part.targets) for part in results.splits.parts] if results.splits else [None, None, None]
    return tuple(
        SplitRow(name, origins.get(key, _CHOSEN_BY_SEED), count, use)
        for (name, key, use), count in zip(_SPLITS, counts, strict=True)
    )
