"""All images of a run, with the labels, names and splits that the report shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from clf_runtime.preprocess import UInt8Array
from clf_train.data.cache import PixelStore
from clf_train.data.dataset import Int64Array
from clf_train.data_quality.pool import SPLITS


@dataclass(frozen=True)
class SplitImages:
    """All images of one split, in order."""

    names: Sequence[str]
    targets: Int64Array  # (n,)
    pixels: PixelStore


@dataclass(frozen=True)
class LabeledSplits:
    """The training, the validation and the test split; an index counts through all three."""

    train: SplitImages
    validation: SplitImages
    test: SplitImages

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def parts(self) -> tuple[SplitImages, SplitImages, SplitImages]:
        """The three splits."""
        return self.train, self.validation, self.test

    @cached_property
    def targets(self) -> Int64Array:
        """The classes (N,) of all images."""
        return np.concatenate([part.targets for part in self.parts])

    @cached_property
    def pixels(self) -> PixelStore:
        """The pixels of all images."""
        return _JoinedPixels([part.pixels for part in self.parts], self._starts)

    @cached_property
    def _starts(self) -> Int64Array:
        return np.cumsum([0, *(len(part.targets) for part in self.parts)])

    def split_of(self, index: int) -> int:
        """Return the split of an image, as its place in SPLITS."""
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def name(self, index: int) -> str:
        """Return the name of an image; one number for an image without a name."""
        split = self.split_of(index)
        names = self.parts[split].names
        place = index - int(self._starts[split])
        return names[place] if names else f"{SPLITS[split]} image {place}"

    def is_across(self, first: int, second: int) -> bool:
        """Return whether exactly one of two images is a test image."""
        return (self.split_of(first) == len(SPLITS) - 1) != (self.split_of(second) == len(SPLITS) - 1)


class _JoinedPixels(PixelStore):
    """The images of several stores, one store after the other."""

    def __init__(self, parts: Sequence[PixelStore], starts: Int64Array) -> None:
        shape = next((part.shape for part in parts if len(part)), parts[0].shape)
        super().__init__(int(starts[-1]), shape)
        self._parts = parts
        self._starts = starts

    def batches(self, indices: Iterable[Int64Array]) -> Iterator[UInt8Array]:
        """See PixelStore."""
        for rows in indices:
            images = np.empty((len(rows), *self.shape), np.uint8)
            for part, start in zip(self._parts, self._starts, strict=False):
                inside = np.flatnonzero((rows >= start) & (rows < start + len(part)))
                if len(inside):
                    images[inside] = next(iter(part.batches([rows[inside] - start])))
            yield images
