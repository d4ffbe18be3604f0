"""The runtime's preprocessing gives what torchvision's own transforms give, for every kind of image."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from awkward import awkward_images

from clf_export.parity.reference import Reference
from clf_runtime.preprocess import pixels_from_image
from clf_runtime.spec import ModelSpec, Normalize, Preprocess


def reference_pixels(preprocess: Preprocess, encoded: bytes) -> np.ndarray:
    spec = ModelSpec(
        "none",
        ("a", "b"),
        preprocess,
        Normalize((0.0,) * preprocess.channels, (1.0,) * preprocess.channels),
        1.0,
        None,
        None,
    )
    images = Reference(torch.nn.Identity(), spec).images([encoded])
    return (images[0].permute(1, 2, 0) * 255).round().byte().numpy()


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("fit", "ratio"), [("squash", 1.0), ("crop", 1.0), ("crop", 0.875), ("crop", 224 / 232), ("pad", 1.0)]
)
@pytest.mark.parametrize("color", ["L", "RGB"])
def test_the_pixels_are_those_of_torchvision_for_every_kind_of_image(tmp_path, color, resize, ratio, resample):
    background = (200, 100, 50)[: 1 if color == "L" else 3]
    for size in ((32, 32), (24, 40), (28, 28)):
        preprocess = Preprocess(color, *size, resize, ratio, resample, background)
        for name, path in awkward_images(tmp_path).items():
            mine = pixels_from_image(path, preprocess)
            theirs = reference_pixels(preprocess, path.read_bytes())
            assert np.array_equal(mine, theirs), (name, size, np.abs(mine.astype(int) - theirs).max())


def test_photographs_are_read_as_torchvision_reads_them(test_data):
    preprocess = Preprocess("RGB", 224, 224, "crop", 0.875, "bilinear", (255, 255, 255))
    for path in sorted((test_data / "photos").iterdir()):
        for each in (preprocess, dataclasses.replace(preprocess, height=64, width=64)):
            assert np.array_equal(pixels_from_image(path, each), reference_pixels(each, path.read_bytes())), path
