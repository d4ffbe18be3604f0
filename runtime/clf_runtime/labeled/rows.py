"""The rows of a manifest, whatever its format, become labeled images."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from clf_runtime.errors import DataError
from clf_runtime.labeled.images import LabeledImages, Split, raise_if_outside, split_from_name

# Label Studio's addresses of files that it serves itself.
_LOCAL_FILES = "/data/local-files/"
_UPLOADS = "/data/upload/"


@dataclass(frozen=True)
class Row:
    """One image as a manifest lists it.

    Attributes:
        place: Where it is listed, for messages, like "row 7".
        image: The path as written.
        label: The class; empty if there is none.
        split: The value that names the split; None without such a column.
        group: The value of the group column; None without one.
    """

    place: str
    image: str
    label: str
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The rows of a manifest.

    Attributes:
        path: The file.
        rows: One for each image and label.
        folders: Where the images may be, relative to the manifest, in the order to look.
        warnings: What reading it found.
        skips_unlabeled: Whether images without a label are left out; otherwise they are an error.
    """

    path: Path
    rows: Sequence[Row]
    folders: tuple[str, ...] = ("",)
    warnings: tuple[str, ...] = ()
    skips_unlabeled: bool = False

    @property
    def root(self) -> Path:
        """The folder that the names of the images are relative to."""
        # Annotation tools put their file into annotations/, beside images/.
        return self.path.parent.parent if self.path.parent.name == "annotations" else self.path.parent


def images_from_manifest(manifest: Manifest) -> LabeledImages:
    """Check the rows of a manifest, and return its images.

    Raises:
        DataError: An image does not exist or lies outside, or a label or a split is missing, unknown or contradicts
            another row.
    """
    warnings = list(manifest.warnings)
    rows = _drop_unlabeled(manifest, warnings)
    rows = _drop_repeated(manifest, _resolve_images(manifest, rows), warnings)
    splits, origins = _find_splits(manifest, rows)
    groups = None if rows[0].group is None else tuple(row.group or row.image for row in rows)
    return LabeledImages(
        manifest.root,
        tuple(row.image for row in rows),
        tuple(row.label for row in rows),
        splits,
        groups,
        origins,
        tuple(warnings),
    )


def _drop_unlabeled(manifest: Manifest, warnings: list[str]) -> list[Row]:
    labeled = [row for row in manifest.rows if row.label]
    unlabeled = [row for row in manifest.rows if not row.label]
    if not labeled:
        found = f"none of its {len(unlabeled)} images has a label" if unlabeled else "lists no images"
        raise DataError(f"{manifest.path}: {found}; expected at least one image with its class")
    if unlabeled:
        first = f"the first is {unlabeled[0].image!r} in {unlabeled[0].place}"
        if not manifest.skips_unlabeled:
            raise DataError(f"{manifest.path}: {len(unlabeled)} images have no label ({first}); add it, or remove them")
        warnings.append(f"{manifest.path}: {len(unlabeled)} images have no label and are left out ({first})")
    return labeled


def _resolve_images(manifest: Manifest, rows: Sequence[Row]) -> list[Row]:
    """Replace each path by the name of an existing file below the manifest's folder."""
    root = os.path.abspath(manifest.root)  # noqa: PTH100 (links stay as they are)
    resolved, missing = [], []
    for row in rows:
        name = _name_from_path(row.image, root)
        raise_if_outside(name, f"{manifest.path}: {row.place}")
        names = _candidates(name, manifest.folders)
        found = next((name for name in names if os.path.isfile(f"{root}/{name}")), None)  # noqa: PTH113 (for each image)
        if found is None:
            missing.append(row)
        else:
            resolved.append(replace(row, image=found))
    if missing:
        raise DataError(
            f"{manifest.path}: {len(missing)} of {len(rows):,} images do not exist in {manifest.root} (the first is "
            f"{missing[0].image!r} in {missing[0].place}); add them, or remove their rows"
        )
    return resolved


def _name_from_path(path: str, root: str) -> str:
    """Return a path as a name with /, relative to the folder if it is absolute and leads into it."""
    if path.startswith(_LOCAL_FILES):
        path = parse_qs(urlsplit(path).query).get("d", [path])[0]
    elif path.startswith(_UPLOADS):
        path = unquote(path.removeprefix(_UPLOADS))
    path = path.replace("\\", "/")
    path = path.removeprefix(root.replace("\\", "/").rstrip("/") + "/")
    return posixpath.normpath(path) if ".." not in path.split("/") else path


def _candidates(name: str, folders: tuple[str, ...]) -> list[str]:
    """Return the names that an image may have: in each folder, and without the folders of a server."""
    names = [posixpath.join(folder, name) for folder in folders]
    if len(folders) > 1 and "/" in name:
        names += [posixpath.join(folder, posixpath.basename(name)) for folder in folders]
    return names


def _drop_repeated(manifest: Manifest, rows: Sequence[Row], warnings: list[str]) -> list[Row]:
    """Keep the first of equal rows."""
    first: dict[str, Row] = {}
    repeated = []
    for row in rows:
        before = first.setdefault(row.image, row)
        if before is row:
            continue
        for what, one, other in (("labels", before.label, row.label), ("splits", before.split, row.split)):
            if one != other:
                raise DataError(
                    f"{manifest.path}: {row.image} has two {what}, {one!r} in {before.place} and {other!r} in "
                    f"{row.place}; expected one, remove the other"
                )
        repeated.append(row)
    if repeated:
        warnings.append(
            f"{manifest.path}: {len(repeated)} rows repeat an image and are left out (the first is "
            f"{repeated[0].image} in {repeated[0].place})"
        )
    return list(first.values())


def _find_splits(manifest: Manifest, rows: Sequence[Row]) -> tuple[tuple[Split | None, ...], dict[Split, str]]:
    """Return the split of each row, and split → how the manifest calls it."""
    values = [row.split for row in rows]
    if values[0] is None:
        folders = [row.image.partition("/")[0] for row in rows]
        if "train" not in map(split_from_name, folders) or None in map(split_from_name, folders):
            return (None,) * len(rows), {}
        values = [*folders]
    splits: list[Split | None] = []
    origins: dict[Split, str] = {}
    for row, value in zip(rows, values, strict=True):
        split = split_from_name(value or "")
        if split is None:
            known = Counter(filter(None, values)).most_common(5)
            raise DataError(
                f"{manifest.path}: {row.place} has the split {value!r}; expected train, val or test, or one of their "
                f"other usual names, in every row (found {', '.join(repr(name) for name, _ in known) or 'none'})"
            )
        splits.append(split)
        origins.setdefault(split, (value or "").strip())
    return tuple(splits), origins
