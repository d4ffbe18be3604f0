"""Tables of images: CSV and Parquet files with a column of paths, or in Parquet of bytes."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from clf_batch.inputs.remote import is_url, open_url
from clf_batch.inputs.units import ImageFile, TableRows, Unit, Unusable
from clf_runtime.errors import DataError
from clf_runtime.labeled.parquet import BYTES_COLUMNS, find_bytes_columns, open_parquet
from clf_runtime.labeled.table import IMAGE_COLUMNS

_DELIMITERS = ",;\t|"
_ROWS_AT_ONCE = 10_000


def find_in_csv(table: str, column: str | None) -> Iterator[Unit]:
    """Yield the images of a CSV file; their paths are relative to it.

    Raises:
        DataError: It is no CSV file, or has no such column.
        OSError: It cannot be read.
    """
    with open_file(table) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        header = text.readline()
        delimiter = max(_DELIMITERS, key=header.count)
        names = next(csv.reader([header], delimiter=delimiter), [])
        position = _find(table, names, column, IMAGE_COLUMNS)
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            for cells in filter(any, reader):
                yield _image(table, cells[position] if position < len(cells) else "", f"line {reader.line_num + 1}")
        except csv.Error as error:
            raise DataError(f"{table}: line {reader.line_num + 1} is not valid CSV ({error}); repair it") from None


def find_in_parquet(table: str, column: str | None) -> Iterator[Unit]:
    """Yield the images of a Parquet file: from a column of paths, relative to it, or one unit per group of bytes.

    Raises:
        DataError: It is no Parquet file, or has no such column.
        OSError: It cannot be read.
    """
    with open_file(table) as file, open_parquet(table, file) as content:
        schema = content.schema_arrow
        binary = find_bytes_columns(schema)
        name = schema.names[_find(table, schema.names, column, BYTES_COLUMNS if binary else IMAGE_COLUMNS, binary)]
        if name in binary:
            yield from _row_groups(table, content, name)
            return
        row = 0
        for batch in content.iter_batches(_ROWS_AT_ONCE, columns=[name]):
            for value in batch.column(0).to_pylist():
                row += 1
                yield _image(table, str(value or ""), f"row {row}")


def open_file(name: str) -> BinaryIO:
    """Open a path or a URL for reading. Raises MachineError, OSError."""
    return open_url(name) if is_url(name) else open(name, "rb")  # noqa: PTH123


def _row_groups(table: str, content: Any, column: str) -> Iterator[Unit]:
    folded = {name.casefold(): name for name in content.schema_arrow.names if name != column}
    name_column = next((folded[name] for name in IMAGE_COLUMNS if name in folded), None)
    first = 0
    for group in range(content.metadata.num_row_groups):
        rows = content.metadata.row_group(group).num_rows
        yield TableRows(table, group, first, rows, column, name_column)
        first += rows


def _image(table: str, path: str, place: str) -> Unit:
    path = path.strip()
    if not path:
        return Unusable(f"{table}#{place}", "not-found", "the row has no path")
    if is_url(path) or Path(path).is_absolute():
        return ImageFile(path)
    folder, separator, _ = table.rpartition("/" if is_url(table) else os.sep)
    return ImageFile(f"{folder}{separator}{path}")


def _find(
    table: str, names: Sequence[str], column: str | None, usual: Sequence[str], preferred: Sequence[str] = ()
) -> int:
    """Return the position of the column with the images: the named one, or the first with a usual name."""
    if column is not None and column in names:
        return names.index(column)
    folded = [name.strip().casefold() for name in names]
    candidates = [folded.index(name) for name in usual if name in folded]
    if column is None and candidates:
        return next((position for position in candidates if names[position] in preferred), candidates[0])
    expected = f"a column {column!r}" if column is not None else f"one of {', '.join(usual[:4])}, …"
    raise DataError(f"{table}: its columns are {', '.join(names)}; expected {expected}; name it with --column")
