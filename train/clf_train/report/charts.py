"""The learning curves of report.html: training and validation over the epochs, in coordinates of 0..1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clf_train.history import Epoch

_Y_STEPS = 5
_X_TICKS = 8


@dataclass(frozen=True)
class Scale:
    """The vertical axis of a chart."""

    name: str
    axis: str
    find_low: Callable[[Sequence[float]], float]  # returns where the axis begins for these values
    format_value: Callable[[float], str]
    format_tick: Callable[[float], str]


@dataclass(frozen=True)
class Tick:
    """A text at a position."""

    at: float  # 0..1 along its axis
    text: str


@dataclass(frozen=True)
class Line:
    """A curve; `points` are 0..1 from the left and from the bottom of the chart, `last` is the last value."""

    name: str
    points: tuple[tuple[float, float], ...]
    last: str


@dataclass(frozen=True)
class Chart:
    """Curves over the epochs; `marks` are the values of each epoch as text, shown when the pointer is over it."""

    scale: Scale
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Tick, ...]


def format_percent(share: float) -> str:
    """Return a share of 0..1 in percent; only exactly 1 reads 100, only exactly 0 reads 0."""
    text = f"{100 * share:.1f}"
    if text == "100.0" and share < 1:
        text = ">99.9"
    if text == "0.0" and share > 0:
        text = "<0.1"
    return f"{text}\u00a0%"


# A loss is compared with 0. Accuracies are often close together, so their axis begins near the lowest; it spans at
# least 5 percentage points, so that a flat curve looks flat.
LOSS = Scale("Loss", "loss, nats", lambda values: 0, "{:.4f}".format, "{:.4g}".format)
ACCURACY = Scale(
    "Accuracy",
    "accuracy",
    lambda values: max(0, min(min(values), max(values) - 0.05)),
    format_percent,
    lambda share: f"{100 * share:.4g}\u00a0%",
)


def draw_charts(history: Sequence[Epoch]) -> tuple[Chart, ...]:
    """Return the charts of the loss and of the accuracy; none if no epoch was trained."""
    if not history:
        return ()
    epochs = [epoch.epoch for epoch in history]
    losses = [(epoch.train_loss, epoch.validation_loss) for epoch in history]
    accuracies = [(epoch.train_accuracy, epoch.validation_accuracy) for epoch in history]
    return (
        _draw_chart(LOSS, epochs, losses),
        _draw_chart(ACCURACY, epochs, accuracies),
    )


def _draw_chart(scale: Scale, epochs: Sequence[int], values: Sequence[tuple[float, float | None]]) -> Chart:
    """Lay out one chart; `values` are pairs of training and validation, one for each epoch."""
    # A diverged training has epochs without a finite loss, and its report is the one that is needed most.
    finite = [value for pair in values for value in pair if value is not None and math.isfinite(value)]
    heights = choose_round_values(scale.find_low(finite) if finite else 0, max(finite, default=1))

    def height(value: float) -> float:
        return (value - heights[0]) / (heights[-1] - heights[0])

    def position(epoch: int) -> float:
        return (epoch - epochs[0]) / (epochs[-1] - epochs[0]) if len(epochs) > 1 else 0.5

    def line(name: str, series: Sequence[float | None]) -> Line | None:
        known = [(epoch, value) for epoch, value in zip(epochs, series, strict=True) if value is not None]
        points = tuple((position(epoch), height(value)) for epoch, value in known if math.isfinite(value))
        return Line(name, points, scale.format_value(known[-1][1])) if known else None

    lines = (line("training", [pair[0] for pair in values]), line("validation", [pair[1] for pair in values]))
    return Chart(
        scale=scale,
        lines=tuple(line for line in lines if line is not None),
        x_ticks=tuple(Tick(position(epoch), str(epoch)) for epoch in _choose_round_epochs(epochs)),
        y_ticks=tuple(Tick(height(value), scale.format_tick(value)) for value in heights),
        marks=tuple(
            Tick(position(epoch), _format_mark(epoch, pair, scale)) for epoch, pair in zip(epochs, values, strict=True)
        ),
    )


def _format_mark(epoch: int, pair: tuple[float, float | None], scale: Scale) -> str:
    validation = "" if pair[1] is None else f", validation {scale.format_value(pair[1])}"
    return f"epoch {epoch}: training {scale.format_value(pair[0])}{validation}"


def choose_round_values(low: float, high: float) -> tuple[float, ...]:
    """Return values in steps of 1, 2, 2.5 or 5 times a power of ten, from at most `low` to at least `high`."""
    high = max(high, low + 0.01)  # all values may be equal
    rough = (high - low) / _Y_STEPS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    # 1e-9: 0.3 / 0.1 is 2.9999..., which must not add an empty step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(number * step for number in range(first, last + 1))


def _choose_round_epochs(epochs: Sequence[int]) -> list[int]:
    steps = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    step = next(step for step in steps if len(epochs) <= _X_TICKS * step)
    return [epoch for epoch in epochs if epoch % step == 0 or (epoch == epochs[0] and step > 2)]
