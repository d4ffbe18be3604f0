"""Where decoded images stay during training: in memory, in a file on disk, or nowhere.

They stay in memory if they fit. Otherwise a file beside the model holds them until the training ends: reading 150 kB
takes a hundredth of the time of decoding a photograph. If the disk has no room either, every epoch decodes every image
again.
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
from clf_train import torchrun
from clf_train.data.blocks import Blocks
from clf_train.data.dataset import FileImageSet, Int64Array, raise_if_unreadable
from clf_train.data.decoding import Decoder

CacheKind = Literal["memory", "disk", "none"]

# The other half is for the training itself and for the system.
_MEMORY_SHARE = 0.5
_DISK_SHARE = 0.5
# Small, since images that fit nowhere are photographs, and the first batch should not wait for many.
_CHUNK = 4


class PixelStore(ABC):
    """Decoded images, uint8, in the order of their data set; `shape` is the (H, W, C) of one image."""

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        self._count = count
        self.shape = shape

    def __len__(self) -> int:
        return self._count

    @abstractmethod
    def batches(self, indices: Iterable[Int64Array]) -> Iterator[UInt8Array]:
        """Yield the images (n, H, W, C) at each array of n indices.

        Raises:
            DataError: an image can no longer be read.
        """

    def __getitem__(self, index: int) -> UInt8Array:
        """Return one image, (H, W, C)."""
        image: UInt8Array = next(self.batches([np.asarray([index])]))[0]
        return image


class ArrayPixels(PixelStore):
    """All images in one array, in memory or in a memory-mapped file."""

    def __init__(self, array: UInt8Array) -> None:
        """Store the array (N, H, W, C)."""
        super().__init__(len(array), (array.shape[1], array.shape[2], array.shape[3]))
        self.array = array

    def batches(self, indices: Iterable[Int64Array]) -> Iterator[UInt8Array]:
        """See PixelStore."""
        for rows in indices:
            yield self.array[rows]


class LazyPixels(PixelStore):
    """No images: each batch is decoded on demand, and a few images beyond it."""

    def __init__(self, images: FileImageSet, preprocess: Preprocess) -> None:
        super().__init__(len(images), preprocess.shape)
        self._images = images
        self._preprocess = preprocess

    def batches(self, indices: Iterable[Int64Array]) -> Iterator[UInt8Array]:
        """See PixelStore."""
        sizes: deque[int] = deque()

        def places() -> Iterator[int]:
            for rows in indices:
                sizes.append(len(rows))
                yield from rows.tolist()

        pixels = np.empty((0, *self.shape), np.uint8)
        with Decoder(len(self)) as decoder:
            for chunk in decoder.decode(self._images.locate(places()), self._preprocess, _CHUNK):
                raise_if_unreadable(
                    [error for error in chunk.errors if error], len(self), "they could be read before training"
                )
                pixels = np.concatenate([pixels, chunk.pixels])
                while sizes and len(pixels) >= sizes[0]:
                    size = sizes.popleft()
                    yield pixels[:size]
                    pixels = pixels[size:]

    def __getitem__(self, index: int) -> UInt8Array:
        """See PixelStore; decodes in this process, which is faster for one image than starting another."""
        image: UInt8Array = self._images.subset([index]).decode(self._preprocess)[0]
        return image


@dataclass(frozen=True)
class Shard:
    """One process's share of a split; the complete split if the process is the only one."""

    pixels: PixelStore
    targets: Int64Array  # (n,)
    indices: Int64Array  # (n,): the place of each image in the split
    total: int  # images in the split
    blocks: Blocks | None = None  # of the complete split, if its images are read in blocks

    def __len__(self) -> int:
        return len(self.targets)


def full_shard(array: UInt8Array, targets: Int64Array) -> Shard:
    """Return a complete split from its images in memory, uint8 (N, H, W, C), and their classes (N,)."""
    return Shard(ArrayPixels(array), targets, np.arange(len(targets)), len(targets))


@dataclass(frozen=True)
class PixelCache:
    """Where decoded images stay."""

    kind: CacheKind
    folder: Path  # for the file, if they stay on disk

    def allocate(self, images: int, shape: tuple[int, int, int]) -> UInt8Array:
        """Return an array (N, H, W, C) to fill, in memory or in an unnamed file of the folder.

        Raises:
            OSError: the disk has no room.
        """
        if self.kind == "memory" or not images:
            return np.empty((images, *shape), np.uint8)
        # Unnamed, so that nothing is left however this process ends.
        with tempfile.TemporaryFile(dir=self.folder) as file:
            # Reserved now: a write to a mapped file without room kills the process, without a message.
            size_bytes = images * int(np.prod(shape))
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size_bytes)
            else:
                file.truncate(size_bytes)  # Windows reserves them, macOS does not
            return np.memmap(file, np.uint8, "r+", shape=(images, *shape))


def choose_cache(images: int, shape: tuple[int, int, int], folder: Path) -> PixelCache:
    """Decide where this number of images stays, from the memory and the disk space that are free now."""
    size_bytes = images * int(np.prod(shape)) * torchrun.get_local_world_size()
    if size_bytes <= _MEMORY_SHARE * usable_memory():
        return PixelCache("memory", folder)
    return PixelCache("disk" if size_bytes <= _DISK_SHARE * shutil.disk_usage(folder).free else "none", folder)
