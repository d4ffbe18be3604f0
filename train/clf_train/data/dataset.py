"""Labelled images, decoded through the runtime's own preprocessing, and how they are split by a seed."""

from __future__ import annotations

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from clf_runtime.errors import DataError
from clf_runtime.preprocess import UInt8Array, pixels_from_image
from clf_runtime.spec import Preprocess
from clf_train.data.decoding import Decoder, Unreadable

Int64Array = npt.NDArray[np.int64]

# For the temperature and the progress shown. A tenth, but MNIST needs no 6,000 images for one number.
_VALIDATION_SHARE = 0.1
_VALIDATION_MOST = 2000
_FAULTS_SHOWN = 3


class ImageSet(ABC):
    """Some images with their classes, in one fixed order."""

    def __init__(self, names: Sequence[str], targets: Int64Array) -> None:
        self.names = tuple(names)  # one for each image, the same on every machine
        self.targets = targets  # (N,) int64

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def subset(self, indices: Sequence[int]) -> ImageSet:
        """Give the images at these indices, in this order."""

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """Give one image as the bytes of an image file. Raises DataError."""

    @abstractmethod
    def decoded(self, preprocess: Preprocess) -> UInt8Array:
        """Give all images as uint8 (N, H, W, C), as the device would see them. Raises DataError."""

    @cached_property
    @abstractmethod
    def digests(self) -> list[bytes]:
        """The SHA-256 of each image's content; every image is read for it, once."""

    def fingerprint(self) -> str:
        """Give the SHA-256 of all images' content and classes, in order."""
        return hashlib.sha256(self.targets.astype("<i8").tobytes() + b"".join(self.digests)).hexdigest()


class ArrayImageSet(ImageSet):
    """Images that come as one array, like MNIST's."""

    def __init__(self, pixels: UInt8Array, names: Sequence[str], targets: Int64Array) -> None:
        super().__init__(names, targets)
        self._pixels = pixels  # (N, H, W, C)

    def subset(self, indices: Sequence[int]) -> ArrayImageSet:
        """See Images."""
        rows = np.asarray(indices, dtype=np.int64)
        return ArrayImageSet(self._pixels[rows], [self.names[index] for index in rows], self.targets[rows])

    def encoded(self, index: int) -> bytes:
        """See Images; the file is a PNG."""
        file = io.BytesIO()
        pixels = self._pixels[index]
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG", optimize=True)
        return file.getvalue()

    def decoded(self, preprocess: Preprocess) -> UInt8Array:
        """See Images. Images that already are what the graph takes are taken as they are."""
        if self._pixels.shape[1:] == preprocess.shape:
            return self._pixels
        pixels = [pixels_from_image(image, preprocess) for image in self._pixels]
        return np.stack(pixels)

    @cached_property
    def digests(self) -> list[bytes]:
        """See Images."""
        return [hashlib.sha256(image.tobytes()).digest() for image in self._pixels]


class FileImageSet(ImageSet):
    """Images that are files, named relative to their folder."""

    def __init__(
        self, root: Path, names: Sequence[str], targets: Int64Array, digests: Sequence[bytes] | None = None
    ) -> None:
        """`digests` are the images', where they are known already."""
        super().__init__(names, targets)
        self._root = root
        self._digests = digests

    def path(self, index: int) -> str:
        """Where one image lies."""
        return os.path.join(self._root, self.names[index])  # noqa: PTH118 (a tenth of a Path's time, for each image)

    def subset(self, indices: Sequence[int]) -> FileImageSet:
        """See Images."""
        rows = np.asarray(indices, dtype=np.int64)
        digests = None if self._digests is None else [self._digests[index] for index in rows]
        return FileImageSet(self._root, [self.names[index] for index in rows], self.targets[rows], digests)

    def with_digests(self, digests: Sequence[bytes]) -> FileImageSet:
        """Give the same images with what was learnt of them while they were decoded."""
        return FileImageSet(self._root, self.names, self.targets, digests)

    def encoded(self, index: int) -> bytes:
        """See Images; the file as it is."""
        try:
            return Path(self.path(index)).read_bytes()
        except OSError as error:
            raise DataError(f"{self.path(index)}: {(error.strerror or str(error)).lower()}") from None

    @property
    def paths(self) -> list[str]:
        """Where the images lie."""
        return [self.path(index) for index in range(len(self))]

    def decoded(self, preprocess: Preprocess) -> UInt8Array:
        """See Images. Every fault is found before the first is told."""
        with Decoder(len(self)) as decoder:
            chunks = list(decoder.decoded(self.paths, preprocess))
        raise_if_unreadable([fault for chunk in chunks for fault in chunk.faults if fault], len(self))
        return np.concatenate([chunk.pixels for chunk in chunks])

    @cached_property
    def digests(self) -> list[bytes]:
        """See Images."""
        if self._digests is not None:
            return list(self._digests)
        with Decoder(len(self)) as decoder:
            found = decoder.digests(self.paths)
        raise_if_unreadable([each for each in found if isinstance(each, Unreadable)], len(self))
        return [each for each in found if isinstance(each, bytes)]


def raise_if_unreadable(faults: Sequence[Unreadable], images: int, remedy: str = "mend or remove them") -> None:
    """Raise DataError where there are faults, naming the first few."""
    if faults:
        shown = "; ".join(f"{fault.path}: {fault.kind}: {fault.message}" for fault in faults[:_FAULTS_SHOWN])
        more = f"; and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
        raise DataError(f"{len(faults)} of {images:,} images cannot be read: {shown}{more}; {remedy}")


@dataclass(frozen=True)
class Dataset:
    """Images in three parts that share none: trained on, fitted the temperature on, and reported."""

    labels: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    test_name: str  # how the reported split came about, for the report

    def repeated(self) -> list[str]:
        """Give the names of held-out images that are, byte for byte, among those trained on too."""
        known = set(self.train.digests)
        return [name for name, digest in zip(self.test.names, self.test.digests, strict=True) if digest in known]


def split_validation(labels: tuple[str, ...], rest: ImageSet, test: ImageSet, test_name: str, seed: int) -> Dataset:
    """Make a data set of a training and a test part, by keeping some of the first for validation."""
    share = min(_VALIDATION_SHARE, _VALIDATION_MOST / max(1, len(rest)))
    kept, validation = split_off(rest, share, seed, "validation", smallest=3)
    return Dataset(labels, kept, validation, test, test_name)


def split_off(images: ImageSet, share: float, seed: int, purpose: str, smallest: int) -> tuple[ImageSet, ImageSet]:
    """Keep the same share of each class apart: (what remains, what is kept), both in their former order.

    An image's place depends on the seed and its name alone, so that it is the same on every machine, and
    adding images moves few of the others. A class gives at least one, unless it has fewer than `smallest`.
    """
    ranks = [hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest() for name in images.names]
    apart: set[int] = set()
    for target in np.unique(images.targets):
        members = sorted(np.flatnonzero(images.targets == target).tolist(), key=ranks.__getitem__)
        count = max(1, round(share * len(members))) if len(members) >= smallest else 0
        apart.update(members[: min(count, len(members) - 1)])
    remaining = [index for index in range(len(images)) if index not in apart]
    return images.subset(remaining), images.subset(sorted(apart))


def interleave_classes(targets: Int64Array, count: int) -> list[int]:
    """Give the indices of at most `count` images, the classes taken in turn."""
    seen: Counter[int] = Counter()
    turns = []
    for index, target in enumerate(targets.tolist()):
        turns.append((seen[target], target, index))
        seen[target] += 1
    return [index for _, _, index in sorted(turns)[:count]]
