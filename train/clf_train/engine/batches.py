"""The batches of an epoch, on the device that trains."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from clf_runtime.preprocess import UInt8Array
from clf_train.data.augment import draw_epoch
from clf_train.data.cache import ArrayPixels, Shard

# Of a GPU's free memory, for the images; the rest is for the network.
_DEVICE_MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Batch:
    """This process's share of a batch."""

    rows: Tensor  # the place of each image in this process's share (n,), on the CPU
    pixels: Tensor | None  # (n, H, W, C) uint8, unless the loader leaves them out
    targets: Tensor  # (n,)
    draws: Tensor  # (n, 10) float32 in -1..1, for the augmentation


class BatchLoader:
    """Splits each epoch into batches; which image is in which batch depends only on the seed and the epoch."""

    def __init__(
        self, shard: Shard, steps_per_epoch: int, seed: int, device: torch.device, *, has_pixels: bool = True
    ) -> None:
        """Copy the images to the device, if they fit; without `has_pixels` the batches are without them."""
        self._shard = shard
        self._has_pixels = has_pixels
        self._steps_per_epoch = steps_per_epoch
        self._seed = seed
        self._device = device
        self._pixels = _copy_to_device(shard, device) if has_pixels else None
        self._targets = torch.from_numpy(shard.targets).to(device)

    def load_epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0, from the batch `first` on."""
        permutation, draws = draw_epoch(self._seed, epoch + 1, self._shard.total, self._shard.blocks)
        row_of_index = torch.full((self._shard.total,), -1)
        row_of_index[torch.from_numpy(self._shard.indices)] = torch.arange(len(self._shard))
        own = permutation[row_of_index[permutation] >= 0]  # all, if this process is the only one
        batches = own.tensor_split(self._steps_per_epoch)[first:]
        rows = [row_of_index[batch] for batch in batches]
        for batch, batch_rows, pixels in zip(batches, rows, self._load_pixels(rows), strict=True):
            yield Batch(batch_rows, pixels, self._targets[batch_rows.to(self._device)], draws[batch].to(self._device))

    def _load_pixels(self, rows: list[Tensor]) -> Iterator[Tensor | None]:
        if not self._has_pixels:
            yield from [None] * len(rows)
        elif self._pixels is not None:
            for batch_rows in rows:
                yield self._pixels[batch_rows.to(self._device)]
        else:
            for pixels in _prefetch(self._shard.pixels.batches(batch_rows.numpy() for batch_rows in rows)):
                yield torch.from_numpy(pixels).to(self._device)


def _copy_to_device(shard: Shard, device: torch.device) -> Tensor | None:
    """Return all images on the device, uint8 (N, H, W, C); None if they do not fit or are decoded lazily."""
    if not isinstance(shard.pixels, ArrayPixels):
        return None
    array = shard.pixels.array
    if device.type == "cuda" and array.nbytes > _DEVICE_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    return torch.from_numpy(array).to(device)


def _prefetch(batches: Iterator[UInt8Array]) -> Iterator[UInt8Array]:
    """Yield the batches, and load the next one in a thread meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(next, batches, None)
        while (batch := future.result()) is not None:
            future = thread.submit(next, batches, None)
            yield batch
