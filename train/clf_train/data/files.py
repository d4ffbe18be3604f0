"""Where the image files of a data set are, by their places in it: in a folder, in an archive or in shards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from clf_runtime.labeled.images import ImageFile, locate_image
from clf_runtime.labeled.members import Archive
from clf_runtime.labeled.shards import Int64Array, ShardRows
from clf_train.data.blocks import Blocks


@dataclass(frozen=True)
class ImageRoot:
    """Where named image files are."""

    path: Path
    archive: Archive | None = None
    shards: ShardRows | None = None

    @property
    def blocks(self) -> Blocks | None:
        """Which images are read at once; None if they are not in shards."""
        if self.shards is None:
            return None
        index, rows = self.shards.index, self.shards.rows
        return Blocks(index.blocks[rows], index.sizes[rows])

    def file(self, place: int, name: str) -> ImageFile:
        """Return where one image is."""
        if self.shards is not None:
            return self.shards.member(place, name)
        return locate_image(self.path, self.archive, name)

    def subset(self, places: Int64Array) -> ImageRoot:
        """Return where some of the images are."""
        if self.shards is None:
            return self
        return replace(self, shards=self.shards.subset(places))
