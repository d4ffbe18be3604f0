"""Labeled images, decoded by the runtime's own preprocessing, and how a seed splits them."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

from clf_runtime.errors import DataError, ImageError
from clf_runtime.labeled.images import ImageFile, Split
from clf_runtime.labeled.splits import SplitRule, select_split
from clf_runtime.preprocess import UInt8Array, pixels_from_image
from clf_runtime.spec import Preprocess
from clf_train.data.blocks import Blocks
from clf_train.data.decoding import Decoder, UnreadableImage, read_image_file
from clf_train.data.files import ImageRoot

Int64Array = npt.NDArray[np.int64]

# The validation split serves the temperature and the progress: a tenth, but MNIST needs no 6,000 images for one number.
_VALIDATION_SHARE = 0.1
_MAX_VALIDATION_IMAGES = 2000
_ERRORS_SHOWN = 3


class ImageSet(ABC):
    """Images with their classes, in a fixed order."""

    def __init__(self, names: Sequence[str], targets: Int64Array) -> None:
        """Store the names of the images, which are the same on every machine, and their classes (N,)."""
        self.names = tuple(names)
        self.targets = targets

    def __len__(self) -> int:
        return len(self.names)

    @property
    def groups(self) -> Sequence[str]:
        """The group of each image; images of one group stay in one split."""
        return self.names

    @abstractmethod
    def subset(self, indices: Sequence[int]) -> ImageSet:
        """Return the images at these indices, in this order."""

    @abstractmethod
    def encode(self, index: int) -> bytes:
        """Return one image as the bytes of an image file.

        Raises:
            DataError: the file cannot be read.
        """

    @abstractmethod
    def decode(self, preprocess: Preprocess) -> UInt8Array:
        """Return all images as uint8 (N, H, W, C), exactly as a device decodes them.

        Raises:
            DataError: at least one image cannot be decoded; the message names the first ones.
        """

    @cached_property
    @abstractmethod
    def digests(self) -> list[bytes]:
        """The SHA-256 of each image's content; reads every image once.

        Raises:
            DataError: at least one image cannot be read.
        """

    def fingerprint(self) -> str:
        """Return the SHA-256 of the content and the classes of all images, in order."""
        return hashlib.sha256(self.targets.astype("<i8").tobytes() + b"".join(self.digests)).hexdigest()


class ArrayImageSet(ImageSet):
    """Images in one array, like MNIST's."""

    def __init__(self, pixels: UInt8Array, names: Sequence[str], targets: Int64Array) -> None:
        """Store the pixels (N, H, W, C), the names and the classes (N,)."""
        super().__init__(names, targets)
        self._pixels = pixels

    def subset(self, indices: Sequence[int]) -> ArrayImageSet:
        """See ImageSet."""
        rows = np.asarray(indices, dtype=np.int64)
        return ArrayImageSet(self._pixels[rows], [self.names[index] for index in rows], self.targets[rows])

    def encode(self, index: int) -> bytes:
        """See ImageSet; the file is a PNG."""
        file = io.BytesIO()
        pixels = self._pixels[index]
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG", optimize=True)
        return file.getvalue()

    def decode(self, preprocess: Preprocess) -> UInt8Array:
        """See ImageSet; images that already have the input's shape are returned unchanged."""
        if self._pixels.shape[1:] == preprocess.shape:
            return self._pixels
        pixels = [pixels_from_image(image, preprocess) for image in self._pixels]
        return np.stack(pixels)

    @cached_property
    def digests(self) -> list[bytes]:
        """See ImageSet."""
        return [hashlib.sha256(image.tobytes()).digest() for image in self._pixels]


