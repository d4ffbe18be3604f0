"""report.html: what training reached, as one page that needs no network and no other file.

This module puts together what `answers` counts and `charts` lays out; where things go on the page and how they
look is in `report.html.j2`. Everything that is text, labels above all, goes through the template's autoescape;
nothing here builds markup.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from clf_runtime.preprocess import UInt8Array
from clf_runtime.spec import ModelSpec
from clf_train.data.cache import PixelStore
from clf_train.data.dataset import Int64Array
from clf_train.engine.evaluate import Quality
from clf_train.history import Epoch, duration
from clf_train.report.analysis import (
    BINS,
    Answers,
    Bin,
    Cell,
    ClassBar,
    Float32Array,
    bars,
    bins,
    confusion_counts,
    confusions,
    matrix,
    mistakes,
)
from clf_train.report.charts import Chart, charts, percent

MOST_NUMBERED = 20  # classes; beyond, the matrix's cells are too small for numbers
MOST_IN_MATRIX = 40  # classes; beyond, a table of confusions says more than 1,681 specks
MOST_IMAGES = 40
MOST_MISTAKES = 20

# 60 images of 96 x 96 RGB noise, the worst case, take 0.55 MB as JPEG 85 and would take 2.2 MB as PNG.
_LONGEST_SIDE = 96
LONGEST_PIXELATED_SIDE = 32  # up to here an image's own pixels are to be seen: no JPEG, and no smooth enlarging
_JPEG_QUALITY = 85

# Where an export puts what it proved; until then there is nothing to see.
EXPORTED_PLACE = Markup("<!-- exported -->\n<!-- /exported -->")

_LONGEST_LABEL = 80  # characters; a label can be a whole page, and the page repeats it many times


@dataclass(frozen=True)
class Figure:
    """One of the headline figures."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Shown:
    """A held-out image with the answer it got."""

    source: str  # a data URI
    true: str
    predicted: str
    probability: float
    right: bool


@dataclass(frozen=True)
class Page:
    """All that the template reads."""

    title: str
    spec: ModelSpec
    history: tuple[Epoch, ...]
    figures: tuple[Figure, ...]
    charts: tuple[Chart, ...]
    bars: tuple[ClassBar, ...]  # worst first
    classes_seen: int  # classes with a held-out image
    matrix: tuple[tuple[Cell, ...], ...]  # empty for many classes
    numbered: bool
    short_labels: bool  # short enough for narrow columns, and for heads of the matrix that need no turning
    confusions: tuple[Cell, ...]  # most frequent first; for many classes
    images: tuple[Shown, ...]
    mistakes: tuple[Shown, ...]  # most confident first
    mistakes_in_all: int
    left_out: int  # images that could not be read
    untempered_error: float | None  # calibration error without the temperature
    pixelated: bool
    bins: tuple[Bin, ...]


def html_from_run(
    spec: ModelSpec,
    history: Sequence[Epoch],
    pixels: PixelStore,
    targets: Int64Array,
    probabilities: Float32Array,
    untempered: Quality | None = None,
    left_out: int = 0,
) -> str:
    """Give the report as the text of one HTML file, well below 1.5 MB.

    `pixels` are the held-out images, and `targets` their classes, int64 (N,). `probabilities` are the model's,
    float32 (N, classes), with the temperature applied, and `untempered` is what it is worth without that one.
    `left_out` counts the images that could not be read.
    """
    answers = Answers(
        labels=tuple(_shortened(label) for label in spec.labels),
        pixels=pixels,
        targets=targets,
        predicted=probabilities.argmax(axis=1).astype(np.int64),
        confidence=np.nan_to_num(probabilities.max(axis=1)),  # a diverged model is sure of nothing
    )
    return (
        environment()
        .get_template("report.html.j2")
        .render(page=_page(spec, tuple(history), answers, untempered, left_out), exported=EXPORTED_PLACE)
    )


