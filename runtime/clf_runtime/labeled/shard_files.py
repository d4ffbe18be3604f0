"""From a folder or a pattern to the labeled images in its shards: tar files as WebDataset, or Parquet files."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clf_runtime.errors import DataError
from clf_runtime.labeled.image_table import index_parquet
from clf_runtime.labeled.images import Columns, LabeledImages, Split, raise_if_columns_named, split_from_name
from clf_runtime.labeled.members import find_version
from clf_runtime.labeled.shards import ShardContent, ShardFile, ShardRows, join_contents
from clf_runtime.labeled.webdataset import index_tar

SUFFIXES = (".tar", ".parquet")
CLASSES = "classes.txt"  # beside the shards: the names of the classes, one per line, by index

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_SHARDS = 1_000_000
_FIRST_WORD = re.compile(r"[A-Za-z]+")
_SHOWN = 3


@dataclass(frozen=True)
class _Shards:
    """Shards by their names relative to a folder, in order, with what their splits are called in these names."""

    root: Path
    names: Sequence[str]
    splits: Sequence[str | None]


def is_pattern(source: Path) -> bool:
    """Return whether a path names several files, like train-{000..099}.tar or *.parquet."""
    text = str(source)
    return glob.has_magic(text) or _BRACES.search(text) is not None


def find_by_pattern(source: Path, columns: Columns) -> LabeledImages:
    """Find the images in the shards that a pattern names.

    Raises:
        DataError: There are none, or they cannot be used.
        UsageError: `columns` does not apply to them.
        MachineError: pyarrow is not installed.
        OSError: A file cannot be read.
    """
    paths: list[str] = []
    for name in _expand_braces(str(source)):
        found = sorted(glob.glob(name)) if glob.has_magic(name) else [name] * os.path.isfile(name)  # noqa: PTH113, PTH207
        if not found:
            raise DataError(f"{name}: no such shard; expected the names of .tar or .parquet files, like train-*.tar")
        paths += found
    paths = list(dict.fromkeys(paths))
    for path in paths:
        _raise_if_no_shard(path)
    root = fixed_folder(source)
    return _find_images(root, [Path(path).relative_to(root).as_posix() for path in paths], columns)


def find_in_shard_folder(folder: Path, columns: Columns) -> LabeledImages:
    """Find the images in the shards of a folder, see `list_shards`. Raises as `find_by_pattern`."""
    names = list_shards(folder)
    for name in names:
        _raise_if_no_shard(str(folder / name))
    return _find_images(folder, names, columns)


def find_in_shard(source: Path, columns: Columns) -> LabeledImages:
    """Find the images in one shard. Raises as `find_by_pattern`."""
    return _read_shards(_Shards(source.parent, [source.name], [None]), columns)


def list_shards(folder: Path) -> list[str]:
    """Return the shards in a folder and in those folders in it that are called after splits, by name with /.

    Raises:
        OSError: A folder cannot be listed.
    """
    places = [folder, *sorted(path for path in folder.iterdir() if _is_split_folder(path))]
    return [
        path.relative_to(folder).as_posix()
        for place in places
        for path in sorted(place.iterdir())
        if path.name.lower().endswith((*SUFFIXES, *_COMPRESSED)) and not path.name.startswith(".") and path.is_file()
    ]


def _is_split_folder(path: Path) -> bool:
    return split_from_name(path.name) is not None and path.is_dir()


def _raise_if_no_shard(path: str) -> None:
    lower = path.lower()
    if lower.endswith(_COMPRESSED):
        raise DataError(
            f"{path}: is compressed as a whole, so its images cannot be read in place; decompress it to .tar (images "
            "are compressed already)"
        )
    if not lower.endswith(SUFFIXES):
        raise DataError(f"{path}: is no shard; expected .tar or .parquet")


def _expand_braces(pattern: str) -> Iterator[str]:
    """Yield the names that {000..099} and {a,b} stand for, as a shell does."""
    pieces = _BRACES.split(pattern)  # every second one was in braces
    choices = [[piece] if number % 2 == 0 else _alternatives(piece) for number, piece in enumerate(pieces)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > _MAX_SHARDS:
        raise DataError(f"{pattern}: stands for {count:,} names; expected at most {_MAX_SHARDS:,}")
    return map("".join, itertools.product(*choices))


def _alternatives(text: str) -> Sequence[str]:
    match = _RANGE.fullmatch(text)
    if match is None:
        return text.split(",") if "," in text else ["{" + text + "}"]
    first, last = sorted(map(int, match.groups()))
    return [str(number).zfill(len(match[1])) for number in range(first, min(last, first + _MAX_SHARDS) + 1)]


def fixed_folder(pattern: Path) -> Path:
    """Return the folder above the first part of a pattern that stands for several names."""
    return next((folder for folder in pattern.parents if not is_pattern(folder)), pattern)


def _find_images(root: Path, names: Sequence[str], columns: Columns) -> LabeledImages:
    kinds = sorted({os.path.splitext(name)[1].lower() for name in names})  # noqa: PTH122
    if len(kinds) > 1:
        raise DataError(f"{root}: has {' and '.join(kinds)} files; expected shards of one kind, move the others")
    splits = [_find_split_name(name) for name in names]
    if columns.split is not None or "train" not in map(split_from_name, filter(None, splits)):
        return _read_shards(_Shards(root, names, [None] * len(names)), columns)
    ignored = [name for name, split in zip(names, splits, strict=True) if split is None]
    kept = [name for name, split in zip(names, splits, strict=True) if split is not None]
    images = _read_shards(_Shards(root, kept, list(filter(None, splits))), columns)
    if not ignored:
        return images
    more = f" and {len(ignored) - _SHOWN} more" if len(ignored) > _SHOWN else ""
    return images.with_warning(
        f"{root}: beside the shards of the training split, only those of other splits are read; ignored: "
        f"{', '.join(ignored[:_SHOWN])}{more}"
    )


def _find_split_name(name: str) -> str | None:
    """Return the folder of a shard, or the first word of its name, whichever is that of a split."""
    folder, _, base = name.rpartition("/")
    word = _FIRST_WORD.match(base)
    candidates = (folder.rpartition("/")[2], word[0] if word else "")
    return next((candidate for candidate in candidates if split_from_name(candidate)), None)


def _read_shards(shards: _Shards, columns: Columns) -> LabeledImages:
    is_tar = shards.names[0].lower().endswith(".tar")
    if is_tar:
        raise_if_columns_named(shards.root / shards.names[0], Columns(split=columns.split))
    files, contents = [], []
    for name in shards.names:
        path = shards.root / name
        with path.open("rb") as file:
            version = find_version(file)
        content = index_tar(path, columns) if is_tar else index_parquet(path, columns)
        files.append(ShardFile(str(path), name, version, content.column))
        contents.append(content)
    if not any(content.names for content in contents):
        raise DataError(f"{shards.root / shards.names[0]}: has no images; expected samples of an image and its label")
    splits, origins = _find_splits(shards, contents)
    has_groups = all(content.groups for content in contents if content.names)
    index = join_contents(files, contents)
    return LabeledImages(
        shards.root,
        tuple(f"{file.name}/{name}" for file, content in zip(files, contents, strict=True) for name in content.names),
        tuple(_name_classes(shards, contents)),
        splits,
        tuple(group for content in contents for group in content.groups) if has_groups else None,
        origins,
        shards=ShardRows(index, np.arange(len(index.starts))),
    )


def _find_splits(
    shards: _Shards, contents: Sequence[ShardContent]
) -> tuple[tuple[Split | None, ...], dict[Split, str]]:
    """Return the split of each image, from the column or else from the shard, and split → how the data calls it."""
    splits: list[Split | None] = []
    origins: dict[Split, str] = {}
    for name, of_shard, content in zip(shards.names, shards.splits, contents, strict=True):
        values = [of_shard] * len(content.names) if of_shard is not None else content.splits
        for row, value in enumerate(values, 1):
            split = split_from_name(value)
            if split is None:
                raise DataError(
                    f"{shards.root / name}: row {row:,} has the split {value!r}; expected train, val or test, or one "
                    "of their other usual names, in every row"
                )
            splits.append(split)
            origins.setdefault(split, value)
        splits += [None] * (len(content.names) - len(values))
    return tuple(splits), origins


def _name_classes(shards: _Shards, contents: Sequence[ShardContent]) -> Iterator[str]:
    """Yield the class of each image: by its name, or by its index if classes.txt lists the names."""
    path = shards.root / CLASSES
    names = (
        [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()] if path.is_file() else []
    )
    known = set(names)
    for shard, content in zip(shards.names, contents, strict=True):
        for name, label in zip(content.names, content.labels, strict=True):
            if not names or label in known:
                yield label
            elif label.isdecimal() and int(label) < len(names):
                yield names[int(label)]
            else:
                raise DataError(
                    f"{shards.root / shard}: {name} has the label {label!r}; expected one of the {len(names)} classes "
                    f"of {path}, or an index below {len(names)}"
                )
