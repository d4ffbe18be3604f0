"""The images of report.html and preview.html: which ones, and as data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from clf_runtime.preprocess import UInt8Array
from clf_train.data.dataset import Int64Array

# Up to this side, in pixels, every pixel of an image is visible: no JPEG, and no smooth enlargement.
MAX_PIXELATED_SIDE = 32

# 60 images of 96x96 RGB noise, the worst case, take 0.55 MB as JPEG 85 and would take 2.2 MB as PNG.
_MAX_SIDE = 96
_JPEG_QUALITY = 85


def spread_over_classes(targets: Int64Array, count: int) -> list[int]:
    """Choose images evenly: as many of each class as possible, spread over each class.

    Args:
        targets: the classes (N,) of the images.
        count: how many images to choose at most.

    Returns:
        Their indices, in the order of the classes.
    """
    members = [np.flatnonzero(targets == target) for target in np.unique(targets)]
    if len(members) > count:
        members = [members[index] for index in _spread(len(members), count)]
    chosen = [0] * len(members)
    while sum(chosen) < min(count, sum(map(len, members))):
        # The first class with the fewest images so far, among those that have more.
        remaining = [index for index, member in enumerate(members) if chosen[index] < len(member)]
        chosen[min(remaining, key=lambda index: chosen[index])] += 1
    return [
        int(member[place])
        for member, number in zip(members, chosen, strict=True)
        for place in _spread(len(member), number)
    ]


def _spread(length: int, count: int) -> list[int]:
    """Return `count` different places in 0..length-1, evenly spaced."""
    return [(2 * step + 1) * length // (2 * count) for step in range(count)]


def data_uri_from_pixels(pixels: UInt8Array) -> str:
    """Encode an image, uint8 (H, W, C), as a data URI: a PNG if it is small, otherwise a JPEG of at most 96 pixels."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    kind = "png" if max(pixels.shape[:2]) <= MAX_PIXELATED_SIDE else "jpeg"
    file = io.BytesIO()
    image.save(file, kind, quality=_JPEG_QUALITY, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
