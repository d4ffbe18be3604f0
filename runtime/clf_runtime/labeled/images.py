"""What is known about labeled images before one of them is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clf_runtime.errors import DataError, UsageError
from clf_runtime.labeled.members import Archive, Member

if TYPE_CHECKING:
    from clf_runtime.labeled.shards import ShardRows

Split = Literal["train", "validation", "test"]

# How people name the splits, as folders and in a column of a manifest.
SPLIT_NAMES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}

# A file, or a member of an archive. `str()` of both is for people.
ImageFile = str | Member


@dataclass(frozen=True)
class Columns:
    """Which columns of a manifest to read; None finds a column by its usual names.

    Attributes:
        image: The path of the image, relative to the manifest.
        label: The class.
        split: train, validation or test.
        group_by: A column, or a regular expression on the names of the images: images of one group share a split.
    """

    image: str | None = None
    label: str | None = None
    split: str | None = None
    group_by: str | None = None

    def to_dict(self) -> dict[str, str]:
        """Return those that are set; `Columns(**columns.to_dict())` is equal."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class LabeledImages:
    """Labeled images in a fixed order: by class and name in folders, as listed in a manifest.

    Attributes:
        root: The folder, or the archive.
        names: The name of each image, relative to `root`, with / on every system.
        labels: The class of each image.
        splits: The split of each image; None if the data does not say.
        groups: The group of each image; None without `Columns.group_by`.
        origins: Split → its folder, or its value in the manifest.
        warnings: What a person should know, one line each.
        archive: The archive that the images are members of, if they are.
        shards: Where the images are, if they are in shards.
    """

    root: Path
    names: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[Split | None, ...]
    groups: tuple[str, ...] | None = None
    origins: Mapping[Split, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    archive: Archive | None = None
    shards: ShardRows | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, sorted by code point on every machine."""
        return tuple(sorted(set(self.labels)))

    def file(self, index: int) -> ImageFile:
        """Return where one image is."""
        if self.shards is not None:
            return self.shards.member(index, self.names[index])
        return locate_image(self.root, self.archive, self.names[index])

    def locate(self, positions: Sequence[int]) -> Iterator[ImageFile]:
        """Yield where images are; those in shards come with their bytes, which are read in blocks."""
        if self.shards is not None:
            return self.shards.read(positions, self.names)
        return map(self.file, positions)

    def with_warning(self, warning: str) -> LabeledImages:
        """Return the same images with one more warning."""
        return replace(self, warnings=(*self.warnings, warning))


def locate_image(root: Path, archive: Archive | None, name: str) -> ImageFile:
    """Return where the image of this name is."""
    if archive is not None:
        return archive.member(name)
    return os.path.join(root, name)  # noqa: PTH118 (ten times faster than Path, for each image)


def split_from_name(name: str) -> Split | None:
    """Return the split that a folder or a value is named after; None if it is no split's name."""
    folded = name.strip().casefold()
    return next((split for split, names in SPLIT_NAMES.items() if folded in names), None)


def raise_if_outside(name: str, source: str) -> None:
    """Raise DataError if a name with / could lead out of the folder or archive that it is relative to."""
    if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
        raise DataError(f"{source}: {name!r} leads outside; expected a path below it, without a leading / or ..")


def raise_if_columns_named(source: Path, columns: Columns) -> None:
    """Raise UsageError if columns are named for a source that has none; a group may still be a regular expression."""
    for option, name in (("image", columns.image), ("label", columns.label), ("split", columns.split)):
        if name is not None:
            raise UsageError(f"--{option}-column {name}: applies to a table, and {source} is none")
