"""WebDataset shards: tar files in which the files of a sample share a key, the name up to the first dot.

The label of `a/0001.jpg` is in `a/0001.cls`, as text, or in `a/0001.json`.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from clf_runtime.errors import DataError
from clf_runtime.image_files import SUFFIXES
from clf_runtime.labeled.images import Columns
from clf_runtime.labeled.shards import ShardContent
from clf_runtime.labeled.table import LABEL_COLUMNS, parse_json, text_from_value
from clf_runtime.labeled.tar import DAMAGE, damage_error, raise_if_sparse, read_tar

_LABEL = "cls"
_JSON = "json"
_MAX_LABEL_BYTES = 1 << 20
_PEEKED_MEMBERS = 64
# Images that are read at once: large enough for disks and networks, small enough for many of them in memory.
_BLOCK_BYTES = 4 << 20


@dataclass
class _Sample:
    """The files of one key that matter."""

    images: dict[str, tuple[str, int, int]] = field(default_factory=dict)  # extension → name, offset, size
    labels: dict[str, bytes] = field(default_factory=dict)  # extension → content


def is_shard(path: Path) -> bool:
    """Return whether the first members of a tar file are samples with labels, not images in class folders.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        try:
            for number, (name, info) in enumerate(read_tar(path, file)):
                key, extension = split_key(name)
                if info.isreg() and (extension == _LABEL or (extension == _JSON and "/" not in key)):
                    return True
                if number == _PEEKED_MEMBERS:
                    break
        except DAMAGE:
            pass  # whoever reads all of it reports that
    return False


def index_tar(path: Path, columns: Columns) -> ShardContent:
    """Find the samples of a shard, from the headers of its members and the content of the labels.

    Args:
        path: The shard.
        columns: `image` chooses one of several images by its extension; `label` is another extension, or a key in JSON.

    Raises:
        DataError: It is damaged, or a sample has no image or no label.
        OSError: It cannot be read.
    """
    # Extensions are compared without regard to case, like those of images anywhere else.
    image, label = (name and name.casefold() for name in (columns.image, columns.label))
    samples: dict[str, _Sample] = {}
    with path.open("rb") as file:
        try:
            for name, info in read_tar(path, file):
                _add_member(path, samples, name, (info, file), (image, label))
        except DataError:
            raise  # also a ValueError
        except DAMAGE as error:
            raise damage_error(path, error) from None
    content = ShardContent()
    for key, sample in samples.items():
        name, offset, size = _choose_image(path, key, sample, image)
        content.add(name, _find_label(path, key, sample, label), offset, size, offset // _BLOCK_BYTES)
    return content


def split_key(name: str) -> tuple[str, str]:
    """Return the key and the extension of a member: `a/b.c.jpg` is `a/b` and `c.jpg`."""
    folder, base = posixpath.split(name)
    start, _, extension = base.partition(".")
    return posixpath.join(folder, start), extension.casefold()


def _add_member(
    path: Path,
    samples: dict[str, _Sample],
    name: str,
    member: tuple[tarfile.TarInfo, IO[bytes]],
    chosen: tuple[str | None, str | None],
) -> None:
    info, file = member
    image, label = chosen
    key, extension = split_key(name)
    is_label = extension in (_LABEL, _JSON, label)
    is_image = f".{extension}" in SUFFIXES or extension == image
    if info.isdir() or not (is_label or is_image) or _is_hidden(name):
        return
    if not info.isreg():
        raise DataError(f"{path}: {name} is a link or no file; pack the file itself")
    raise_if_sparse(path, name, info)
    sample = samples.setdefault(key, _Sample())
    if extension in sample.images or extension in sample.labels:
        raise DataError(f"{path}: {name} is in it twice; every sample of a shard needs a key of its own")
    if is_image:
        sample.images[extension] = (name, info.offset_data, info.size)
        return
    if info.size > _MAX_LABEL_BYTES:
        raise DataError(f"{path}: {name} has {info.size:,} bytes; expected a label, at most {_MAX_LABEL_BYTES:,}")
    file.seek(info.offset_data)
    sample.labels[extension] = file.read(info.size)


def _is_hidden(name: str) -> bool:
    """Return whether a file is not part of a sample: hidden ones, and those about the shard, like __meta.json."""
    return any(part.startswith((".", "__")) for part in name.split("/"))


def _choose_image(path: Path, key: str, sample: _Sample, extension: str | None) -> tuple[str, int, int]:
    if extension is not None and extension in sample.images:
        return sample.images[extension]
    if extension is not None or not sample.images:
        expected = f".{extension}" if extension else ".jpg, .png or the like"
        raise DataError(f"{path}: the sample {key} has a label but no image; expected {key}{expected}")
    if len(sample.images) > 1:
        found = " and ".join(name for name, _, _ in sample.images.values())
        raise DataError(f"{path}: the sample {key} has {found}; choose one with --image-column {min(sample.images)}")
    return next(iter(sample.images.values()))


def _find_label(path: Path, key: str, sample: _Sample, column: str | None) -> str:
    label = next(filter(None, _labels(path, key, sample, column)), None)
    if label is None:
        expected = (
            f"{key}.{column}, or {column!r} in {key}.json" if column else f"{key}.cls, or {key}.json with a label"
        )
        raise DataError(f"{path}: the sample {key} has no label; expected {expected}")
    return label


def _labels(path: Path, key: str, sample: _Sample, column: str | None) -> Iterator[str]:
    """Yield what may be the label, empty if it is not there."""
    extension = column if column in sample.labels else _LABEL
    if column is None or column in sample.labels:
        yield _decode(path, f"{key}.{extension}", sample.labels.get(extension, b""))
    if _JSON in sample.labels:
        name = f"{path}: {key}.{_JSON}"
        content = parse_json(_decode(path, f"{key}.{_JSON}", sample.labels[_JSON]), name)
        if not isinstance(content, dict):
            raise DataError(f"{name} is no object; expected an object with a label")
        folded = {str(name).casefold(): value for name, value in content.items()}
        names = LABEL_COLUMNS if column is None else (column,)
        yield next((text_from_value(folded[name]).strip() for name in names if name in folded), "")


def _decode(path: Path, name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise DataError(f"{path}: {name} is not UTF-8; expected a label as text") from None
