"""Images in shards: where each of them is, in arrays, so that ten million of them fit into memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from clf_runtime.errors import DataError, ImageError
from clf_runtime.labeled.members import MAX_MEMBER_BYTES, FileVersion, Member, raise_if_changed
from clf_runtime.labeled.parquet import RowMember, read_images

Int64Array: TypeAlias = "npt.NDArray[np.int64]"


@dataclass
class ShardContent:
    """The samples of one shard, in their order.

    Attributes:
        names: Of the images, in the shard.
        labels: The class of each image.
        starts: Where each image is: the byte in a tar file, the row in a Parquet file.
        sizes: The bytes of each image; in a Parquet file the mean of its row group.
        blocks: A number that is the same for images which are read at once.
        splits: The value that names the split of each image; none without such a column.
        groups: The group of each image; none without such a column.
        column: The column with the bytes, of a Parquet file.
    """

    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    starts: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    blocks: array[int] = field(default_factory=lambda: array("q"))
    splits: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    column: str | None = None

    def add(self, name: str, label: str, start: int, size: int, block: int) -> None:
        """Add an image."""
        self.names.append(name)
        self.labels.append(label)
        self.starts.append(start)
        self.sizes.append(size)
        self.blocks.append(block)


@dataclass(frozen=True)
class ShardFile:
    """One shard.

    Attributes:
        path: Where it is.
        name: What the names of its images start with, before a /.
        version: What it was when it was indexed.
        column: The column with the bytes of a Parquet file; None for a tar file.
    """

    path: str
    name: str
    version: FileVersion
    column: str | None


@dataclass(frozen=True)
class ShardIndex:
    """Where the images of all shards are.

    Attributes:
        files: The shards.
        file_of: The number of the shard of each image, (N,).
        starts: See ShardContent, (N,).
        sizes: See ShardContent, (N,).
        blocks: A number (N,), ascending: images with the same one are read at once.
    """

    files: tuple[ShardFile, ...]
    file_of: Int64Array
    starts: Int64Array
    sizes: Int64Array
    blocks: Int64Array

    def member(self, row: int, name: str) -> Member:
        """Return where one image is, by its place in the index; its name is for people."""
        file, start = self.files[self.file_of[row]], int(self.starts[row])
        size, name = int(self.sizes[row]), name[len(file.name) + 1 :]
        if file.column is None:
            return Member(file.path, name, "tar", start, size, version=file.version)
        return RowMember(file.path, name, "memory", start, size, version=file.version, column=file.column)

    def read_block(self, rows: Sequence[int]) -> list[bytes]:
        """Return the bytes of images of one block, by their places in the index, ascending.

        Raises:
            ImageError: The shard changed.
            DataError: It is damaged.
            OSError: It cannot be read.
        """
        shard = self.files[self.file_of[rows[0]]]
        starts = self.starts[rows].tolist()
        with open(shard.path, "rb") as file:  # noqa: PTH123
            raise_if_changed(file, shard.version)
            if shard.column is not None:
                return read_images(shard.path, file, shard.column, starts)
            contents = []
            for start, size in zip(starts, self.sizes[rows].tolist(), strict=True):
                file.seek(start)
                contents.append(file.read(size))
            return contents


@dataclass(frozen=True)
class ShardRows:
    """Some images in shards: the place of each in the index, (N,)."""

    index: ShardIndex
    rows: Int64Array

    def subset(self, places: Int64Array) -> ShardRows:
        """Return some of them."""
        return ShardRows(self.index, self.rows[places])

    def member(self, place: int, name: str) -> Member:
        """Return where one image is."""
        return self.index.member(int(self.rows[place]), name)

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
        members = {place: self.member(place, names[place]) for place in places.tolist()}
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


def join_contents(files: Sequence[ShardFile], contents: Sequence[ShardContent]) -> ShardIndex:
    """Return the index of several shards, whose images follow each other."""
    blocks, first = [], 0
    for content in contents:
        numbers = np.frombuffer(content.blocks, np.int64) if content.blocks else np.empty(0, np.int64)
        # Numbered anew, without the gaps.
        _, places = np.unique(numbers, return_inverse=True)
        blocks.append(places.reshape(-1) + first)
        first += int(places.max()) + 1 if len(places) else 0
    return ShardIndex(
        tuple(files),
        np.repeat(np.arange(len(files)), [len(content.names) for content in contents]),
        np.concatenate([np.asarray(content.starts, np.int64) for content in contents]),
        np.concatenate([np.asarray(content.sizes, np.int64) for content in contents]),
        np.concatenate(blocks).astype(np.int64),
    )
