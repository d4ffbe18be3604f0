"""Shards: the unit of work. A shard is a slice of the inputs whose name follows from its position and its content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from clf_batch.inputs.units import TarArchive, Unit, count_images

_PART = re.compile(r"part-\d{7,}-[0-9a-f]{16}\.parquet")


@dataclass(frozen=True)
class Shard:
    """A slice of the inputs.

    Attributes:
        index: Its position among the shards of the run.
        units: What it consists of.
    """

    index: int
    units: tuple[Unit, ...]

    @property
    def names(self) -> str:
        """The digest of its names, hexadecimal: the same for every model."""
        return hashlib.sha256("\n".join(unit.key for unit in self.units).encode("utf-8", "surrogateescape")).hexdigest()

    def file_name(self, run_id: str) -> str:
        """Return the name of its file of results, which differs for each run and each content."""
        digest = hashlib.sha256(f"{run_id}\0{self.names}".encode()).hexdigest()
        return f"part-{self.index:07}-{digest[:16]}.parquet"


def is_part(name: str) -> bool:
    """Return whether a file has the name of results of a shard."""
    return _PART.fullmatch(name) is not None


def make_shards(units: Iterable[Unit], size: int) -> Iterator[Shard]:
    """Yield the shards of the inputs, while these are found.

    Args:
        units: The inputs, in a fixed order.
        size: How many images a shard has at most. A tar archive is a shard of its own, because nobody knows how many
            images it has, and so is a larger row group.
    """
    index, images = 0, 0
    slice_: list[Unit] = []
    for unit in units:
        count = count_images(unit)
        if slice_ and (count is None or images + count > size):
            yield Shard(index, tuple(slice_))
            index, images, slice_ = index + 1, 0, []
        slice_.append(unit)
        images += size if isinstance(unit, TarArchive) or count is None else count
    if slice_:
        yield Shard(index, tuple(slice_))
