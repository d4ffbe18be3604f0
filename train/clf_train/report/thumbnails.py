"""Images as data URIs, as large and as good as a number of bytes allows."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, features

from clf_runtime.machine import usable_cores
from clf_runtime.preprocess import UInt8Array
from clf_train.data.cache import PixelStore
from clf_train.report.images import MAX_PIXELATED_SIDE

# Every browser since 2020 shows WebP, which takes 0.6 of JPEG's bytes at 224 pixels and half of them at 32.
_LOSSY = "webp" if features.check("webp") else "jpeg"
_SURVEYED = 100  # images whose sizes stand for all
_BATCH = 64  # images read at a time


@dataclass(frozen=True)
class ImageFormat:
    """How an image is reduced: its longer side in pixels, and the quality; None for a lossless PNG."""

    side: int
    quality: int | None

    @property
    def mime_type(self) -> str:
        """The type of the data, for its data URI."""
        return "image/png" if self.quality is None else f"image/{_LOSSY}"


# From the best on. Below 24 pixels nothing can be recognized.
_FORMATS = (
    *(ImageFormat(side, 75) for side in (224, 192, 160, 128, 112, 96, 80, 64, 56, 48, 40, 32)),
    *(ImageFormat(32, quality) for quality in (60, 45)),
    ImageFormat(24, 45),
)


@dataclass(frozen=True)
class Thumbnails:
    """Encoded images, and how they were encoded."""

    format: ImageFormat
    encoded: tuple[str, ...]  # base64

    @property
    def sources(self) -> tuple[str, ...]:
        """The images as data URIs."""
        return tuple(f"data:{self.format.mime_type};base64,{text}" for text in self.encoded)


def encode_images(pixels: PixelStore, indices: Sequence[int], budget_bytes: int) -> Thumbnails:
    """Encode images in the best format with which all of them fit; at worst, with 24 pixels.

    Args:
        pixels: where the images are.
        indices: which ones.
        budget_bytes: for all of them together, in base64.
    """
    formats = _formats_up_to(max(pixels.shape[:2]))
    sizes = _survey(pixels, indices, formats)
    fitting = [place for place, size in enumerate(sizes) if size * len(indices) <= budget_bytes]
    first = fitting[0] if fitting else len(formats) - 1
    images = [_reduce(image, formats[first].side) for image in _read(pixels, indices)]
    # The images surveyed may be smaller than the others.
    for format in formats[first:]:
        thumbnails = Thumbnails(format, _encode_all(images, format))
        if sum(map(len, thumbnails.encoded)) <= budget_bytes:
            break
    return thumbnails


def measure_smallest(pixels: PixelStore) -> float:
    """Return the mean size of an image in the smallest format, in bytes of base64."""
    (size,) = _survey(pixels, range(len(pixels)), _formats_up_to(max(pixels.shape[:2]))[-1:])
    return size


def _formats_up_to(side: int) -> tuple[ImageFormat, ...]:
    """Return the formats for images of this side, the best first; none enlarges them."""
    smaller = tuple(format for format in _FORMATS if format.side < side or format.quality != 75)
    original = ImageFormat(side, None if side <= MAX_PIXELATED_SIDE else 75)
    return (original, *smaller) if side <= _FORMATS[0].side else smaller


def _survey(pixels: PixelStore, indices: Sequence[int], formats: Sequence[ImageFormat]) -> list[float]:
    """Return the mean size of an image in each format, in bytes of base64, with a margin for the estimate."""
    spread = np.unique(np.linspace(0, max(0, len(indices) - 1), _SURVEYED).astype(int))
    chosen = [indices[place] for place in spread.tolist()] if len(indices) else []
    images = [_reduce(image, formats[0].side) for image in _read(pixels, chosen)]
    margin = 1.05 if len(indices) > _SURVEYED else 1.0
    return [margin * sum(map(len, _encode_all(images, format))) / len(images) if images else 0.0 for format in formats]


def _read(pixels: PixelStore, indices: Sequence[int]) -> Iterable[UInt8Array]:
    rows = np.asarray(indices, dtype=np.int64)
    batches = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
    for batch in pixels.batches(batches):
        yield from batch


def _reduce(pixels: UInt8Array, side: int) -> Image.Image:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((side, side))
    return image


def _encode_all(images: Sequence[Image.Image], format: ImageFormat) -> tuple[str, ...]:
    # Pillow's encoders release Python's lock.
    with ThreadPoolExecutor(usable_cores()) as threads:
        return tuple(threads.map(lambda image: _encode(image, format), images))


def _encode(image: Image.Image, format: ImageFormat) -> str:
    if max(image.size) > format.side:
        image = image.copy()
        image.thumbnail((format.side, format.side))
    file = io.BytesIO()
    if format.quality is None:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, _LOSSY, quality=format.quality, method=2)
    return base64.b64encode(file.getvalue()).decode("ascii")
