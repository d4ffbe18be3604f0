"""preview.html: some training images with their labels, as the network sees them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clf_runtime.preprocess import UInt8Array
from clf_train.data.augment import augment, draw_epoch
from clf_train.inputs import TrainInputs
from clf_train.recipe import Recipe
from clf_train.report.images import MAX_PIXELATED_SIDE, data_uri_from_pixels, spread_over_classes
from clf_train.report.rendering import environment

_MAX_IMAGES = 60


@dataclass(frozen=True)
class ImagePair:
    """A training image, plain and as the first epoch augments it; both are data URIs."""

    name: str
    label: str
    plain: str
    augmented: str


def html_from_images(inputs: TrainInputs, seed: int) -> str:
    """Return a page of up to 60 training images, as many of each class as possible.

    Args:
        inputs: the decoded images, and how they will be trained on.
        seed: of the training.
    """
    pixels = inputs.loaded.train.pixels
    return (
        environment()
        .get_template("preview.html.j2")
        .render(
            images=_build_pairs(inputs, seed),
            summary=inputs.summary,
            counts=inputs.findings.counts,
            origins=inputs.findings.origins,
            findings=inputs.findings.findings,
            is_pixelated=max(pixels.shape[:2]) <= MAX_PIXELATED_SIDE,
        )
    )


def _build_pairs(inputs: TrainInputs, seed: int) -> list[ImagePair]:
    dataset, pixels = inputs.loaded.dataset, inputs.loaded.train.pixels
    indices = spread_over_classes(dataset.train.targets, _MAX_IMAGES)
    plain = np.stack([pixels[index] for index in indices])
    _, draws = draw_epoch(seed, 1, len(dataset.train))
    augmented = _augment(plain, draws[indices], inputs.plan.recipe)
    return [
        ImagePair(
            dataset.train.names[index],
            dataset.labels[dataset.train.targets[index]],
            data_uri_from_pixels(plain[place]),
            data_uri_from_pixels(augmented[place]),
        )
        for place, index in enumerate(indices)
    ]


def _augment(pixels: UInt8Array, draws: torch.Tensor, recipe: Recipe) -> UInt8Array:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
    augmented = augment(images, draws, recipe).mul(255).round().clamp(0, 255).to(torch.uint8)
    array: UInt8Array = augmented.permute(0, 2, 3, 1).contiguous().numpy()
    return array
