"""Test images with their predictions, as report.html shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clf_train.report.analysis import Predictions
from clf_train.report.thumbnails import encode_images


@dataclass(frozen=True)
class ImageCard:
    """A test image with its prediction."""

    source: str  # a data URI
    name: str
    true: str
    predicted: str
    probability: float
    is_correct: bool


def build_cards(predictions: Predictions, indices: Sequence[int], budget_bytes: int) -> tuple[ImageCard, ...]:
    """Return the images at these indices; all of them together take at most about `budget_bytes`."""
    sources = encode_images(predictions.pixels, indices, budget_bytes).sources
    return tuple(
        ImageCard(
            source=source,
            name=predictions.names[index],
            true=predictions.labels[predictions.targets[index]],
            predicted=predictions.labels[predictions.predicted[index]],
            probability=float(predictions.confidence[index]),
            is_correct=bool(predictions.correct[index]),
        )
        for index, source in zip(indices, sources, strict=True)
    )
