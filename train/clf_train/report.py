"""report.html: what training reached, as one page that needs no network and no other file.

This module counts and sorts; where things go on the page and how they look is in `report.html.j2`. Everything
that is text, labels above all, goes through the template's autoescape; nothing here builds markup.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from clf_runtime.preprocess import UInt8Array
from clf_runtime.spec import ModelSpec
from clf_train.dataset import Int64Array
from clf_train.history import Epoch

Float32Array = npt.NDArray[np.float32]

BINS = 15  # as in clf_runtime.spec.Metrics.calibration_error
MOST_BARS = 30
MOST_NUMBERED = 20  # classes; beyond, the matrix's cells are too small for numbers
MOST_IN_MATRIX = 40  # classes; beyond, a table of confusions says more than 1,681 specks
MOST_CONFUSIONS = 30
MOST_PICTURES = 40
MOST_MISTAKES = 20

# 60 pictures of 96 x 96 RGB noise, the worst case, take 0.55 MB as JPEG 85 and would take 2.2 MB as PNG.
_LONGEST_SIDE = 96
_LONGEST_PIXELATED_SIDE = 32  # up to here a picture's own pixels are to be seen: no JPEG, and no smooth enlarging
_JPEG_QUALITY = 85

_LONGEST_LABEL = 80  # characters; a label can be a whole page, and the page repeats it many times
_Y_STEPS = 5
_X_TICKS = 8


@dataclass(frozen=True)
class Figure:
    """One of the headline figures."""

    name: str
    value: str
    note: str


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


@dataclass(frozen=True)
class ClassBar:
    label: str
    right: int
    total: int

    @property
    def share(self) -> float:
        return self.right / self.total


@dataclass(frozen=True)
class Cell:
    """Pictures of one class that were given one label; `share` of the class, 0..1."""

    true: str
    predicted: str
    count: int
    share: float
    right: bool


@dataclass(frozen=True)
class Shown:
    """A held-out picture with the answer it got."""

    source: str  # a data URI
    true: str
    predicted: str
    probability: float
    right: bool


@dataclass(frozen=True)
class Bin:
    """Pictures whose confidence is in [low, high), the last bin's up to 1; both means are 0 where there are none."""

    low: float
    high: float
    count: int
    accuracy: float
    confidence: float


@dataclass(frozen=True)
class Answers:
    """The model's answers to the held-out pictures."""

    labels: tuple[str, ...]
    pixels: UInt8Array  # (N, H, W, C)
    targets: Int64Array  # (N,)
    predicted: Int64Array  # (N,)
    confidence: Float32Array  # (N,) the predicted class's probability


@dataclass(frozen=True)
class Page:
    """All that the template reads."""

    title: str
    spec: ModelSpec
    history: tuple[Epoch, ...]
    figures: tuple[Figure, ...]
    charts: tuple[Chart, ...]
    bars: tuple[ClassBar, ...]  # worst first
    classes_seen: int  # classes with a held-out picture
    matrix: tuple[tuple[Cell, ...], ...]  # empty for many classes
    numbered: bool
    short_labels: bool  # short enough for narrow columns, and for heads of the matrix that need no turning
    confusions: tuple[Cell, ...]  # most frequent first; for many classes
    pictures: tuple[Shown, ...]
    mistakes: tuple[Shown, ...]  # most confident first
    mistakes_in_all: int
    pixelated: bool
    bins: tuple[Bin, ...]


def html_from_run(
    spec: ModelSpec,
    history: Sequence[Epoch],
    pixels: UInt8Array,
    targets: Int64Array,
    probabilities: Float32Array,
) -> str:
    """Give the report as the text of one HTML file, well below 1.5 MB.

    `pixels` are the held-out pictures, uint8 (N, H, W, C), and `targets` their classes, int64 (N,).
    `probabilities` are the model's, float32 (N, classes), with the temperature applied.
    """
    answers = Answers(
        labels=tuple(_shortened(label) for label in spec.labels),
        pixels=pixels,
        targets=targets,
        predicted=probabilities.argmax(axis=1).astype(np.int64),
        confidence=np.nan_to_num(probabilities.max(axis=1)),  # a diverged model is sure of nothing
    )
    return _environment().get_template("report.html.j2").render(page=_page(spec, tuple(history), answers))


