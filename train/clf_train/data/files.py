"""Where the image files of a data set are, by their places in it: in a folder, in an archive or in shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clf_runtime.errors import DataError, ImageError
from clf_runtime.labeled.images import ImageFile, locate_image
from clf_runtime.labeled.members import MAX_MEMBER_BYTES, Archive, Member
from clf_runtime.labeled.shards import Int64Array, ShardIndex
from clf_train.data.blocks import Blocks


@dataclass(frozen=True)
class ShardRows:
    """Some images in shards: the place of each in the index, (N,)."""

    index: ShardIndex
    rows: Int64Array

    @property
    def blocks(self) -> Blocks:
        """Which of them are read at once."""
        return Blocks(self.index.blocks[self.rows], self.index.sizes[self.rows])

    def read(self, places: Iterable[int], names: Sequence[str]) -> Iterator[Member]:
        """Yield images; a block is read when one of its images is needed first, and held until all were."""
        block_of = self.index.blocks[self.rows]
        by_block = np.argsort(block_of, kind="stable")
        ascending = block_of[by_block]
        held: dict[int, Member] = {}
        for place in places:
            if place not in held:
                first, last = (np.searchsorted(ascending, block_of[place], side) for side in ("left", "right"))
                held |= self._read_block(by_block[first:last], names)
            yield held.pop(place)

    def _read_block(self, places: Int64Array, names: Sequence[str]) -> dict[int, Member]:
        """Return images of a block with their bytes; without them if that failed: reading them again tells why."""
        members = {place: self.index.member(int(self.rows[place]), names[place]) for place in places.tolist()}
        read = [place for place, member in members.items() if member.size_bytes <= MAX_MEMBER_BYTES]
        try:
            contents = self.index.read_block(self.rows[read].tolist()) if read else []
        except (ImageError, DataError, OSError):
            return members
        for place, content in zip(read, contents, strict=True):
            member = members[place]
            if member.kind == "memory" or len(content) == member.size_bytes:
                size = len(content)
                members[place] = Member(member.archive, member.name, "memory", member.offset, size, content=content)
        return members


@dataclass(frozen=True)
class ImageRoot:
    """Where named image files are."""

    path: Path
    archive: Archive | None = None
    shards: ShardRows | None = None

    def file(self, place: int, name: str) -> ImageFile:
        """Return where one image is."""
        if self.shards is not None:
            return self.shards.index.member(int(self.shards.rows[place]), name)
        return locate_image(self.path, self.archive, name)

    def subset(self, places: Int64Array) -> ImageRoot:
        """Return where some of the images are."""
        if self.shards is None:
            return self
        return replace(self, shards=replace(self.shards, rows=self.shards.rows[places]))