class FileImageSet(ImageSet):
    """Image files, named relative to their folder, archive or shards."""

    def __init__(
        self,
        root: ImageRoot,
        names: Sequence[str],
        targets: Int64Array,
        groups: Sequence[str] | None = None,
        digests: Sequence[bytes] | None = None,
    ) -> None:
        """Store where the files are, the names, the classes (N,), and the groups and the digests, if they are known."""
        super().__init__(names, targets)
        self._root = root
        self._groups = groups
        self._digests = digests

    @property
    def groups(self) -> Sequence[str]:
        """See ImageSet; without groups, each image is one of its own."""
        return self.names if self._groups is None else self._groups

    def file(self, index: int) -> ImageFile:
        """Return where one image is."""
        return self._root.file(index, self.names[index])

    def path(self, index: int) -> str:
        """Return the path of one image, for people if it is in an archive."""
        return str(self.file(index))

    @property
    def files(self) -> Iterator[ImageFile]:
        """Where all images are; one at a time, since those of a compressed archive come with their bytes."""
        return self.locate(range(len(self)))

    def locate(self, indices: Iterable[int]) -> Iterator[ImageFile]:
        """Yield where images are; those in shards come with their bytes, which are read in blocks."""
        if self._root.shards is not None:
            return self._root.shards.read(indices, self.names)
        return map(self.file, indices)

    @property
    def blocks(self) -> Blocks | None:
        """Which images are read at once; None if each is a file, or as quick to read alone."""
        return self._root.blocks

    def subset(self, indices: Sequence[int]) -> FileImageSet:
        """See ImageSet."""
        rows = np.asarray(indices, dtype=np.int64)
        groups, digests = (
            None if values is None else [values[index] for index in rows] for values in (self._groups, self._digests)
        )
        names = [self.names[index] for index in rows]
        return FileImageSet(self._root.subset(rows), names, self.targets[rows], groups, digests)

    def with_digests(self, digests: Sequence[bytes]) -> FileImageSet:
        """Return the same images with digests that were computed during decoding."""
        return FileImageSet(self._root, self.names, self.targets, self._groups, digests)

    def encode(self, index: int) -> bytes:
        """See ImageSet; the file is returned unchanged."""
        try:
            return read_image_file(self.file(index))
        except ImageError as error:
            raise DataError(f"{self.path(index)}: {error}") from None

    def decode(self, preprocess: Preprocess) -> UInt8Array:
        """See ImageSet."""
        with Decoder(len(self)) as decoder:
            chunks = list(decoder.decode(self.files, preprocess))
        raise_if_unreadable([error for chunk in chunks for error in chunk.errors if error], len(self))
        return np.concatenate([chunk.pixels for chunk in chunks])

    @cached_property
    def digests(self) -> list[bytes]:
        """See ImageSet."""
        if self._digests is not None:
            return list(self._digests)
        with Decoder(len(self)) as decoder:
            results = decoder.compute_digests(self.files)
        raise_if_unreadable([result for result in results if isinstance(result, UnreadableImage)], len(self))
        return [result for result in results if isinstance(result, bytes)]


def raise_if_unreadable(errors: Sequence[UnreadableImage], images: int, remedy: str = "repair or remove them") -> None:
    """Raise DataError if any of a number of images is unreadable; the message names the first ones."""
    if errors:
        shown = "; ".join(f"{error.path}: {error.kind}: {error.message}" for error in errors[:_ERRORS_SHOWN])
        more = f"; and {len(errors) - _ERRORS_SHOWN} more" if len(errors) > _ERRORS_SHOWN else ""
        raise DataError(f"{len(errors)} of {images:,} images cannot be read: {shown}{more}; {remedy}")


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits: one to train on, one for the temperature, one for the reported metrics."""

    labels: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    test_name: str  # how the test split came about, for the report
    origins: Mapping[Split, str] = field(default_factory=dict)  # of the splits that the data has of its own
    warnings: tuple[str, ...] = ()  # what was found before an image was opened

    @property
    def splits(self) -> tuple[ImageSet, ImageSet, ImageSet]:
        """The training, the validation and the test split."""
        return self.train, self.validation, self.test

    def find_duplicates(self) -> list[str]:
        """Return the names of test images that also are, byte for byte, training images."""
        training = set(self.train.digests)
        return [name for name, digest in zip(self.test.names, self.test.digests, strict=True) if digest in training]


def split_validation(labels: tuple[str, ...], rest: ImageSet, test: ImageSet, test_name: str, seed: int) -> Dataset:
    """Return a data set whose validation split is taken from `rest`, the images outside the test split."""
    share = min(_VALIDATION_SHARE, _MAX_VALIDATION_IMAGES / max(1, len(rest)))
    train, validation = split_off(rest, share, seed, "validation", smallest=3)
    return Dataset(labels, train, validation, test, test_name)


def split_off(images: ImageSet, share: float, seed: int, purpose: str, smallest: int) -> tuple[ImageSet, ImageSet]:
    """Split off the same share of each class: (the rest, what was split off), both in their original order.

    See `select_split`, which chooses them.
    """
    rule = SplitRule(share, seed, purpose, smallest)
    selected = select_split(images.groups, images.targets.tolist(), rule)
    excluded = set(selected)
    remaining = [index for index in range(len(images)) if index not in excluded]
    return images.subset(remaining), images.subset(selected)


def interleave_classes(targets: Int64Array, count: int) -> list[int]:
    """Return the indices of at most `count` images, one class after the other in turn."""
    seen: Counter[int] = Counter()
    turns = []
    for index, target in enumerate(targets.tolist()):
        turns.append((seen[target], target, index))
        seen[target] += 1
    return [index for _, _, index in sorted(turns)[:count]]
