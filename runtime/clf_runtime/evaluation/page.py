"""The page of an evaluation: one HTML file that needs no network and no other file."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone

from clf_runtime import __version__
from clf_runtime.evaluation.document import draw_card, html_document
from clf_runtime.evaluation.figures import (
    MAX_LABEL_LENGTH,
    draw_confusions,
    draw_path,
    draw_reliability,
    draw_scrolling,
    draw_table,
)
from clf_runtime.evaluation.formatting import format_images, format_percent, one_line, shorten
from clf_runtime.evaluation.markup import Markup, element, join
from clf_runtime.evaluation.metrics import rank_confusions
from clf_runtime.evaluation.mistakes import draw_mistakes
from clf_runtime.evaluation.record import describe_machine
from clf_runtime.evaluation.results import Comparison, Evaluation, ModelResult
from clf_runtime.evaluation.table import describe_comparison, describe_images, overview_rows


def html_from_evaluation(evaluation: Evaluation) -> str:
    """Return the page as the text of one HTML file; images are read again for thumbnails of the mistakes."""
    images, results = evaluation.images, evaluation.results
    title = f"Evaluation on {shorten(images.source.name or str(images.source), MAX_LABEL_LENGTH)}"
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    body = [
        element("p", f"clf-eval {__version__}, {date}, {describe_machine()}", class_="eyebrow"),
        element("h1", title),
        element("p", describe_images(images)),
        *_draw_warnings(evaluation),
        draw_card("Overview", _draw_overview(evaluation)),
        *(draw_card("Comparison", _draw_comparison(comparison)) for comparison in evaluation.comparisons),
        *(
            _draw_model(result, evaluation, f" ({name})" if len(results) > 1 else "")
            for name, result in zip(evaluation.names, results, strict=True)
        ),
    ]
    return html_document(title, *body)


def _draw_warnings(evaluation: Evaluation) -> Iterable[Markup]:
    for warning in evaluation.warnings:
        yield element("p", one_line(warning), class_="note warning")
    failures = evaluation.failures
    if failures:
        rows = [[draw_path(failure.path or ""), failure.kind, failure.message] for failure in failures]
        yield element(
            "details",
            element("summary", f"{format_images(len(failures))} could not be read and are not part of any number"),
            draw_table(("Image", "Problem", "Details"), rows),
            class_="note warning",
        )


def _draw_overview(evaluation: Evaluation) -> Markup:
    names = element("tr", element("td"), *(element("th", name, scope="col") for name in evaluation.names))
    rows = [
        element(
            "tr",
            element("th", name.strip(), scope="row"),
            *(element("td", value) for value in values),
            class_="first" if name == "accuracy" else None,
        )
        for name, values in overview_rows(evaluation)
    ]
    table = element("table", element("thead", names), element("tbody", *rows), class_="list overview")
    return draw_scrolling(table, "Overview")


def _draw_comparison(comparison: Comparison) -> Markup:
    summary = element("p", describe_comparison(comparison))
    if not comparison.changes:
        return summary
    rows = [
        [
            draw_path(change.path),
            shorten(change.label, MAX_LABEL_LENGTH),
            _answer(change.first, change.is_first_correct),
            _answer(change.second, change.is_second_correct),
        ]
        for change in comparison.changes
    ]
    return join(
        summary,
        element(
            "details",
            element("summary", f"{format_images(len(comparison.changes))} with another prediction"),
            draw_table(("Image", "Label", "First", "Second"), rows),
        ),
    )


def _draw_model(result: ModelResult, evaluation: Evaluation, suffix: str) -> Markup:
    return join(
        draw_card(f"Classes{suffix}", _draw_classes(result)),
        draw_card(f"Confusions{suffix}", draw_confusions(result)),
        draw_card(f"Calibration{suffix}", _draw_calibration(result)),
        draw_card(f"Mistakes{suffix}", draw_mistakes(result, evaluation)),
    )


def _draw_classes(result: ModelResult) -> Markup:
    taken_for = {}
    for true, predicted, images in reversed(rank_confusions(result.metrics.confusions, len(result.metrics.confusions))):
        taken_for[result.labels[true]] = f"{shorten(result.labels[predicted], MAX_LABEL_LENGTH)} ({images:,})"
    rows = [
        [
            shorten(row.label, MAX_LABEL_LENGTH),
            f"{row.images:,}",
            *(format_percent(share, 1) for share in (row.precision, row.recall, row.f1)),
            taken_for.get(row.label, ""),
        ]
        for row in sorted(result.metrics.classes, key=lambda row: (row.f1 is None, row.f1))
    ]
    return join(
        element("p", "The lowest F1 first.", class_="note"),
        draw_table(
            ("Label", "Images", "Precision", "Recall", "F1", "Most often taken for"), rows, numbers={1, 2, 3, 4}
        ),
    )


def _draw_calibration(result: ModelResult) -> Markup:
    rows = [
        [
            f"{row.threshold:g}",
            format_percent(row.images / result.metrics.images, 1),
            format_percent(row.accuracy),
        ]
        for row in result.metrics.thresholds
    ]
    note = (
        f"The expected calibration error is {format_percent(result.metrics.calibration_error)}: how far confidence and "
        "accuracy differ on average. Bars on the dotted line are well calibrated; the gray bars count images."
    )
    return element(
        "div",
        element("div", element("p", note, class_="note"), draw_reliability(result.metrics.bins)),
        element(
            "div",
            element("p", "What clf-run --threshold P would leave, and how much of it is correct.", class_="note"),
            draw_table(("Threshold", "Images", "Accuracy"), rows, numbers={0, 1, 2}),
        ),
        class_="beside",
    )


def _answer(label: str, is_correct: bool) -> Markup:
    return element("span", shorten(label, MAX_LABEL_LENGTH), class_="right" if is_correct else "wrong")
