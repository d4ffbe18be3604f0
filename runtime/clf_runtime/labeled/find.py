"""From a folder, an archive or a manifest to its labeled images."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from clf_runtime.errors import DataError, UsageError
from clf_runtime.labeled.annotations import read_annotations
from clf_runtime.labeled.archive import is_archive_name, open_archive
from clf_runtime.labeled.folder import find_in_archive, find_in_folder
from clf_runtime.labeled.images import Columns, LabeledImages
from clf_runtime.labeled.rows import images_from_manifest
from clf_runtime.labeled.table import read_csv, read_json_lines, read_parquet

_TABLES = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".parquet": read_parquet,
}


def find_labeled_images(source: Path, columns: Columns = Columns()) -> LabeledImages:  # noqa: B008 (frozen)
    """Find labeled images.

    Args:
        source: A folder of class folders, an archive of one, or a manifest.
        columns: Which columns of a manifest to read.

    Returns:
        The images. None of them has been opened.

    Raises:
        DataError: The source cannot be used.
        UsageError: `columns` does not apply to this source.
        MachineError: A package that reads this format is not installed.
        OSError: A file or folder cannot be read.
    """
    images = _find(source, columns)
    return images if images.groups is not None else _group(images, columns.group_by)


def _find(source: Path, columns: Columns) -> LabeledImages:
    if source.is_dir():
        _raise_if_columns_named(source, columns)
        return find_in_folder(source)
    if not source.exists():
        raise DataError(
            f"{source}: no such folder, and no data set of this name; expected a folder with a folder of images for "
            "each class, an archive of it, or a manifest"
        )
    suffix = source.suffix.lower()
    if suffix in _TABLES:
        return images_from_manifest(_TABLES[suffix](source, columns))
    _raise_if_columns_named(source, columns)
    if suffix == ".json":
        return images_from_manifest(read_annotations(source))
    if is_archive_name(source.name):
        return find_in_archive(*open_archive(source))
    raise DataError(
        f"{source}: is not a folder, an archive (.zip, .tar, .tar.gz, .tgz) or a manifest (.csv, .tsv, .jsonl, .json, "
        ".parquet)"
    )


def _raise_if_columns_named(source: Path, columns: Columns) -> None:
    for option, name in (("image", columns.image), ("label", columns.label), ("split", columns.split)):
        if name is not None:
            raise UsageError(f"--{option}-column {name}: applies to a table, and {source} is none")


def _group(images: LabeledImages, pattern: str | None) -> LabeledImages:
    """Group images by what a regular expression finds in their names: its groups, or all of it if it has none."""
    if pattern is None:
        return images
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--group-by {pattern}: is neither a column nor a regular expression ({error})") from None
    groups, unmatched = [], []
    for name in images.names:
        match = expression.search(name)
        if match is None:
            unmatched.append(name)
        groups.append(name if match is None else "\0".join(part or "" for part in match.groups() or (match[0],)))
    if len(unmatched) == len(images):
        raise UsageError(
            f"--group-by {pattern}: is neither a column nor found in the name of any image, like {images.names[0]}"
        )
    warnings = images.warnings
    if unmatched:
        warnings += (
            f"--group-by {pattern}: not found in the names of {len(unmatched)} images, each of which is a group of its "
            f"own (the first is {unmatched[0]})",
        )
    return replace(images, groups=tuple(groups), warnings=warnings)
