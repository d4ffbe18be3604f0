"""The images of all three splits together, as the analyses of the data see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clf_runtime.preprocess import UInt8Array
from clf_train.data.dataset import Int64Array
from clf_train.engine.features import Float32Array, ImageFeatures

SPLITS = ("training", "validation", "test")


@dataclass(frozen=True)
class ImagePool:
    """N images: the training, the validation and the test split, one after the other."""

    features: Float32Array  # (N, D)
    targets: Int64Array  # (N,)
    splits: Int64Array  # (N,): places in SPLITS
    classes: int
    hashes: UInt8Array | None = None  # (N, 32), perceptual

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Int64Array) -> ImagePool:
        """Return the images at these indices."""
        hashes = None if self.hashes is None else self.hashes[indices]
        return ImagePool(self.features[indices], self.targets[indices], self.splits[indices], self.classes, hashes)


def pool_splits(
    features: ImageFeatures, targets: Sequence[Int64Array], classes: int, hashes: UInt8Array | None = None
) -> ImagePool:
    """Return the images of the three splits as one pool.

    Args:
        features: of each split.
        targets: the classes of the images of each split, in the same order.
        classes: how many there are.
        hashes: of the images of all splits, one split after the other, if they are known.
    """
    parts = (features.train, features.validation, features.test)
    # A split may be empty, and then have no columns.
    filled = [part for part in parts if len(part)]
    return ImagePool(
        np.concatenate(filled).astype(np.float32, copy=False),
        np.concatenate(list(targets)).astype(np.int64),
        np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        classes,
        hashes,
    )
