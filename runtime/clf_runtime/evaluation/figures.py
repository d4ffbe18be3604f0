"""The parts of the page: tables, the confusion matrix and the reliability diagram."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from clf_runtime.evaluation.calibration import CalibrationBin
from clf_runtime.evaluation.formatting import format_images, format_percent, one_line, shorten
from clf_runtime.evaluation.markup import Markup, element, join
from clf_runtime.evaluation.metrics import rank_confusions
from clf_runtime.evaluation.results import ModelResult

MAX_MATRIX_CLASSES = 40  # beyond, a table of confusions says more than 1,681 tiny cells
_MAX_NUMBERED_CLASSES = 20  # beyond, the cells are too small for numbers
_MAX_CONFUSIONS = 30
MAX_LABEL_LENGTH = 80  # a label can be as long as a page, and the page repeats it many times
MAX_ROWS = 1000

# The frame of the diagram, in the SVG's own units.
_LEFT, _RIGHT, _TOP, _BOTTOM, _BASE = 60, 386, 14, 204, 262
_COUNT_HEIGHT = 40


def draw_confusions(result: ModelResult) -> Markup:
    """Return the confusion matrix; for many classes, a table of the most frequent confusions."""
    if len(result.labels) <= MAX_MATRIX_CLASSES:
        return _draw_matrix(result)
    confusions = rank_confusions(result.metrics.confusions, _MAX_CONFUSIONS)
    if not confusions:
        return element("p", "There are none.", class_="note")
    rows = [
        (
            shorten(result.labels[true], MAX_LABEL_LENGTH),
            shorten(result.labels[predicted], MAX_LABEL_LENGTH),
            f"{images:,}",
        )
        for true, predicted, images in confusions
    ]
    return join(
        element("p", f"The {len(rows)} most frequent confusions.", class_="note"),
        draw_table(("True", "Predicted", "Images"), rows, numbers={2}),
    )


def draw_table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> Markup:
    """Return a table that scrolls where it is too wide.

    Args:
        headings: The name of each column.
        rows: The cells of each row; the first MAX_ROWS are shown.
        numbers: Which columns are numbers.
    """
    kinds = ["number" if column in numbers else None for column in range(len(headings))]
    head = element(
        "tr", *(element("th", text, scope="col", class_=kind) for text, kind in zip(headings, kinds, strict=True))
    )
    body = [
        element("tr", *(element("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)))
        for row in rows[:MAX_ROWS]
    ]
    table = element("table", element("thead", head), element("tbody", *body), class_="list")
    more = len(rows) - MAX_ROWS
    note = element("p", f"{more:,} more are not shown; --format json has all.", class_="note") if more > 0 else ""
    return join(draw_scrolling(table, headings[0]), note)


def draw_path(path: str) -> Markup:
    """Return a path as it appears in tables."""
    return element("span", one_line(path), class_="path")


def draw_scrolling(content: Markup, label: str) -> Markup:
    """Return content that may be wider than the screen."""
    return element("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)


def draw_reliability(bins: Sequence[CalibrationBin]) -> Markup:
    """Return the accuracy by confidence, and the number of images of each bin."""
    most = max(bin_.count for bin_ in bins)
    shapes = [_draw_axis(percents) for percents in range(0, 101, 20)]
    shapes += [_draw_bin(bin_, most) for bin_ in bins if bin_.count]
    shapes += [
        _text("accuracy", transform=f"translate(8 {(_TOP + _BOTTOM) / 2}) rotate(-90)", anchor="middle"),
        _text("images", x=_LEFT - 7, y=_BASE - 20, dy=".34em", anchor="end"),
        _text("confidence", x=(_LEFT + _RIGHT) / 2, y=_BASE + 38, anchor="middle"),
        element("line", class_="rule", x1=_LEFT, x2=_RIGHT, y1=_BASE, y2=_BASE),
        element("line", class_="perfect", x1=_LEFT, y1=_BOTTOM, x2=_RIGHT, y2=_TOP),
    ]
    label = f"Accuracy by confidence, in {len(bins)} bins, and the number of images of each"
    return element("svg", *shapes, viewBox="0 0 400 306", role="img", aria_label=label)


def _draw_matrix(result: ModelResult) -> Markup:
    labels = result.labels
    has_numbers = len(labels) <= _MAX_NUMBERED_CLASSES
    is_short = max(map(len, labels)) <= 3
    heads = [
        element(
            "th", element("div", shorten(label)), scope="col", class_="upright" if is_short else "side", title=label
        )
        for label in labels
    ]
    rows = [
        element("tr", element("td"), element("th", "predicted", class_="over", colspan=len(labels), scope="colgroup")),
        element("tr", element("th", "true", class_="corner", scope="col"), *heads),
    ]
    for true, label in enumerate(labels):
        cells = [_draw_cell(result, true, predicted, has_numbers) for predicted in range(len(labels))]
        rows.append(element("tr", element("th", element("span", shorten(label)), scope="row", title=label), *cells))
    note = "Rows are the true classes, columns the predicted ones; blue is correct, red is wrong. "
    note += "The larger its share of the row, the stronger a cell's color."
    return join(
        element("p", note if has_numbers else f"{note} Hover over a cell to see its numbers.", class_="note"),
        draw_scrolling(
            element("table", *rows, class_="matrix" if has_numbers else "matrix small"),
            "Confusion matrix",
        ),
    )


def _draw_cell(result: ModelResult, true: int, predicted: int, has_numbers: bool) -> Markup:
    count = result.metrics.confusions.get((true, predicted), 0)
    if not count:
        return element("td", "0" if has_numbers else "", class_="none")
    share = count / result.metrics.classes[true].images
    return element(
        "td",
        f"{count:,}" if has_numbers else "",
        class_="correct" if true == predicted else "wrong",
        # The square root makes a single error visible: 1 % of a row gets a tenth of the color.
        style=f"--share:{share**0.5:.2f}",
        title=f"{shorten(result.labels[true])} → {shorten(result.labels[predicted])}: {count:,} "
        f"({format_percent(share, 1)})",
    )


def _draw_axis(percents: int) -> Markup:
    y, x = _height(percents / 100), _across(percents / 100)
    return join(
        element("line", class_="rule", x1=_LEFT, x2=_RIGHT, y1=y, y2=y),
        _text(f"{percents}\u00a0%", x=_LEFT - 7, y=y, dy=".34em", anchor="end"),
        _text(f"{percents}\u00a0%", x=x, y=_BASE + 18, anchor="middle"),
    )


def _draw_bin(bin_: CalibrationBin, most: int) -> Markup:
    left, width = _across(bin_.low) + 1.5, _across(bin_.high) - _across(bin_.low) - 3
    counted = max(_COUNT_HEIGHT * bin_.count / most, 1.5)
    title = (
        f"confidence {100 * bin_.low:.0f} to {100 * bin_.high:.0f} %: {format_images(bin_.count)}, accuracy "
        f"{format_percent(bin_.accuracy, 1)}, mean confidence {format_percent(bin_.confidence, 1)}"
    )
    common = {"x": f"{left:.1f}", "width": f"{width:.1f}"}
    return element(
        "g",
        element("title", title),
        element("rect", class_="hit", y=_TOP, height=_BASE - _TOP, **common),
        element(
            "rect", class_="bar", y=_height(bin_.accuracy), height=f"{_BOTTOM - _height(bin_.accuracy):.1f}", **common
        ),
        element("rect", class_="count", y=f"{_BASE - counted:.1f}", height=f"{counted:.1f}", **common),
        class_="bin",
    )


def _text(content: str, anchor: str, **attributes: object) -> Markup:
    return element("text", content, text_anchor=anchor, **attributes)


def _across(share: float) -> float:
    return round(_LEFT + share * (_RIGHT - _LEFT), 1)


def _height(share: float) -> float:
    return round(_BOTTOM - share * (_BOTTOM - _TOP), 1)
