"""The chart of accuracy against the number of training images, in coordinates of 0..1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clf_train.data_quality.learning_curve import CurvePoint, LearningCurve
from clf_train.report.charts import ACCURACY, Tick, choose_round_values


@dataclass(frozen=True)
class CurveMark:
    """A point of the curve: 0..1 from the left and from the bottom, with its interval and its values as text."""

    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class CurveChart:
    """Measured points, and the point to which they are extrapolated."""

    marks: tuple[CurveMark, ...]
    doubled: CurveMark
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def draw_learning_curve(curve: LearningCurve) -> CurveChart:
    """Lay out a learning curve; the images have a logarithmic axis, on which a power law is nearly straight."""
    points = (*curve.points, curve.doubled)
    heights = choose_round_values(max(0.0, min(point.low for point in points)), max(point.high for point in points))
    first, last = math.log(points[0].images), math.log(points[-1].images)

    def place(point: CurvePoint) -> CurveMark:
        low, y, high = (
            (value - heights[0]) / (heights[-1] - heights[0]) for value in (point.low, point.accuracy, point.high)
        )
        text = f"{point.images:,} images: {ACCURACY.format_value(point.accuracy)} " + (
            f"(95 % interval {100 * point.low:.1f} to {100 * point.high:.1f}\u00a0%)"
        )
        return CurveMark((math.log(point.images) - first) / (last - first), y, low, high, text)

    marks = [place(point) for point in points]
    return CurveChart(
        marks=tuple(marks[:-1]),
        doubled=marks[-1],
        x_ticks=tuple(Tick(mark.x, f"{point.images:,}") for mark, point in zip(marks, points, strict=True)),
        y_ticks=tuple(
            Tick((value - heights[0]) / (heights[-1] - heights[0]), ACCURACY.format_tick(value)) for value in heights
        ),
    )
