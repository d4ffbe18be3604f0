"""The order of images that are read in blocks: nearly random, deterministic, and yet one block after the other.

A permutation of all images would read a hard disk or a network file system at as many places. Instead, the blocks are
permuted, and each image moves back by a random distance of up to a window of bytes. Memory holds what was read and not
yet used: half a window on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clf_runtime.labeled.shards import Int64Array

# A few thousand photos; a shuffle buffer of WebDataset usually has 1,000 to 5,000 samples.
_WINDOW_BYTES = 256 << 20
_MIN_BLOCKS = 8  # in a window, since the row groups of Parquet files may be large


@dataclass(frozen=True)
class Blocks:
    """Which images of a split are read at once.

    Attributes:
        block_of: The number of each image's block, (N,).
        sizes: The bytes of each image, (N,).
    """

    block_of: Int64Array
    sizes: Int64Array

    def share(self, rank: int, size: int) -> Int64Array:
        """Return the images of one of several processes, ascending: whole blocks, except where two shares meet.

        Blocks are dealt in a fixed random order, because neighbors are often of one class.
        """
        generator = torch.Generator().manual_seed(0)
        numbers, places = self._permute_blocks(generator)
        order = np.argsort(places[numbers], kind="stable")
        return np.sort(np.array_split(order, size)[rank])

    def permute(self, permutation: Tensor, generator: torch.Generator) -> Tensor:
        """Return an order (N,) of all images: the permutation itself if all of them fit into a window."""
        numbers, places = self._permute_blocks(generator)
        block_bytes = np.bincount(numbers, self.sizes, len(places))
        window = max(_WINDOW_BYTES, _MIN_BLOCKS * block_bytes.max(initial=0))
        if block_bytes.sum() <= window:
            return permutation
        in_order = np.argsort(places)
        starts = np.empty(len(places))
        starts[in_order] = np.cumsum(block_bytes[in_order]) - block_bytes[in_order]
        moves = torch.rand(len(numbers), generator=generator, dtype=torch.float64).numpy() * window
        return torch.from_numpy(np.argsort(starts[numbers] + moves, kind="stable"))

    def _permute_blocks(self, generator: torch.Generator) -> tuple[Int64Array, Int64Array]:
        """Return the number of each image's block, from 0 on (N,), and the place of each block in a random order."""
        _, numbers = np.unique(self.block_of, return_inverse=True)
        return numbers.reshape(-1), torch.randperm(int(numbers.max(initial=-1)) + 1, generator=generator).numpy()