def environment(package: str = "clf_train") -> Environment:
    """Give the environment of a package's templates: what is text is escaped, a name that is not there an error."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("clf_train.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["duration"] = duration
    return environment


def _page(
    spec: ModelSpec, history: tuple[Epoch, ...], answers: Answers, untempered: Quality | None, left_out: int
) -> Page:
    counts = confusion_counts(answers)
    in_matrix = len(answers.labels) <= MOST_IN_MATRIX
    return Page(
        title=_title(spec),
        spec=spec,
        history=history,
        figures=(*_quality_figures(spec, answers, untempered), *_model_figures(spec, history)),
        charts=charts(history),
        bars=bars(counts, answers.labels),
        classes_seen=int((counts.sum(axis=1) > 0).sum()),
        matrix=matrix(counts, answers.labels) if in_matrix else (),
        numbered=len(answers.labels) <= MOST_NUMBERED,
        short_labels=max(map(len, answers.labels)) <= 3,
        confusions=() if in_matrix else confusions(counts, answers.labels),
        images=tuple(_shown(answers, index) for index in spread(answers.targets, MOST_IMAGES)),
        mistakes=tuple(_shown(answers, index) for index in mistakes(answers)[:MOST_MISTAKES]),
        mistakes_in_all=len(mistakes(answers)),
        left_out=left_out,
        untempered_error=untempered.calibration_error if untempered else None,
        pixelated=max(answers.pixels.shape[:2]) <= LONGEST_PIXELATED_SIDE,
        bins=bins(answers),
    )


def _title(spec: ModelSpec) -> str:
    if spec.provenance is None or spec.provenance.data is None:
        return spec.architecture
    # A folder as it was typed, on whichever system; all of it is in the page's provenance.
    data = PureWindowsPath(spec.provenance.data).name or spec.provenance.data
    return f"{spec.architecture} on {_shortened(data)}"


def _shortened(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"


def _quality_figures(spec: ModelSpec, answers: Answers, untempered: Quality | None) -> tuple[Figure, ...]:
    metrics = spec.metrics
    if metrics is None:
        right, images = int((answers.predicted == answers.targets).sum()), len(answers.targets)
        return (
            Figure("Accuracy", percent(right / images), f"{right:,} of {images:,} right"),
            Figure("Images", f"{images:,}", "held out of training"),
        )
    before = f"; {percent(untempered.calibration_error)} before the temperature" if untempered else ""
    return (
        Figure(
            "Accuracy",
            percent(metrics.accuracy),
            f"{round(metrics.accuracy * metrics.images):,} of {metrics.images:,} right",
        ),
        Figure("Images", f"{metrics.images:,}", f"split: {metrics.split}"),
        Figure("Loss", f"{metrics.loss:.4f}", "negative log-likelihood, nats"),
        Figure("Calibration error", percent(metrics.calibration_error), f"expected (ECE), {BINS} bins{before}"),
    )


def _model_figures(spec: ModelSpec, history: Sequence[Epoch]) -> tuple[Figure, ...]:
    preprocess = spec.preprocess
    return (
        Figure("Temperature", f"{spec.temperature:.3g}", "the logits are divided by it"),
        Figure("Classes", f"{len(spec.labels):,}", "labels to choose from"),
        Figure("Epochs", f"{len(history):,}", "passes over the training images"),
        Figure("Training time", duration(sum(epoch.seconds for epoch in history)), "validation not counted"),
        Figure(
            "Input",
            f"{preprocess.width} × {preprocess.height}",  # noqa: RUF001
            "pixels, " + ("grey" if preprocess.color == "L" else "RGB"),
        ),
    )


def spread(targets: Int64Array, most: int) -> list[int]:
    """Choose up to `most` images, as many of each class as can be, from all over each class; in class order."""
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
    """Give one image, uint8 (H, W, C), as a data URI: PNG while it is small, else a JPEG of at most 96 pixels."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    kind = "png" if max(pixels.shape[:2]) <= LONGEST_PIXELATED_SIDE else "jpeg"
    file = io.BytesIO()
    image.save(file, kind, quality=_JPEG_QUALITY, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
