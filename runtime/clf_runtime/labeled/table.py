"""Manifests in the form of a table: CSV and its relatives, JSON lines; and what all tables have in common."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clf_runtime.errors import DataError
from clf_runtime.labeled.images import Columns
from clf_runtime.labeled.rows import Manifest, Row
from clf_runtime.labeled.tree import is_image_name

# Compared without regard to case; the first that a manifest has is taken.
IMAGE_COLUMNS = (
    *("path", "image", "file_name", "filename", "file", "filepath", "file_path", "image_path", "image_name"),
    *("image_file", "img", "name"),
)
LABEL_COLUMNS = (
    *("label", "class", "class_name", "label_name", "category", "category_name", "labels", "choice", "target"),
)
SPLIT_COLUMNS = ("split", "subset", "set", "partition", "data_set", "dataset")

_MAX_HEADER_BYTES = 1 << 16
_DELIMITERS = ",;\t|"
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Table:
    """A table of texts: the names of its columns, and its rows with the place of each."""

    names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    warnings: tuple[str, ...] = ()


def read_csv(path: Path, columns: Columns) -> Manifest:
    """Read a CSV file; the delimiter and the encoding are found.

    Raises:
        DataError: It is no CSV file, or has no such columns.
        OSError: It cannot be read.
    """
    text, warnings = _decode(path)
    header = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header.count)
    rows: list[tuple[str, Sequence[str]]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        for cells in reader:
            if any(cells):
                rows.append((f"row {reader.line_num}", cells))
    except csv.Error as error:
        raise DataError(f"{path}: row {reader.line_num} is not valid CSV ({error}); repair it") from None
    return manifest_from_table(path, Table(names, rows, warnings), columns)


def read_json_lines(path: Path, columns: Columns) -> Manifest:
    """Read JSON lines: an object in each, with the columns as keys.

    Raises:
        DataError: It is not in this format, or has no such columns.
        OSError: It cannot be read.
    """
    text, warnings = _decode(path)
    rows: list[tuple[str, Mapping[str, object]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            content = parse_json(line, f"{path}: row {number}")
            if not isinstance(content, dict):
                raise DataError(f"{path}: row {number} is no object; expected an object with a path and a label")
            rows.append((f"row {number}", content))
    return manifest_from_table(path, _table_from_objects(rows, warnings), columns)


def parse_json(text: str, source: str) -> object:
    """Parse JSON.

    Raises:
        DataError: It is not valid; the message starts with `source`.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: is not valid JSON ({error}); export it again") from None


def has_label_column(path: Path) -> bool:
    """Return whether the first line of CSV or JSON lines names a label column; others are not opened, and have one."""
    if path.suffix not in (".csv", ".jsonl"):
        return True
    with path.open("rb") as file:
        head = file.readline(_MAX_HEADER_BYTES).decode("utf-8-sig", "replace").casefold()
    names = (name.strip(' "{}\r\n') for name in re.split(r"[,;\t|:]", head))
    return not set(LABEL_COLUMNS).isdisjoint(names)


def _decode(path: Path) -> tuple[str, tuple[str, ...]]:
    content = path.read_bytes()
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            try:
                return content.decode(encoding), ()
            except UnicodeDecodeError:
                raise DataError(f"{path}: starts as {encoding} but is not; save it as UTF-8") from None
    try:
        return content.decode("utf-8"), ()
    except UnicodeDecodeError as error:
        warning = (
            f"{path}: is not UTF-8 (byte {error.start:,}); read as Windows-1252, so check the names of the classes"
        )
        return content.decode("cp1252", "replace"), (warning,)


def _table_from_objects(rows: Sequence[tuple[str, Mapping[str, object]]], warnings: tuple[str, ...]) -> Table:
    names = list(dict.fromkeys(name for _, content in rows for name in content))
    cells = [(place, [text_from_value(content.get(name)) for name in names]) for place, content in rows]
    return Table(names, cells, warnings)


def text_from_value(value: object) -> str:
    """Return a value of JSON or Parquet as the text that CSV would have."""
    if value is None or isinstance(value, (dict, list)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def manifest_from_table(path: Path, table: Table, columns: Columns) -> Manifest:
    """Return the rows of a table. Raises DataError if it has no such columns."""
    names = [name.strip() for name in table.names]
    image = find_column(path, names, ("--image-column", columns.image), IMAGE_COLUMNS)
    label = find_column(path, names, ("--label-column", columns.label), LABEL_COLUMNS)
    split = find_optional_column(path, names, ("--split-column", columns.split), SPLIT_COLUMNS)
    group = names.index(columns.group_by) if columns.group_by in names else None
    return Manifest(path, list(_rows(path, table, (image, label, split, group))), warnings=table.warnings)


def _rows(path: Path, table: Table, chosen: tuple[int, int, int | None, int | None]) -> Iterator[Row]:
    image, label, split, group = chosen
    for place, cells in table.rows:
        if len(cells) != len(table.names):
            raise DataError(
                f"{path}: {place} has {len(cells)} fields; expected {len(table.names)}, as in its header; put names "
                "that contain the delimiter in quotes"
            )
        if not cells[image].strip():
            raise DataError(f"{path}: {place} has no image; expected a path in the column {table.names[image]!r}")
        yield Row(
            place,
            cells[image].strip(),
            cells[label].strip(),
            None if split is None else cells[split].strip(),
            None if group is None else cells[group].strip(),
        )


def find_column(path: Path, names: Sequence[str], requested: tuple[str, str | None], usual: Sequence[str]) -> int:
    """Return the position of a column: the (option, name) that was requested, or the first with a usual name.

    Raises:
        DataError: There is none.
    """
    index = find_optional_column(path, names, requested, usual)
    if index is not None:
        return index
    if any(map(is_image_name, names)):
        raise DataError(f"{path}: has no header; expected the names of the columns in its first row, like path,label")
    raise DataError(
        f"{path}: its columns are {', '.join(names) or 'missing'}; expected one of {', '.join(usual[:4])}, …; name it "
        f"with {requested[0]}"
    )


def find_optional_column(
    path: Path, names: Sequence[str], requested: tuple[str, str | None], usual: Sequence[str]
) -> int | None:
    """Return the position of a column, as `find_column`; None if none was requested and none has a usual name."""
    option, name = requested
    if name is not None:
        if name not in names:
            raise DataError(f"{path}: has no column {name!r} for {option}; its columns are {', '.join(names)}")
        return names.index(name)
    folded = [name.casefold() for name in names]
    return next((folded.index(name) for name in usual if name in folded), None)
