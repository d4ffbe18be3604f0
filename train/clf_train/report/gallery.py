"""images.html: all test images with their predictions, on one page that filters them and needs no other file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from clf_train.data.dataset import Int64Array, interleave_classes
from clf_train.report.analysis import Predictions, RunResults, predict, rank_mistakes, title_of
from clf_train.report.images import MAX_PIXELATED_SIDE
from clf_train.report.rendering import environment
from clf_train.report.thumbnails import encode_images, measure_smallest

MAX_BYTES = 5_000_000

_PAGE_BYTES = 40_000  # the page without its images, names and labels
# More images would have less than 32 pixels each, and a phone needs seconds to open as many.
_MAX_IMAGES = 20_000
_MAX_NAME_LENGTH = 120  # characters, from the end: a name is a path


@dataclass(frozen=True)
class GalleryPage:
    """Everything that the template of images.html reads."""

    title: str
    shown: int
    total: int
    mistakes: int
    shown_mistakes: int
    side: int  # pixels: the longer side of an image
    is_reduced: bool  # whether the model saw more pixels
    is_pixelated: bool
    data: Markup  # JSON for the script


def html_from_predictions(results: RunResults) -> str:
    """Return a page of all test images as the text of one HTML file, at most 5 MB.

    If even the smallest images are too many, all mistakes are shown and as many correct images as fit.
    """
    predictions = predict(results)
    labels = _to_json(predictions.labels)
    budget = max(0, MAX_BYTES - _PAGE_BYTES - len(labels))
    chosen = _choose(predictions, budget)
    rows = [_describe(predictions, int(index)) for index in chosen]
    # Eight characters of JSON join a row and its image.
    images_budget = budget - len(_to_json(rows)) - 8 * len(rows)
    thumbnails = encode_images(predictions.pixels, chosen.tolist(), images_budget)
    images = [[*row, text] for row, text in zip(rows, thumbnails.encoded, strict=True)]
    side, shown_side = max(predictions.pixels.shape[:2]), thumbnails.format.side
    page = GalleryPage(
        title=title_of(results.spec),
        shown=len(chosen),
        total=len(predictions.targets),
        mistakes=int((~predictions.correct).sum()),
        shown_mistakes=int((~predictions.correct[chosen]).sum()),
        side=min(side, shown_side),
        is_reduced=shown_side < side,
        is_pixelated=side <= MAX_PIXELATED_SIDE,
        data=_to_json({"labels": predictions.labels, "type": thumbnails.format.mime_type, "images": images}),
    )
    return environment().get_template("images.html.j2").render(page=page)


def _choose(predictions: Predictions, budget_bytes: int) -> Int64Array:
    """Return the indices of the images to show, in the order of the data."""
    count = len(predictions.targets)
    row_bytes = len(_to_json([_describe(predictions, index) for index in range(count)])) / count + 8
    fitting = min(_MAX_IMAGES, int(budget_bytes / (measure_smallest(predictions.pixels) + row_bytes)))
    if count <= fitting:
        return np.arange(count)
    mistakes = rank_mistakes(predictions)[:fitting]
    correct = np.flatnonzero(predictions.correct)
    others = correct[interleave_classes(predictions.targets[correct], fitting - len(mistakes))]
    return np.sort(np.concatenate([np.asarray(mistakes, dtype=np.int64), others]))


def _describe(predictions: Predictions, index: int) -> list[Any]:
    """Return an image's name, true class, predicted class, and probability in tenths of a percent."""
    name = predictions.names[index] or f"test image {index}"
    return [
        name if len(name) <= _MAX_NAME_LENGTH else f"…{name[1 - _MAX_NAME_LENGTH :]}",
        int(predictions.targets[index]),
        int(predictions.predicted[index]),
        round(1000 * float(predictions.confidence[index])),
    ]


def _to_json(value: object) -> Markup:
    """Return JSON in ASCII that can stand inside a script element, whatever the names are."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
