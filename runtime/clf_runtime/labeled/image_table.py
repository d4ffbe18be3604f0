"""Parquet files with the bytes of images and their labels, as the library datasets writes them."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from clf_runtime.errors import DataError, MachineError
from clf_runtime.labeled.images import Columns
from clf_runtime.labeled.parquet import bytes_leaf, choose_bytes_column, find_class_names, open_parquet
from clf_runtime.labeled.shards import ShardContent
from clf_runtime.labeled.table import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    SPLIT_COLUMNS,
    find_column,
    find_optional_column,
    text_from_value,
)
from clf_runtime.machine import usable_memory

# A row group is read at once, and what it decodes to lies in memory beside it.
_MEMORY_SHARE = 0.25


def has_image_bytes(path: Path, columns: Columns) -> bool:
    """Return whether a Parquet file has images in it, not their paths.

    Raises:
        DataError: It is not valid.
        MachineError: pyarrow is not installed.
        OSError: It cannot be read.
    """
    with path.open("rb") as file, open_parquet(str(path), file) as content:
        return choose_bytes_column(content.schema_arrow, columns.image) is not None


def index_parquet(path: Path, columns: Columns) -> ShardContent:
    """Find the images of a Parquet file, from its metadata and the columns without images.

    Raises:
        DataError: It is not valid, has no such columns, or an image has no label.
        MachineError: pyarrow is not installed, or a row group does not fit into memory.
        OSError: It cannot be read.
    """
    with path.open("rb") as file, open_parquet(str(path), file) as content:
        schema = content.schema_arrow
        column = choose_bytes_column(schema, columns.image)
        if column is None:
            option = f"a column {columns.image!r}" if columns.image else "a column image"
            raise DataError(
                f"{path}: its columns are {', '.join(schema.names) or 'missing'}; expected {option} with the bytes of "
                "images; name it with --image-column"
            )
        labels = _read_labels(path, content, columns.label)
        index = ShardContent(_name_rows(content, column, len(labels)), labels, column=column)
        split = find_optional_column(path, schema.names, ("--split-column", columns.split), SPLIT_COLUMNS)
        if split is not None:
            index.splits = _read_texts(content, schema.names[split])
        if columns.group_by is not None and columns.group_by in schema.names:
            index.groups = _read_texts(content, columns.group_by)
        _add_rows(path, content, index)
        return index


def _add_rows(path: Path, content: Any, index: ShardContent) -> None:
    """Add where the images are: a row group is a block.

    Not from the metadata of its columns, which would tell more: if they are damaged, pyarrow ends the process.
    """
    limit = int(_MEMORY_SHARE * usable_memory())
    groups = [content.metadata.row_group(group) for group in range(content.metadata.num_row_groups)]
    counts = {len(column) for column in (index.names, index.labels, index.splits, index.groups) if column}
    total = sum(group.num_rows for group in groups)
    if counts - {total} or any(group.num_rows < 0 or group.total_byte_size < 0 for group in groups):
        raise DataError(f"{path}: is not a valid Parquet file (its columns differ in length); write it again")
    for group, metadata in enumerate(groups):
        size_bytes, rows, first = metadata.total_byte_size, metadata.num_rows, len(index.starts)
        if size_bytes > limit:
            raise MachineError(
                f"{path}: a row group has {size_bytes / 1e9:.1f} GB, and it is read at once, for which "
                f"{limit / 1e9:.1f} GB are available; write it again with smaller row groups"
            )
        index.starts.extend(range(first, first + rows))
        index.sizes.extend([size_bytes // max(1, rows)] * rows)
        index.blocks.extend([group] * rows)


def _name_rows(content: Any, column: str, rows: int) -> list[str]:
    """Return names that distinguish the rows: their numbers, and the names of the files that the images once were."""
    schema = content.schema_arrow
    if bytes_leaf(schema, column) == column:
        others = {name.casefold(): name for name in schema.names if name != column}
        name_column = next((others[name] for name in IMAGE_COLUMNS if name in others), None)
        paths = [None] * rows if name_column is None else _read_values(content, name_column)
    elif any(part.name == "path" for part in schema.field(column).type):
        paths = [(cell or {}).get("path") for cell in _read_values(content, f"{column}.path")]
    else:
        paths = [None] * rows
    return [_name_row(row, path) for row, path in enumerate(paths)]


def _read_values(content: Any, column: str) -> list[Any]:
    values: list[Any] = content.read(columns=[column]).column(0).to_pylist()
    return values


def _name_row(row: int, path: object) -> str:
    base = posixpath.basename(str(path or "").replace("\\", "/"))
    return f"{row:06}/{base}" if base else f"{row:06}"


def _read_labels(path: Path, content: Any, column: str | None) -> list[str]:
    schema = content.schema_arrow
    name = schema.names[find_column(path, schema.names, ("--label-column", column), LABEL_COLUMNS)]
    classes = find_class_names(schema, name)
    labels = _read_texts(content, name)
    for row, label in enumerate(labels, 1):
        # The library datasets writes -1 where a label is unknown.
        if not label or (classes is not None and label == "-1"):
            raise DataError(f"{path}: row {row:,} has no label in the column {name!r}; add it, or remove the row")
        if classes is not None and not (label.isdecimal() and int(label) < len(classes)):
            raise DataError(f"{path}: row {row:,} has the label {label}; expected 0 to {len(classes) - 1}")
    return labels if classes is None else [classes[int(label)] for label in labels]


def _read_texts(content: Any, column: str) -> list[str]:
    texts: dict[Any, str] = {}  # the same object for the same value: millions of rows have few values
    values = _read_values(content, column)
    if any(isinstance(value, (dict, list)) for value in values[:1]):
        return [""] * len(values)
    return [texts.setdefault(value, text_from_value(value).strip()) for value in values]
