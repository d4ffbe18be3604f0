"""What a list of inputs consists of before an image is read: names, and parts of containers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class ImageFile:
    """One image: a path, relative to the folder of the command or absolute, or a URL."""

    name: str

    @property
    def key(self) -> str:
        """What distinguishes it from other units."""
        return self.name


@dataclass(frozen=True)
class Unusable:
    """An input that names no image, such as a folder without any; it is a row with this error."""

    name: str
    kind: str
    message: str

    @property
    def key(self) -> str:
        """What distinguishes it from other units."""
        return f"{self.name}\0{self.kind}"


@dataclass(frozen=True)
class TarArchive:
    """All images in a tar archive, whose members are found when it is read."""

    name: str

    @property
    def key(self) -> str:
        """What distinguishes it from other units."""
        return f"{self.name}\0tar"


@dataclass(frozen=True)
class TableRows:
    """The images of one row group of a Parquet file that has their bytes.

    Attributes:
        table: The file.
        row_group: The position of the row group.
        first: The position of its first row in the file.
        rows: How many rows it has.
        column: The column with the bytes.
        name_column: The column with the names of the images, if there is one.
    """

    table: str
    row_group: int
    first: int
    rows: int
    column: str
    name_column: str | None

    @property
    def key(self) -> str:
        """What distinguishes it from other units."""
        return f"{self.table}\0{self.row_group}\0{self.rows}\0{self.column}\0{self.name_column}"


Unit: TypeAlias = ImageFile | Unusable | TarArchive | TableRows


def count_images(unit: Unit) -> int | None:
    """Return how many images a unit has; None if that is known only when it is read."""
    if isinstance(unit, TarArchive):
        return None
    return unit.rows if isinstance(unit, TableRows) else 1
