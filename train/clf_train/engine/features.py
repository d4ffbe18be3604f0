"""The features of images: what a pretrained network computes in front of its last layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImageFeatures:
    """The features of each split, float32 (N, D), in the order of its images."""

    train: Float32Array
    validation: Float32Array
    test: Float32Array
