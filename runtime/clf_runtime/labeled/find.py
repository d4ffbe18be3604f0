"""From a folder, an archive, a manifest or shards to labeled images."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from clf_runtime.errors import DataError, UsageError
from clf_runtime.labeled.annotations import read_annotations
from clf_runtime.labeled.archive import is_archive_name, open_archive
from clf_runtime.labeled.folder import find_in_archive, find_in_folder, find_split_folders
from clf_runtime.labeled.image_table import has_image_bytes
from clf_runtime.labeled.images import Columns, LabeledImages, Split, raise_if_columns_named, split_from_name
from clf_runtime.labeled.parquet import read_parquet
from clf_runtime.labeled.rows import Manifest, images_from_manifest
from clf_runtime.labeled.shard_files import (
    find_by_pattern,
    find_in_shard,
    find_in_shard_folder,
    is_pattern,
    list_shards,
)
from clf_runtime.labeled.table import has_label_column, read_csv, read_json_lines
from clf_runtime.labeled.tree import FolderTree, is_image_name
from clf_runtime.labeled.webdataset import is_shard

_Read = Callable[[Path, Columns], Manifest]

_READERS: Mapping[str, _Read] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".parquet": read_parquet,
    ".json": read_annotations,
}

# Manifests in the folder of their images: of Hugging Face's imagefolder, and of Roboflow's COCO exports.
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "_annotations.coco.json")


def find_labeled_images(source: Path, columns: Columns = Columns()) -> LabeledImages:  # noqa: B008 (frozen)
    """Find labeled images.

    Args:
        source: A folder of class folders, an archive of one, a manifest, or shards: a folder of them, one of them, or a
            pattern like train-{000..099}.tar.
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
    _raise_if_not_text(source, images)
    return images if images.groups is not None else _group(images, columns.group_by)


def _raise_if_not_text(source: Path, images: LabeledImages) -> None:
    """Raise DataError if a class has no valid name: on Linux, that of a folder can be any bytes."""
    for label in images.class_names:
        try:
            label.encode()
        except UnicodeEncodeError:
            raise DataError(f"{source}: the name of the class {label!r} is not UTF-8; rename it") from None


def _find(source: Path, columns: Columns) -> LabeledImages:
    if source.is_dir():
        return (
            _find_by_metadata(source, columns)
            or _find_in_shards(source, columns)
            or _find_without_columns(source, columns)
        )
    if not source.exists():
        if is_pattern(source):
            return find_by_pattern(source, columns)
        raise DataError(
            f"{source}: no such folder, and no data set of this name; expected a folder with a folder of images for "
            "each class, an archive of it, or a manifest"
        )
    suffix = source.suffix.lower()
    if (suffix == ".tar" and is_shard(source)) or (suffix == ".parquet" and has_image_bytes(source, columns)):
        return find_in_shard(source, columns)
    read = _READERS.get(suffix)
    if read is not None:
        return images_from_manifest(read(source, columns))
    return _find_without_columns(source, columns)


def _find_without_columns(source: Path, columns: Columns) -> LabeledImages:
    raise_if_columns_named(source, columns)
    if source.is_dir():
        return find_in_folder(source)
    if is_archive_name(source.name):
        return find_in_archive(*open_archive(source))
    raise DataError(
        f"{source}: is not a folder, an archive (.zip, .tar, .tar.gz, .tgz) or a manifest (.csv, .tsv, .jsonl, .json, "
        ".parquet)"
    )


def _find_by_metadata(folder: Path, columns: Columns) -> LabeledImages | None:
    """Find the images that a manifest in their folder lists, or one in each folder of a split; None without any."""
    manifest = _find_metadata(folder, columns)
    if manifest is not None:
        return images_from_manifest(manifest)
    folders = find_split_folders(FolderTree(folder), "")
    manifests = {split: _find_metadata(folder / name, columns) for split, name in folders.items()}
    parts: dict[Split, LabeledImages] = {}
    for split, of_part in manifests.items():
        if of_part is not None:
            parts[split] = images_from_manifest(of_part)
    if not parts:
        return None
    if len(parts) < len(folders):
        missing = next(name for split, name in folders.items() if split not in parts)
        raise DataError(f"{folder / missing}: has no metadata.csv, unlike the other splits; add it, or remove all")
    return _join_parts(folder, parts, folders)


def _find_in_shards(folder: Path, columns: Columns) -> LabeledImages | None:
    """Find the images in the shards of a folder; None without any, or if class folders are beside them."""
    shards = list_shards(folder)
    if not shards:
        return None
    places = sorted({name.rpartition("/")[0] for name in shards})
    tree = FolderTree(folder)
    class_folders = [name for place in places for name in tree.subfolders(place) if split_from_name(name) is None]
    if class_folders:
        images = _find_without_columns(folder, columns)
        return images.with_warning(
            f"{folder}: has class folders ({class_folders[0]}), so {len(shards)} shards are ignored (the first is "
            f"{shards[0]})"
        )
    loose = [path.name for place in places for path in (folder / place).iterdir() if is_image_name(path.name)]
    if loose:
        raise DataError(f"{folder}: has shards ({shards[0]}) and images ({min(loose)}); move one kind elsewhere")
    return find_in_shard_folder(folder, columns)


def _find_metadata(folder: Path, columns: Columns) -> Manifest | None:
    for path in (folder / name for name in _METADATA):
        # A table without classes may describe anything; the folders are the classes then.
        if path.is_file() and (columns.label is not None or has_label_column(path)):
            return _READERS[path.suffix](path, columns)
    return None


def _join_parts(root: Path, parts: Mapping[Split, LabeledImages], folders: Mapping[Split, str]) -> LabeledImages:
    joined = [(split, f"{folders[split]}/", images) for split, images in parts.items()]
    has_groups = all(images.groups is not None for images in parts.values())
    return LabeledImages(
        root,
        tuple(prefix + name for _, prefix, images in joined for name in images.names),
        tuple(label for _, _, images in joined for label in images.labels),
        tuple(split for split, _, images in joined for _ in images.names),
        tuple(group for _, _, images in joined for group in images.groups or ()) if has_groups else None,
        folders,
        tuple(warning for _, _, images in joined for warning in images.warnings),
    )


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
