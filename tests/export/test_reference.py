"""The runtime's preprocessing returns the pixels of torchvision's transforms, for every kind of image."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_images import odd_images

from clf_export.parity.reference import Reference
from clf_runtime.preprocess import pixels_from_image
from clf_runtime.spec import ModelSpec, Normalize, Preprocess


def reference_pixels(preprocess: Preprocess, path: Path) -> np.ndarray:
    """Return uint8 (H, W, C) by torchvision's transforms."""
    normalize = Normalize((0.0,) * preprocess.channels, (1.0,) * preprocess.channels)
    spec = ModelSpec("none", ("a", "b"), preprocess, normalize, temperature=1.0, metrics=None, provenance=None)
    images = Reference(torch.nn.Identity(), spec).transform_images([path.read_bytes()])
    return (images[0].permute(1, 2, 0) * 255).round().byte().numpy()


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("resize", "ratio"), [("squash", 1.0), ("crop", 1.0), ("crop", 0.875), ("crop", 224 / 232), ("pad", 1.0)]
)
@pytest.mark.parametrize("color", ["L", "RGB"])
def test_the_pixels_are_those_of_torchvision_for_every_kind_of_image(tmp_path, color, resize, ratio, resample):
    background = (200, 100, 50)[: 1 if color == "L" else 3]
    for size in ((32, 32), (24, 40), (28, 28)):
        preprocess = Preprocess(color, *size, resize, ratio, resample, background)
        for name, path in odd_images(tmp_path).items():
            pixels, expected = pixels_from_image(path, preprocess), reference_pixels(preprocess, path)
            assert np.array_equal(pixels, expected), (name, size, np.abs(pixels.astype(int) - expected).max())


def test_the_pixels_of_photos_are_those_of_torchvision(test_data):
    large = Preprocess("RGB", 224, 224, "crop", 0.875, "bilinear", (255, 255, 255))
    for path in sorted((test_data / "photos").iterdir()):
        for preprocess in (large, dataclasses.replace(large, height=64, width=64)):
            assert np.array_equal(pixels_from_image(path, preprocess), reference_pixels(preprocess, path)), path
