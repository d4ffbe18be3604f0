"""The curves of report.html: training against validation over the epochs, laid out in 0..1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clf_train.history import Epoch

_Y_STEPS = 5
_X_TICKS = 8


@dataclass(frozen=True)
class Scale:
    """What a chart's heights mean and how they read."""

    name: str
    axis: str
    low: Callable[[Sequence[float]], float]  # where the axis begins for these values
    text: Callable[[float], str]
    tick_text: Callable[[float], str]


@dataclass(frozen=True)
class Tick:
    at: float  # 0..1 along its axis
    text: str


@dataclass(frozen=True)
class Line:
    """A curve; `points` are 0..1 from the left and from the bottom of the chart."""

    name: str
    points: tuple[tuple[float, float], ...]
    last: str


@dataclass(frozen=True)
class Chart:
    """Curves over the epochs; `marks` are the values of one epoch as text, for a pointer over it."""

    scale: Scale
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Tick, ...]


def percent(share: float) -> str:
    """Give a share of 0..1 in percent; only what is all of it reads 100, only what is nothing reads 0."""
    text = f"{100 * share:.1f}"
    if text == "100.0" and share < 1:
        text = ">99.9"
    if text == "0.0" and share > 0:
        text = "<0.1"
    return f"{text}\u00a0%"


# A loss is read against 0. Accuracies often lie close together, so their axis begins near the lowest; it spans
# 5 points at least, lest a flat curve look wild.
LOSS = Scale("Loss", "loss, nats", lambda values: 0, "{:.4f}".format, "{:.4g}".format)
ACCURACY = Scale(
    "Accuracy",
    "accuracy",
    lambda values: max(0, min(min(values), max(values) - 0.05)),
    percent,
    lambda share: f"{100 * share:.4g}\u00a0%",
)


def charts(history: Sequence[Epoch]) -> tuple[Chart, ...]:
    """Give the loss and the accuracy over the epochs, nothing where no epoch was trained."""
    if not history:
        return ()
    epochs = [epoch.epoch for epoch in history]
    losses = [(epoch.train_loss, epoch.validation_loss) for epoch in history]
    accuracies = [(epoch.train_accuracy, epoch.validation_accuracy) for epoch in history]
    return (
        _chart(LOSS, epochs, losses),
        _chart(ACCURACY, epochs, accuracies),
    )


def _chart(scale: Scale, epochs: Sequence[int], values: Sequence[tuple[float, float | None]]) -> Chart:
    """Lay out one chart; `values` are pairs of training and validation, one for each epoch."""
    # A training that diverged has epochs without a finite loss, and is the one whose report is needed most.
    known = [value for pair in values for value in pair if value is not None and math.isfinite(value)]
    heights = _round_values(scale.low(known) if known else 0, max(known, default=1))

    def height(value: float) -> float:
        return (value - heights[0]) / (heights[-1] - heights[0])

    def along(epoch: int) -> float:
        return (epoch - epochs[0]) / (epochs[-1] - epochs[0]) if len(epochs) > 1 else 0.5

    def line(which: str, series: Sequence[float | None]) -> Line | None:
        there = [(epoch, value) for epoch, value in zip(epochs, series, strict=True) if value is not None]
        points = tuple((along(epoch), height(value)) for epoch, value in there if math.isfinite(value))
        return Line(which, points, scale.text(there[-1][1])) if there else None

    lines = (line("training", [pair[0] for pair in values]), line("validation", [pair[1] for pair in values]))
    return Chart(
        scale=scale,
        lines=tuple(line for line in lines if line is not None),
        x_ticks=tuple(Tick(along(epoch), str(epoch)) for epoch in _round_epochs(epochs)),
        y_ticks=tuple(Tick(height(value), scale.tick_text(value)) for value in heights),
        marks=tuple(
            Tick(along(epoch), _mark_text(epoch, pair, scale.text)) for epoch, pair in zip(epochs, values, strict=True)
        ),
    )


def _mark_text(epoch: int, pair: tuple[float, float | None], text: Callable[[float], str]) -> str:
    validation = "" if pair[1] is None else f", validation {text(pair[1])}"
    return f"epoch {epoch}: training {text(pair[0])}{validation}"


def _round_values(low: float, high: float) -> tuple[float, ...]:
    """Give values in steps of 1, 2, 2.5 or 5 times a power of ten, from `low` or below to `high` or above."""
    high = max(high, low + 0.01)  # all values may be one
    rough = (high - low) / _Y_STEPS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    # 1e-9: 0.3 / 0.1 is 2.9999..., and must not cost an empty step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(number * step for number in range(first, last + 1))


def _round_epochs(epochs: Sequence[int]) -> list[int]:
    steps = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    step = next(step for step in steps if len(epochs) <= _X_TICKS * step)
    return [epoch for epoch in epochs if epoch % step == 0 or (epoch == epochs[0] and step > 2)]