def percent(share: float) -> str:
    """Give a share of 0..1 in percent; only what is all of it reads 100, only what is nothing reads 0."""
    text = f"{100 * share:.1f}"
    if text == "100.0" and share < 1:
        text = ">99.9"
    if text == "0.0" and share > 0:
        text = "<0.1"
    return f"{text}\u00a0%"


def duration(seconds: float) -> str:
    """Give a time as a person would say it: 4.2 s, 3 min 12 s, 1 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f}\u00a0s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}\u00a0s"
    if whole < 3600:
        return f"{whole // 60}\u00a0min {whole % 60:02}\u00a0s"
    return f"{whole // 3600}\u00a0h {whole % 3600 // 60:02}\u00a0min"


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


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("clf_train", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["duration"] = duration
    return environment


def _page(spec: ModelSpec, history: tuple[Epoch, ...], answers: Answers) -> Page:
    counts = _confusion_counts(answers)
    in_matrix = len(answers.labels) <= MOST_IN_MATRIX
    return Page(
        title=_title(spec),
        spec=spec,
        history=history,
        figures=(*_quality_figures(spec, answers), *_model_figures(spec, history)),
        charts=_charts(history),
        bars=_bars(counts, answers.labels),
        classes_seen=int((counts.sum(axis=1) > 0).sum()),
        matrix=_matrix(counts, answers.labels) if in_matrix else (),
        numbered=len(answers.labels) <= MOST_NUMBERED,
        short_labels=max(map(len, answers.labels)) <= 3,
        confusions=() if in_matrix else _confusions(counts, answers.labels),
        pictures=tuple(_shown(answers, index) for index in spread(answers.targets, MOST_PICTURES)),
        mistakes=tuple(_shown(answers, index) for index in _mistakes(answers)[:MOST_MISTAKES]),
        mistakes_in_all=len(_mistakes(answers)),
        pixelated=max(answers.pixels.shape[1:3]) <= _LONGEST_PIXELATED_SIDE,
        bins=_bins(answers),
    )


def _title(spec: ModelSpec) -> str:
    if spec.provenance is None:
        return spec.architecture
    # A folder as it was typed, on whichever system; all of it is in the page's provenance.
    data = PureWindowsPath(spec.provenance.data).name or spec.provenance.data
    return f"{spec.architecture} on {_shortened(data)}"


def _shortened(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"


def _quality_figures(spec: ModelSpec, answers: Answers) -> tuple[Figure, ...]:
    metrics = spec.metrics
    if metrics is None:
        right, images = int((answers.predicted == answers.targets).sum()), len(answers.targets)
        return (
            Figure("Accuracy", percent(right / images), f"{right:,} of {images:,} right"),
            Figure("Pictures", f"{images:,}", "held out of training"),
        )
    return (
        Figure(
            "Accuracy",
            percent(metrics.accuracy),
            f"{round(metrics.accuracy * metrics.images):,} of {metrics.images:,} right",
        ),
        Figure("Pictures", f"{metrics.images:,}", f"split: {metrics.split}"),
        Figure("Loss", f"{metrics.loss:.4f}", "negative log-likelihood, nats"),
        Figure("Calibration error", percent(metrics.calibration_error), f"expected (ECE), {BINS} bins"),
    )


def _model_figures(spec: ModelSpec, history: Sequence[Epoch]) -> tuple[Figure, ...]:
    how = spec.preprocess
    return (
        Figure("Temperature", f"{spec.temperature:.3g}", "the logits are divided by it"),
        Figure("Classes", f"{len(spec.labels):,}", "labels to choose from"),
        Figure("Epochs", f"{len(history):,}", "passes over the training pictures"),
        Figure("Training time", duration(sum(epoch.seconds for epoch in history)), "validation not counted"),
        Figure("Input", f"{how.width} × {how.height}", "pixels, " + ("grey" if how.color == "L" else "RGB")),  # noqa: RUF001
    )


def _charts(history: Sequence[Epoch]) -> tuple[Chart, ...]:
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


def _confusion_counts(answers: Answers) -> Int64Array:
    """Give int64 (classes, classes): rows are true, columns predicted."""
    counts = np.zeros((len(answers.labels), len(answers.labels)), dtype=np.int64)
    np.add.at(counts, (answers.targets, answers.predicted), 1)
    return counts


def _bars(counts: Int64Array, labels: Sequence[str]) -> tuple[ClassBar, ...]:
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


def _matrix(counts: Int64Array, labels: Sequence[str]) -> tuple[tuple[Cell, ...], ...]:
    classes = range(len(labels))
    return tuple(tuple(_cell(counts, labels, true, predicted) for predicted in classes) for true in classes)


def _confusions(counts: Int64Array, labels: Sequence[str]) -> tuple[Cell, ...]:
    wrong = counts * (1 - np.eye(len(labels), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = (divmod(int(flat), len(labels)) for flat in order if wrong.flat[flat] > 0)
    return tuple(_cell(counts, labels, true, predicted) for true, predicted in pairs)


def spread(targets: Int64Array, most: int) -> list[int]:
    """Choose up to `most` pictures, as many of each class as can be, from all over each class; in class order."""
    members = [np.flatnonzero(targets == target) for target in np.unique(targets)]
    if len(members) > most:
        members = [members[index] for index in _evenly(len(members), most)]
    wanted = [0] * len(members)
    while sum(wanted) < min(most, sum(map(len, members))):
        # The class with the fewest so far among those that have more to give; the first of them.
        open_ = [index for index, member in enumerate(members) if wanted[index] < len(member)]
        wanted[min(open_, key=lambda index: wanted[index])] += 1
    return [int(m[place]) for m, number in zip(members, wanted, strict=True) for place in _evenly(len(m), number)]


def _evenly(length: int, number: int) -> list[int]:
    """Give `number` different places of 0..length-1, evenly apart."""
    return [(2 * step + 1) * length // (2 * number) for step in range(number)]


def _mistakes(answers: Answers) -> list[int]:
    """Give the wrongly answered pictures, the most confident first, and of equals the earlier."""
    wrong = np.flatnonzero(answers.predicted != answers.targets)
    return [int(index) for index in wrong[np.argsort(-answers.confidence[wrong], kind="stable")]]


def _shown(answers: Answers, index: int) -> Shown:
    true, predicted = int(answers.targets[index]), int(answers.predicted[index])
    return Shown(
        source=data_uri(answers.pixels[index]),
        true=answers.labels[true],
        predicted=answers.labels[predicted],
        probability=float(answers.confidence[index]),
        right=true == predicted,
    )


def data_uri(pixels: UInt8Array) -> str:
    """Give one picture, uint8 (H, W, C), as a data URI: PNG while it is small, else a JPEG of at most 96 pixels."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    kind = "png" if max(pixels.shape[:2]) <= _LONGEST_PIXELATED_SIDE else "jpeg"
    file = io.BytesIO()
    picture.save(file, kind, quality=_JPEG_QUALITY, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _bins(answers: Answers) -> tuple[Bin, ...]:
    right = answers.predicted == answers.targets
    # The bins of clf_train.evaluate, so that the bars and the calibration error tell of the same thing.
    places = np.minimum((answers.confidence.astype(np.float64) * BINS).astype(np.int64), BINS - 1)
    bins = []
    for place in range(BINS):
        here = places == place
        count = int(here.sum())
        accuracy = float(right[here].mean()) if count else 0.0
        confidence = float(answers.confidence[here].mean()) if count else 0.0
        bins.append(Bin(place / BINS, (place + 1) / BINS, count, accuracy, confidence))
    return tuple(bins)
