"""A folder of images: a folder per class, with or without train/ and test/ above them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from clf_runtime.errors import DataError
from clf_runtime.preprocess import FORMATS, SUFFIXES
from clf_runtime.spec import Color
from clf_train.data.dataset import Dataset, FileImageSet, split_off, split_validation

_TRAIN = ("train", "training")
_VALIDATION = ("val", "valid", "validation")
_TEST = ("test", "testing")

_SURVEYED = 256  # images whose headers decide on size and colour
_GRAY_MODES = frozenset(("1", "L", "LA", "I;16", "I;16B", "I"))


def load(root: Path, test_share: float, seed: int) -> Dataset:
    """Find the images of a folder and split them. Raises DataError."""
    if not root.is_dir():
        found = "is no folder" if root.exists() else "no such folder, and no data set of this name"
        raise DataError(f"{root}: {found}; expected a folder with a folder of images for each class")
    train, validation, test = (_part(root, names) for names in (_TRAIN, _VALIDATION, _TEST))
    if train is None:
        return _split_by_seed(root, test_share, seed)
    if test is None:
        test, validation = validation, None
    if test is None:
        return _split_by_seed(train, test_share, seed)
    labels, rest = _images(root, train)
    kept = _same_classes(root, test, labels)
    if validation is not None:
        return Dataset(labels, rest, _same_classes(root, validation, labels), kept, test.name)
    return split_validation(labels, rest, kept, test.name, seed)


def survey(images: FileImageSet) -> tuple[int, Color]:
    """Give the median of the shorter sides, in pixels, and whether the images have colour.

    Looks at headers only, of at most 256 images spread over all.
    """
    sides, gray = [], True
    for index in np.unique(np.linspace(0, len(images) - 1, _SURVEYED).astype(int)):
        try:
            with Image.open(images.path(int(index)), formats=FORMATS) as image:
                sides.append(min(image.size))
                gray = gray and image.mode in _GRAY_MODES
        except OSError:
            continue  # decoding will name it
    return (int(np.median(sides)) if sides else 1), ("L" if gray and sides else "RGB")


def _split_by_seed(root: Path, test_share: float, seed: int) -> Dataset:
    labels, images = _images(root, root)
    counts = Counter(images.targets.tolist())
    for target, label in enumerate(labels):
        if counts[target] < 2:
            raise DataError(f"{root / label}: it has 1 image; expected 2 at least, one to train on and one to hold out")
    rest, test = split_off(images, test_share, seed, "test", smallest=2)
    return split_validation(labels, rest, test, f"held-out {test_share:.0%}", seed)


def _part(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _same_classes(root: Path, folder: Path, labels: tuple[str, ...]) -> FileImageSet:
    found, images = _images(root, folder)
    if found != labels:
        missing, unknown = sorted(set(labels) - set(found)), sorted(set(found) - set(labels))
        difference = [f"has no {label!r}" for label in missing] + [f"has {label!r}" for label in unknown]
        raise DataError(f"{folder}: its classes differ from those trained on: it {', '.join(difference[:5])}")
    return images


def _images(root: Path, folder: Path) -> tuple[tuple[str, ...], FileImageSet]:
    """Give the class names, in the order of their characters on every machine, and their images."""
    names: list[str] = []
    targets: list[int] = []
    labels = _class_names(folder)
    for target, label in enumerate(labels):
        files = sorted(_files(folder / label, root))
        if not files:
            raise DataError(f"{folder / label}: it has no images; add some, or remove the folder")
        names += files
        targets += [target] * len(files)
    return labels, FileImageSet(root, names, np.asarray(targets, dtype=np.int64))


def _class_names(folder: Path) -> tuple[str, ...]:
    labels = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not labels:
        found = "it has images, but no class folders" if any(_files(folder, folder)) else "it is empty"
        raise DataError(f"{folder}: {found}; expected a folder of images for each class")
    if len(labels) == 1:
        raise DataError(f"{folder}: it has one class, {labels[0]!r}; expected two or more")
    lowered = Counter(label.casefold() for label in labels)
    twins = [label for label in labels if lowered[label.casefold()] > 1]
    if twins:
        raise DataError(f"{folder}: the classes {' and '.join(twins)} differ only in case; give them other names")
    return tuple(labels)


def _files(folder: Path, root: Path) -> list[str]:
    """Image files at any depth, relative to `root`, with / on every system; linked folders are passed over."""
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
