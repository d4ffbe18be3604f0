"""A folder of pictures: a folder per class, with or without train/ and test/ above them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from clf_runtime.errors import DataRefused
from clf_runtime.preprocess import FORMATS, SUFFIXES
from clf_runtime.spec import Color
from clf_train.dataset import Dataset, FilePictures, held_out, with_validation

_TRAIN = ("train", "training")
_VALIDATION = ("val", "valid", "validation")
_TEST = ("test", "testing")

_SURVEYED = 256  # pictures whose headers decide on size and colour
_GRAY_MODES = frozenset(("1", "L", "LA", "I;16", "I;16B", "I"))


def load(root: Path, held_out_share: float, seed: int) -> Dataset:
    """Find the pictures of a folder and split them. Raises DataRefused."""
    if not root.is_dir():
        found = "is no folder" if root.exists() else "no such folder, and no data set of this name"
        raise DataRefused(f"{root}: {found}; expected a folder with a folder of pictures for each class")
    train, validation, test = (_part(root, names) for names in (_TRAIN, _VALIDATION, _TEST))
    if train is None:
        return _split_by_seed(root, held_out_share, seed)
    if test is None:
        test, validation = validation, None
    if test is None:
        return _split_by_seed(train, held_out_share, seed)
    labels, rest = _pictures(root, train)
    kept = _same_classes(root, test, labels)
    if validation is not None:
        return Dataset(labels, rest, _same_classes(root, validation, labels), kept, test.name)
    return with_validation(labels, rest, kept, test.name, seed)


def survey(pictures: FilePictures) -> tuple[int, Color]:
    """Give the median of the shorter sides, in pixels, and whether the pictures have colour.

    Looks at headers only, of at most 256 pictures spread over all.
    """
    sides, gray = [], True
    for index in np.unique(np.linspace(0, len(pictures) - 1, _SURVEYED).astype(int)):
        try:
            with Image.open(pictures.path(int(index)), formats=FORMATS) as image:
                sides.append(min(image.size))
                gray = gray and image.mode in _GRAY_MODES
        except OSError:
            continue  # decoding will name it
    return (int(np.median(sides)) if sides else 1), ("L" if gray and sides else "RGB")


def _split_by_seed(root: Path, held_out_share: float, seed: int) -> Dataset:
    labels, pictures = _pictures(root, root)
    counts = Counter(pictures.targets.tolist())
    for target, label in enumerate(labels):
        if counts[target] < 2:
            raise DataRefused(
                f"{root / label}: it has 1 picture; expected 2 at least, one to train on and one to hold out"
            )
    rest, test = held_out(pictures, held_out_share, seed, "test", smallest=2)
    return with_validation(labels, rest, test, f"held-out {held_out_share:.0%}", seed)


def _part(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _same_classes(root: Path, folder: Path, labels: tuple[str, ...]) -> FilePictures:
    found, pictures = _pictures(root, folder)
    if found != labels:
        missing, unknown = sorted(set(labels) - set(found)), sorted(set(found) - set(labels))
        difference = [f"has no {label!r}" for label in missing] + [f"has {label!r}" for label in unknown]
        raise DataRefused(f"{folder}: its classes differ from those trained on: it {', '.join(difference[:5])}")
    return pictures


def _pictures(root: Path, folder: Path) -> tuple[tuple[str, ...], FilePictures]:
    """Give the class names, in the order of their characters on every machine, and their pictures."""
    names: list[str] = []
    targets: list[int] = []
    labels = _class_names(folder)
    for target, label in enumerate(labels):
        files = sorted(_files(folder / label, root))
        if not files:
            raise DataRefused(f"{folder / label}: it has no pictures; add some, or remove the folder")
        names += files
        targets += [target] * len(files)
    return labels, FilePictures(root, names, np.asarray(targets, dtype=np.int64))


def _class_names(folder: Path) -> tuple[str, ...]:
    labels = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not labels:
        found = "it has pictures, but no class folders" if any(_files(folder, folder)) else "it is empty"
        raise DataRefused(f"{folder}: {found}; expected a folder of pictures for each class")
    if len(labels) == 1:
        raise DataRefused(f"{folder}: it has one class, {labels[0]!r}; expected two or more")
    lowered = Counter(label.casefold() for label in labels)
    twins = [label for label in labels if lowered[label.casefold()] > 1]
    if twins:
        raise DataRefused(f"{folder}: the classes {' and '.join(twins)} differ only in case; give them other names")
    return tuple(labels)


def _files(folder: Path, root: Path) -> list[str]:
    """Picture files at any depth, relative to `root`, with / on every system; linked folders are passed over."""
    prefix = folder.relative_to(root).as_posix() + "/" if folder != root else ""
    return [prefix + name for name in _inside(str(folder))]


def _inside(folder: str) -> Iterator[str]:
    # Not Path.rglob: it asks the system of each file what the folder's listing has said already.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                for name in _inside(entry.path):
                    yield f"{entry.name}/{name}"
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():  # noqa: PTH122 (10 times)
                yield entry.name
