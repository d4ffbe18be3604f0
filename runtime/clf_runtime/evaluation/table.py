"""What `clf-eval` prints: the models side by side, then classes, confusions and mistakes."""

from __future__ import annotations

from collections.abc import Sequence

from clf_runtime.errors import escape
from clf_runtime.evaluation.formatting import (
    format_images,
    format_interval,
    format_ms,
    format_p_value,
    format_percent,
    format_points,
    one_line,
    shorten,
)
from clf_runtime.evaluation.metrics import ClassMetrics, rank_confusions, rank_mistakes
from clf_runtime.evaluation.results import Comparison, Evaluation, ModelResult
from clf_runtime.evaluation.selection import EvalImages
from clf_runtime.progress import format_rate

_SIGNIFICANCE = 0.05
_MAX_CLASSES = 40
_MAX_MATRIX_CLASSES = 12
_MAX_CHANGES = 10
_MAX_MISTAKES = 10
_MATRIX_LABEL_LENGTH = 7
_DIGEST_LENGTH = 12  # enough to tell files apart; --format json has all of it


def format_evaluation(evaluation: Evaluation) -> str:
    """Return the results as text."""
    results = evaluation.results
    parts = [
        escape(describe_images(evaluation.images)),
        _format_overview(evaluation),
    ]
    if len(results) == 1:
        parts += [_format_classes(results[0]), _format_matrix(results[0]), _format_mistakes(results[0], evaluation)]
    else:
        parts += [_format_comparison(comparison) for comparison in evaluation.comparisons]
        parts.append(_format_f1(evaluation))
    return "\n\n".join(filter(None, parts))


