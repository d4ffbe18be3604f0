"""preview.html: some of the images to train on, with their labels, as the network will see them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clf_runtime.preprocess import UInt8Array
from clf_train.config import TrainConfig, TrainPlan
from clf_train.data.augment import augment, order_and_draws
from clf_train.data.cache import PixelStore
from clf_train.data.dataset import Dataset
from clf_train.recipe import Recipe
from clf_train.report.report import LONGEST_PIXELATED_SIDE, data_uri, environment, spread

_MOST_IMAGES = 60


@dataclass(frozen=True)
class Previewed:
    """An image, as it is and as the first epoch would turn it; both are data URIs."""

    name: str
    label: str
    plain: str
    augment: str


def html_from_images(config: TrainConfig, plan: TrainPlan, dataset: Dataset, pixels: PixelStore, summary: str) -> str:
    """Give a page of up to 60 images to train on, as many of each class as can be."""
    chosen = spread(dataset.train.targets, _MOST_IMAGES)
    plain = np.stack([pixels[index] for index in chosen])
    _, draws = order_and_draws(config.seed, 1, len(dataset.train))
    turned = _augmented(plain, draws[chosen], plan.recipe)
    images = [
        Previewed(
            dataset.train.names[index],
            dataset.labels[dataset.train.targets[index]],
            data_uri(plain[place]),
            data_uri(turned[place]),
        )
        for place, index in enumerate(chosen)
    ]
    counts = [
        (label, *(int((part.targets == target).sum()) for part in (dataset.train, dataset.validation, dataset.test)))
        for target, label in enumerate(dataset.labels)
    ]
    return (
        environment()
        .get_template("preview.html.j2")
        .render(
            images=images,
            summary=summary,
            counts=counts,
            recipe=plan.recipe,
            pixelated=max(pixels.shape[:2]) <= LONGEST_PIXELATED_SIDE,
        )
    )


def _augmented(pixels: UInt8Array, draws: torch.Tensor, recipe: Recipe) -> UInt8Array:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
    turned = augment(images, draws, recipe).mul(255).round().clamp(0, 255).to(torch.uint8)
    array: UInt8Array = turned.permute(0, 2, 3, 1).contiguous().numpy()
    return array
