"""Class folders: a folder of images for each class, with or without train/, valid/ and test/ above them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from clf_runtime.errors import DataError
from clf_runtime.labeled.images import SPLIT_NAMES, LabeledImages, Split, split_from_name
from clf_runtime.labeled.members import Archive
from clf_runtime.labeled.tree import FolderTree, ImageTree, NameTree, prefix

_SHOWN = 3


@dataclass
class _Found:
    """The images that were found so far."""

    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[Split | None] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def find_in_folder(root: Path) -> LabeledImages:
    """Find the images of class folders.

    Raises:
        DataError: There are no class folders, or one of them has no images.
    """
    tree = FolderTree(root)
    found = _find(tree, root, "")
    if tree.broken_links:
        found.warnings.append(
            f"{len(tree.broken_links)} links lead nowhere and are left out (the first is {root / tree.broken_links[0]})"
        )
    return _images_from(found, root, find_split_folders(tree, ""))


def find_in_archive(archive: Archive, folders: list[str]) -> LabeledImages:
    """Find the images of class folders in an archive; `folders` are its folders, which may be empty.

    Raises:
        DataError: There are no class folders, or one of them has no images.
    """
    tree = NameTree([*archive.members, *(f"{folder}/" for folder in folders)])
    top = ""
    # Many archives have one folder around everything.
    while len(inner := tree.subfolders(top)) == 1 and not tree.has_direct_images(top) and _has_only_folders(tree, top):
        top = _join(top, inner[0])
    found = _find(tree, archive.path, top)
    # Without the outermost folder the names, and with them the splits, are those of the folder that was packed.
    start = len(prefix(top))
    found.names = [name[start:] for name in found.names]
    members = {name[start:]: member for name, member in archive.members.items()}
    return _images_from(found, archive.path, find_split_folders(tree, top), replace(archive, members=members))


def find_split_folders(tree: ImageTree, top: str) -> Mapping[Split, str]:
    """Return split → last name of its folder, if there is a training folder; otherwise nothing."""
    present = tree.subfolders(top)
    folders: dict[Split, str] = {}
    for split, names in SPLIT_NAMES.items():
        folder = next((name for name in names if name in present), None)
        if folder is not None:
            folders[split] = folder
    return folders if "train" in folders else {}


def _images_from(
    found: _Found, root: Path, origins: Mapping[Split, str], archive: Archive | None = None
) -> LabeledImages:
    return LabeledImages(
        root,
        tuple(found.names),
        tuple(found.labels),
        tuple(found.splits),
        origins=origins,
        warnings=tuple(found.warnings),
        archive=archive,
    )


def _find(tree: ImageTree, root: Path, top: str) -> _Found:
    found = _Found()
    folders = find_split_folders(tree, top)
    if not folders:
        _raise_if_only_split_names(tree, root, top)
        _add_classes(found, tree, root, top, None)
        return found
    for split, name in folders.items():
        _add_classes(found, tree, root, _join(top, name), split)
    ignored = [name for name in tree.subfolders(top) if name not in folders.values()]
    if ignored:
        found.warnings.append(
            f"{_display(root, top)}: beside {folders['train']}/, only {_list_names(folders.values())} are read; "
            f"ignored: {_list_names(ignored)}"
        )
    return found


def _raise_if_only_split_names(tree: ImageTree, root: Path, top: str) -> None:
    names = tree.subfolders(top)
    if names and all(split_from_name(name) in ("validation", "test") for name in names):
        raise DataError(
            f"{_display(root, top)}: has {_list_names(names)}, but no train/; rename the folder to train on to train, "
            "or name one of them"
        )


def _add_classes(found: _Found, tree: ImageTree, root: Path, folder: str, split: Split | None) -> None:
    labels = tree.subfolders(folder)
    place = _display(root, folder)
    if not labels:
        content = "has images, but no class folders" if tree.images(folder) else "is empty"
        raise DataError(f"{place}: {content}; expected a folder of images for each class, or a manifest of them")
    _raise_if_one_folder_above_the_classes(tree, place, folder, labels)
    for label in labels:
        names = tree.images(_join(folder, label))
        if not names:
            raise DataError(f"{place}/{label}: has no images; add some, or remove the folder")
        found.names += names
        found.labels += [label] * len(names)
        found.splits += [split] * len(names)
    if split in (None, "train"):
        _warn_of_nested_folders(found, tree, place, folder, labels)


def _raise_if_one_folder_above_the_classes(tree: ImageTree, place: str, folder: str, labels: list[str]) -> None:
    inner = tree.subfolders(_join(folder, labels[0])) if len(labels) == 1 else []
    if len(inner) > 1 and not tree.has_direct_images(_join(folder, labels[0])):
        raise DataError(
            f"{place}: has one folder, {labels[0]}, which has the folders {_list_names(inner)}; if those are the "
            f"classes, use {place}/{labels[0]}"
        )


def _warn_of_nested_folders(found: _Found, tree: ImageTree, place: str, folder: str, labels: list[str]) -> None:
    """Say what is a class if every class folder has only folders in it."""
    if any(tree.has_direct_images(_join(folder, label)) for label in labels):
        return
    inner = [f"{label}/{name}" for label in labels for name in tree.subfolders(_join(folder, label))]
    found.warnings.append(
        f"{place}: the classes are {_list_names(labels)}; the {len(inner)} folders in them ({_list_names(inner)}) "
        "are not classes. If they should be, move them up, or list the images in a manifest"
    )


def _has_only_folders(tree: ImageTree, top: str) -> bool:
    only = _join(top, tree.subfolders(top)[0])
    return bool(tree.subfolders(only)) and not tree.has_direct_images(only)


def _list_names(names: Collection[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _display(root: Path, folder: str) -> str:
    return os.path.join(root, folder) if folder else str(root)  # noqa: PTH118 (an archive is no folder)
