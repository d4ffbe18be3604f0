"""Where decoded images are while a network is trained: in memory, in a file on disk, or nowhere.

In memory wherever they fit. Otherwise a file beside the model holds them for as long as the training runs: to read
150 kB takes a hundredth of the time that a photograph's decoding does. Where the disk has no room either, every
image is decoded anew for each epoch.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from clf_runtime.machine import usable_memory
from clf_runtime.preprocess import UInt8Array
from clf_runtime.spec import Preprocess
from clf_train.data.dataset import FileImageSet, Int64Array, raise_if_unreadable
from clf_train.data.decoding import Decoder

CacheKind = Literal["memory", "disk", "none"]

# What training itself takes, and what the system needs to stay quick, is the other half.
_MEMORY_SHARE = 0.5
_DISK_SHARE = 0.5
# Photographs, since what is decoded anew does not fit anywhere; the first batch should not wait for many.
_AT_A_TIME = 4


class PixelStore(ABC):
    """Decoded images, uint8, in the order of their data set; `shape` is one's (H, W, C)."""

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        self._count = count
        self.shape = shape

    def __len__(self) -> int:
        return self._count

    @abstractmethod
    def batches(self, orders: Iterable[Int64Array]) -> Iterator[UInt8Array]:
        """Give (n, H, W, C) for each n indices, in their order. Raises DataError."""

    def __getitem__(self, index: int) -> UInt8Array:
        """Give one image, (H, W, C)."""
        one: UInt8Array = next(self.batches([np.asarray([index])]))[0]
        return one


class ArrayPixels(PixelStore):
    """All of them in one array, of memory or of a file that is mapped to it."""

    def __init__(self, array: UInt8Array) -> None:
        super().__init__(len(array), (array.shape[1], array.shape[2], array.shape[3]))
        self.array = array  # (N, H, W, C)

    def batches(self, orders: Iterable[Int64Array]) -> Iterator[UInt8Array]:
        """See Pixels."""
        for order in orders:
            yield self.array[order]


class LazyPixels(PixelStore):
    """None of them: a batch is decoded when it is asked for, and some beyond it."""

    def __init__(self, images: FileImageSet, preprocess: Preprocess) -> None:
        super().__init__(len(images), preprocess.shape)
        self._images = images
        self._preprocess = preprocess

    def batches(self, orders: Iterable[Int64Array]) -> Iterator[UInt8Array]:
        """See Pixels."""
        sizes: deque[int] = deque()

        def paths() -> Iterator[str]:
            for order in orders:
                sizes.append(len(order))
                yield from map(self._images.path, order.tolist())

        waiting = np.empty((0, *self.shape), np.uint8)
        with Decoder(len(self)) as decoder:
            for chunk in decoder.decoded(paths(), self._preprocess, _AT_A_TIME):
                raise_if_unreadable([fault for fault in chunk.faults if fault], len(self), "they could be read before")
                waiting = np.concatenate([waiting, chunk.pixels])
                while sizes and len(waiting) >= sizes[0]:
                    size = sizes.popleft()
                    yield waiting[:size]
                    waiting = waiting[size:]

    def __getitem__(self, index: int) -> UInt8Array:
        """See Pixels; here, since a process takes longer to start than one image to decode."""
        one: UInt8Array = self._images.subset([index]).decoded(self._preprocess)[0]
        return one


@dataclass(frozen=True)
class Shard:
    """Images to learn from or to be judged on: all of them, or the share of one process among several."""

    pixels: PixelStore
    targets: Int64Array  # (n,)
    indices: Int64Array  # (n,): the place of each among all
    of: int  # how many all are

    def __len__(self) -> int:
        return len(self.targets)


def full_shard(array: UInt8Array, targets: Int64Array) -> Shard:
    """Give images that are all in memory, uint8 (N, H, W, C), with their classes (N,)."""
    return Shard(ArrayPixels(array), targets, np.arange(len(targets)), len(targets))


def choose_cache(images: int, shape: tuple[int, int, int], folder: Path) -> CacheKind:
    """Decide where so many images go, by the memory and the disk that are free now."""
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes on this machine
    size_bytes = images * int(np.prod(shape)) * sharing
    if size_bytes <= _MEMORY_SHARE * usable_memory():
        return "memory"
    return "disk" if size_bytes <= _DISK_SHARE * shutil.disk_usage(folder).free else "none"


def allocate_pixels(images: int, shape: tuple[int, int, int], place: CacheKind, folder: Path) -> UInt8Array:
    """Give an array (N, H, W, C) to be filled, in memory or in a nameless file of `folder`. Raises OSError."""
    if place == "memory" or not images:
        return np.empty((images, *shape), np.uint8)
    # Nameless, so that nothing is left however this process ends.
    with tempfile.TemporaryFile(dir=folder) as file:
        # Claimed now: to a mapped file that has no room left a write ends the process, without a word.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, images * int(np.prod(shape)))
        return np.memmap(file, np.uint8, "r+", shape=(images, *shape))
