"""What decoding learns about images beside their pixels: size, damaged EXIF, and a hash of what they show."""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from clf_runtime.preprocess import UInt8Array

# The hash has a bit for each of the 16 x 16 lowest frequencies. On 700 photos of clothes, 25 bits (a tenth) separate
# copies that were compressed, halved or brightened (90 % differ in at most 10 bits) from other photos (at least 66 of
# 250,000 pairs); with 8 x 8 frequencies the two overlap, most of all for MNIST (copies 2, others 0).
_FREQUENCIES = 16
HASH_BITS = _FREQUENCIES * _FREQUENCIES

_EXIF_HEADER = b"Exif\x00\x00"
# Bytes of a value by its type (TIFF 6.0, page 15; EXIF 2.32 adds 13, and 129 for UTF-8).
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class ImageFacts:
    """Facts about n images, in order; those about files that cannot be read are zero."""

    sizes: npt.NDArray[np.int32]  # (n, 2): width and height in the file, in pixels
    has_damaged_exif: npt.NDArray[np.bool_]  # (n,)
    hashes: UInt8Array  # (n, 32): 256 bits of each image

    def __len__(self) -> int:
        return len(self.sizes)

    def subset(self, indices: Sequence[int]) -> ImageFacts:
        """Return the facts about the images at these indices."""
        rows = np.asarray(indices, dtype=np.int64)
        return ImageFacts(self.sizes[rows], self.has_damaged_exif[rows], self.hashes[rows])

    def fill(self, indices: npt.NDArray[np.int64], facts: ImageFacts) -> None:
        """Set the facts about the images at these indices."""
        self.sizes[indices] = facts.sizes
        self.has_damaged_exif[indices] = facts.has_damaged_exif
        self.hashes[indices] = facts.hashes


def empty_facts(images: int) -> ImageFacts:
    """Return facts to fill in."""
    return ImageFacts(
        np.zeros((images, 2), np.int32), np.zeros(images, np.bool_), np.zeros((images, HASH_BITS // 8), np.uint8)
    )


def join_facts(parts: Sequence[ImageFacts]) -> ImageFacts:
    """Return the facts of several lists of images as those of one."""
    parts = [empty_facts(0), *parts]
    return ImageFacts(
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.has_damaged_exif for part in parts]),
        np.concatenate([part.hashes for part in parts]),
    )


def compute_hashes(pixels: UInt8Array) -> UInt8Array:
    """Return a perceptual hash of each image, uint8 (N, 32): similar images differ in few bits.

    A bit is set where a frequency of the discrete cosine transform lies above the median of its image (pHash: Zauner
    2010). The pixels are (N, H, W, C), after EXIF rotation and resizing.
    """
    if not len(pixels):
        return np.zeros((0, HASH_BITS // 8), np.uint8)
    gray = pixels.mean(axis=3, dtype=np.float32)
    rows, columns = _cosines(gray.shape[1]), _cosines(gray.shape[2])
    spectrum = np.matmul(np.matmul(rows, gray), columns.T).reshape(len(pixels), HASH_BITS)
    spectrum[:, 0] = 0  # the mean brightness
    return np.packbits(spectrum > np.median(spectrum, axis=1, keepdims=True), axis=1)


@functools.cache
def _cosines(size: int) -> npt.NDArray[np.float32]:
    """Return the lowest frequencies of the discrete cosine transform, (16, size)."""
    places = np.arange(size) * 2 + 1
    angles = np.pi / (2 * size) * np.outer(np.arange(_FREQUENCIES), places)
    return np.asarray(np.cos(angles) / size, dtype=np.float32)


def has_damaged_exif(image: Image.Image) -> bool:
    """Return whether an opened image has an EXIF block that breaks off, or states an impossible orientation.

    Not with Pillow's parser, which warns about some damage, through a state that threads share, and hides the rest.
    """
    block = image.info.get("exif", b"")
    if not isinstance(block, bytes) or not block:
        return False
    try:
        return not _is_intact(block.removeprefix(_EXIF_HEADER))
    except struct.error:  # a read behind the end
        return True


def _is_intact(block: bytes) -> bool:
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return False
    magic, start = struct.unpack_from(f"{order}HI", block, 2)
    (count,) = struct.unpack_from(f"{order}H", block, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, values, value = struct.unpack_from(f"{order}HHII", block, entry)
        size = _TYPE_BYTES.get(kind, 0) * values
        if size > 4 and value + size > len(block):
            return False
        if tag == _ORIENTATION and not 0 <= struct.unpack_from(f"{order}H", block, entry + 8)[0] <= 8:
            return False
    return bool(magic == 42)
