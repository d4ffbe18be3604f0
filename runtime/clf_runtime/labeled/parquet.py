"""Parquet files, read with pyarrow: which columns have images, and the images in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from clf_runtime.errors import ClfError, DataError, ImageError, MachineError
from clf_runtime.image_files import image_error_from_os_error
from clf_runtime.labeled.images import Columns
from clf_runtime.labeled.members import Member, raise_if_changed
from clf_runtime.labeled.rows import Manifest
from clf_runtime.labeled.table import IMAGE_COLUMNS, Table, manifest_from_table, text_from_value

# How columns with the bytes of images are called, without regard to case; the first that a file has is taken.
BYTES_COLUMNS = ("bytes", "content", "image_bytes", "data", *IMAGE_COLUMNS)


@dataclass(frozen=True)
class RowMember(Member):
    """An image in a Parquet file; `offset` is the row, and `column` has the bytes."""

    column: str = ""

    def read(self) -> bytes:
        """See Member; reads the complete row group."""
        try:
            with open(self.archive, "rb") as file:  # noqa: PTH123 (for each image)
                raise_if_changed(file, self.version)
                content = read_images(self.archive, file, self.column, [self.offset])[0]
        except OSError as error:
            raise image_error_from_os_error(error) from None
        except DataError as error:
            raise ImageError("damaged", str(error)) from None
        if not content:
            raise ImageError("empty", "the row has no image")
        return content


def read_parquet(path: Path, columns: Columns) -> Manifest:
    """Read a manifest: a column with the paths of images.

    Raises:
        DataError: It is not in this format, or has no such columns.
        MachineError: pyarrow is not installed.
        OSError: It cannot be read.
    """
    with path.open("rb") as file, open_parquet(str(path), file) as content:  # an OSError of Python, which people know
        schema = content.schema_arrow
        # Structures and lists are no text.
        names = [field.name for field in schema if not field.type.num_fields]
        read = content.read(columns=names).to_pydict()
    cells = zip(*([text_from_value(value) for value in read[name]] for name in names), strict=True)
    rows = [(f"row {number}", row) for number, row in enumerate(cells, 1)]
    return manifest_from_table(path, Table(names, rows), columns)


@contextmanager
def open_parquet(name: str, file: IO[bytes]) -> Iterator[Any]:
    """Open a Parquet file as pyarrow's ParquetFile; what is wrong with its content is a DataError until it is closed.

    Raises:
        DataError: It is not valid.
        MachineError: pyarrow is not installed.
        OSError: It cannot be read.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MachineError(
            f'{name}: reading Parquet needs pyarrow, which is not installed; pip install "clf-edge[parquet]", or save '
            "it as CSV"
        ) from None
    try:
        yield parquet.ParquetFile(file)
    except ClfError:
        raise  # some are ValueErrors
    # Damage that pyarrow does not look for shows when texts become Python's, or in numbers that are too large.
    except (pyarrow.ArrowException, OSError, ValueError, IndexError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file's own read; pyarrow's OSErrors, which are about the content, have no number
        reason = " ".join(str(error).split())
        raise DataError(f"{name}: is not a valid Parquet file ({reason}); write it again") from None


def find_bytes_columns(schema: Any) -> list[str]:
    """Return the columns of a schema that may have the bytes of images: binary, or structures of bytes and a path."""
    return [field.name for field in schema if _is_binary(field.type) or _is_image_struct(field.type)]


def choose_bytes_column(schema: Any, column: str | None) -> str | None:
    """Return the column with the bytes of images: the named one, or the first with a usual name; None without one."""
    candidates = find_bytes_columns(schema)
    if column is not None:
        return column if column in candidates else None
    folded = {name.casefold(): name for name in reversed(candidates)}
    return next((folded[name] for name in BYTES_COLUMNS if name in folded), None)


def find_class_names(schema: Any, column: str) -> list[str] | None:
    """Return the names of the classes that the library datasets stores in a schema, if it does."""
    content = (schema.metadata or {}).get(b"huggingface", b"")
    try:
        names = json.loads(content)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return list(map(str, names)) if isinstance(names, list) else None


def read_images(name: str, file: IO[bytes], column: str, rows: Sequence[int]) -> list[bytes]:
    """Return the bytes of images in one row group, by their rows in the file; none for a row without an image.

    Raises:
        DataError: The file is not valid, or has no such rows.
    """
    with open_parquet(name, file) as content:
        first = 0
        for group in range(content.metadata.num_row_groups):
            count = content.metadata.row_group(group).num_rows
            if rows[0] < first + count:
                leaf = bytes_leaf(content.schema_arrow, column)
                cells = content.read_row_group(group, columns=[leaf]).column(0).to_pylist()
                values = [cells[row - first] for row in rows]
                return [(value or {}).get("bytes") or b"" if leaf != column else value or b"" for value in values]
            first += count
    raise DataError(f"{name}: has no row {rows[0] + 1:,}; write it again")


def bytes_leaf(schema: Any, column: str) -> str:
    """Return the name of the column of bytes itself, which may be in a structure."""
    return f"{column}.bytes" if _is_image_struct(schema.field(column).type) else column


def _is_binary(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _is_image_struct(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_struct(kind) and any(part.name == "bytes" and _is_binary(part.type) for part in kind)