def overview_rows(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
    """Return name and value of each figure, a value for each model."""
    results = evaluation.results
    top = results[0].metrics.top
    has_top = 1 < top < max(len(result.labels) for result in results)
    rows = [
        ("accuracy", [format_percent(result.metrics.accuracy) for result in results]),
        ("  95 % interval", [format_interval(result.metrics.interval) for result in results]),
        ("  correct", [f"{result.metrics.correct:,} of {result.metrics.images:,}" for result in results]),
        *([(f"top-{top} accuracy", [format_percent(r.metrics.top_accuracy) for r in results])] if has_top else []),
        ("balanced accuracy", [format_percent(result.metrics.balanced_accuracy) for result in results]),
        ("macro F1", [format_percent(result.metrics.macro_f1) for result in results]),
        ("loss", [f"{result.metrics.loss:.4f}" for result in results]),
        ("calibration error", [format_percent(result.metrics.calibration_error) for result in results]),
        ("latency, one image", [format_ms(result.latency.total_ms) for result in results]),
        ("  preprocess", [format_ms(result.latency.preprocess_ms) for result in results]),
        ("  inference", [format_ms(result.latency.inference_ms) for result in results]),
        ("throughput", [format_rate(result.throughput) for result in results]),
        ("precision", [result.precision for result in results]),
        ("provider", [result.provider for result in results]),
        ("file", [f"{result.file.size_bytes / 1e6:.2f} MB" for result in results]),
        ("sha256", [result.file.sha256[:_DIGEST_LENGTH] for result in results]),
    ]
    if evaluation.comparisons:
        differences = [
            f"{format_points(row.difference)}, {format_p_value(row.p_value)}" for row in evaluation.comparisons
        ]
        rows.insert(3, ("  difference", ["", *differences]))
    return rows


def describe_images(images: EvalImages) -> str:
    """Return in one line which images were evaluated."""
    split = "all images" if images.split == "all" else f"{images.split} split"
    labels = len(images.counts)
    return (
        f"{images.source}: {split}, {format_images(len(images))} of {labels:,} {'label' if labels == 1 else 'labels'}"
    )


def describe_comparison(comparison: Comparison) -> str:
    """Return in one line whether two models differ."""
    names = escape(f"{comparison.second} against {comparison.first}")
    test = f"{format_points(comparison.difference)} ({format_p_value(comparison.p_value)}, exact McNemar test)"
    changed = f"{len(comparison.changes):,} of {comparison.images:,} predictions changed"
    if not comparison.only_first and not comparison.only_second:
        return f"{names}: no difference in accuracy; {changed}"
    verdict = "more than chance explains" if comparison.p_value < _SIGNIFICANCE else "chance can explain it"
    directions = f"{comparison.only_second:,} to right, {comparison.only_first:,} to wrong"
    return f"{names}: {test}, {verdict}; {changed}, {directions}"


def _format_overview(evaluation: Evaluation) -> str:
    rows = [["", *evaluation.names]]
    rows += [[name, *values] for name, values in overview_rows(evaluation)]
    return _align(rows, "<" * len(rows[0]))


def _format_classes(result: ModelResult) -> str:
    taken_for = {}
    for true, predicted, images in reversed(rank_confusions(result.metrics.confusions, len(result.metrics.confusions))):
        taken_for[result.labels[true]] = f"{shorten(result.labels[predicted])} ({images:,})"
    rows = [["label", "images", "precision", "recall", "F1", "most often taken for"]]
    classes, title = _select_classes(result.metrics.classes)
    for row in classes:
        shares = (format_percent(share, 1) for share in (row.precision, row.recall, row.f1))
        rows.append([shorten(row.label), f"{row.images:,}", *shares, taken_for.get(row.label, "")])
    return title + _align(rows, "<>>>><")


def _select_classes(classes: Sequence[ClassMetrics]) -> tuple[Sequence[ClassMetrics], str]:
    """Return the classes to show, and what to say if those are not all."""
    if len(classes) <= _MAX_CLASSES:
        return classes, ""
    worst = sorted((row for row in classes if row.images), key=lambda row: (row.f1 or 0.0, -row.images))
    return worst[:_MAX_CLASSES], (
        f"the {_MAX_CLASSES} classes with the lowest F1, of {len(classes):,} (--format json has all)\n"
    )


def _format_matrix(result: ModelResult) -> str:
    labels, confusions = result.labels, result.metrics.confusions
    if len(labels) > _MAX_MATRIX_CLASSES:
        return ""
    rows = [["true \\ predicted", *(shorten(label, _MATRIX_LABEL_LENGTH) for label in labels)]]
    for true, label in enumerate(labels):
        counts = [confusions.get((true, predicted), 0) for predicted in range(len(labels))]
        rows.append([shorten(label), *(f"{count:,}" if count else "." for count in counts)])
    return _align(rows, "<" + ">" * len(labels))


def _format_mistakes(result: ModelResult, evaluation: Evaluation) -> str:
    mistakes = rank_mistakes(result.scored)
    if not mistakes:
        return "no mistakes"
    rows = [["mistake", "label", "predicted", "score"]]
    for row in mistakes[:_MAX_MISTAKES]:
        path = str(evaluation.images.files[result.positions[row]])
        labels = (result.labels[index] for index in (result.scored.targets[row], result.scored.predicted[row]))
        rows.append([one_line(path), *map(shorten, labels), f"{result.scored.confidence[row]:.3f}"])
    more = len(mistakes) - len(rows) + 1
    return _align(rows, "<<<>") + (f"\nand {more:,} more (--html or --format json has all)" if more else "")


def _format_comparison(comparison: Comparison) -> str:
    if not comparison.changes:
        return describe_comparison(comparison)
    rows = [["changed", "label", "first", "second"]]
    for change in comparison.changes[:_MAX_CHANGES]:
        first, second = (
            f"{shorten(label)}{' (right)' if is_correct else ''}"
            for label, is_correct in (
                (change.first, change.is_first_correct),
                (change.second, change.is_second_correct),
            )
        )
        rows.append([one_line(change.path), shorten(change.label), first, second])
    more = len(comparison.changes) - len(rows) + 1
    return f"{describe_comparison(comparison)}\n{_align(rows, '<<<<')}" + (
        f"\nand {more:,} more (--html or --format json has all)" if more else ""
    )


def _format_f1(evaluation: Evaluation) -> str:
    """Return the F1 of each class of the first model, a column for each model."""
    results = evaluation.results
    rows = [["F1", "images", *evaluation.names]]
    classes, title = _select_classes(results[0].metrics.classes)
    others = [{row.label: row for row in result.metrics.classes} for result in results]
    for row in classes:
        values = [format_percent(other[row.label].f1, 1) if row.label in other else "-" for other in others]
        rows.append([shorten(row.label), f"{row.images:,}", *values])
    return title + _align(rows, "<" + ">" * (len(results) + 1))


def _align(rows: Sequence[Sequence[str]], alignments: str) -> str:
    rows = [list(map(escape, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            f"{cell:{alignment}{width}}" for cell, alignment, width in zip(row, alignments, widths, strict=True)
        ).rstrip()
        for row in rows
    )
