"""A folder of images: one folder per class, with or without train/ and test/ above them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from clf_runtime.errors import DataError, ImageError
from clf_runtime.preprocess import FORMATS, SUFFIXES, pixels_from_image
from clf_runtime.spec import Color, Preprocess
from clf_train.data.dataset import Dataset, FileImageSet, split_off, split_validation

_TRAIN = ("train", "training")
_VALIDATION = ("val", "valid", "validation")
_TEST = ("test", "testing")

_SURVEYED_IMAGES = 256
_SURVEYED_IMAGES_PER_COUNT = 8  # of these, the colors of one are counted, since that decodes it
_MAX_ICON_SIDE = 64
_COLOR_COUNT = Preprocess("RGB", 32, 32, "crop", 1.0, "bilinear", (255, 255, 255))
_GRAY_MODES = frozenset(("1", "L", "LA", "I;16", "I;16B", "I"))


@dataclass(frozen=True)
class ImageProperties:
    """The typical size and color of a data set's images."""

    side: int  # pixels: the median of the shorter sides
    color: Color
    is_photo: bool = False  # larger than icons, letters and drawings, or with as many colors as a photo


def load(root: Path, test_split: float, seed: int) -> Dataset:
    """Find the images of a folder and split them.

    Args:
        root: the folder.
        test_split: the share of the test split, if the folder has none of its own.
        seed: of the splits.

    Raises:
        DataError: the folder cannot be used.
    """
    if not root.is_dir():
        found = "is not a folder" if root.exists() else "no such folder, and no data set of this name"
        raise DataError(f"{root}: {found}; expected a folder with a folder of images for each class")
    train, validation, test = (_find_split(root, names) for names in (_TRAIN, _VALIDATION, _TEST))
    if train is None:
        return _split_by_seed(root, test_split, seed)
    if test is None:
        test, validation = validation, None
    if test is None:
        return _split_by_seed(train, test_split, seed)
    labels, train_images = _find_images(root, train)
    test_images = _find_images_of_classes(root, test, labels)
    if validation is not None:
        return Dataset(labels, train_images, _find_images_of_classes(root, validation, labels), test_images, test.name)
    return split_validation(labels, train_images, test_images, test.name, seed)


def survey_images(images: FileImageSet) -> ImageProperties:
    """Return the typical size and color of images, from the headers of at most 256 of them, spread over all."""
    sides, is_gray, has_many_colors = [], True, []
    for number, index in enumerate(np.unique(np.linspace(0, len(images) - 1, _SURVEYED_IMAGES).astype(int))):
        try:
            with Image.open(images.path(int(index)), formats=FORMATS) as image:
                sides.append(min(image.size))
                is_gray = is_gray and image.mode in _GRAY_MODES
        except OSError:
            continue  # decoding reports it
        if number % _SURVEYED_IMAGES_PER_COUNT == 0 and not is_gray and sides[-1] <= _MAX_ICON_SIDE:
            has_many_colors.append(_has_many_colors(images.path(int(index))))
    if not sides:
        return ImageProperties(1, "RGB")
    side = int(np.median(sides))
    is_photo = side > _MAX_ICON_SIDE or (not is_gray and 2 * sum(has_many_colors) > len(has_many_colors))
    return ImageProperties(side, "L" if is_gray else "RGB", is_photo)


def _has_many_colors(path: str) -> bool:
    """Return whether a small image has as many colors as a photo: a third of its pixels. Drawings have a few colors."""
    try:
        pixels = pixels_from_image(path, _COLOR_COUNT)
    except ImageError:
        return False
    return bool(len(np.unique(pixels.reshape(-1, 3), axis=0)) > pixels.shape[0] * pixels.shape[1] // 3)


def _split_by_seed(root: Path, test_split: float, seed: int) -> Dataset:
    labels, images = _find_images(root, root)
    counts = Counter(images.targets.tolist())
    for target, label in enumerate(labels):
        if counts[target] < 2:
            raise DataError(
                f"{root / label}: has 1 image; expected at least 2, one for training and one for the test split"
            )
    rest, test = split_off(images, test_split, seed, "test", smallest=2)
    return split_validation(labels, rest, test, f"test {test_split:.0%}", seed)


def _find_split(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _find_images_of_classes(root: Path, folder: Path, labels: tuple[str, ...]) -> FileImageSet:
    found, images = _find_images(root, folder)
    if found != labels:
        missing, unknown = sorted(set(labels) - set(found)), sorted(set(found) - set(labels))
        difference = [f"has no {label!r}" for label in missing] + [f"has {label!r}" for label in unknown]
        raise DataError(
            f"{folder}: its classes differ from those of the training split: it {', '.join(difference[:5])}"
        )
    return images


def _find_images(root: Path, folder: Path) -> tuple[tuple[str, ...], FileImageSet]:
    """Return the class names, sorted by code point on every machine, and the images."""
    names: list[str] = []
    targets: list[int] = []
    labels = _find_class_names(folder)
    for target, label in enumerate(labels):
        files = sorted(_list_files(folder / label, root))
        if not files:
            raise DataError(f"{folder / label}: has no images; add some, or remove the folder")
        names += files
        targets += [target] * len(files)
    return labels, FileImageSet(root, names, np.asarray(targets, dtype=np.int64))


def _find_class_names(folder: Path) -> tuple[str, ...]:
    labels = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not labels:
        found = "has images, but no class folders" if any(_list_files(folder, folder)) else "is empty"
        raise DataError(f"{folder}: {found}; expected a folder of images for each class")
    if len(labels) == 1:
        raise DataError(f"{folder}: has one class, {labels[0]!r}; expected two or more")
    folded = Counter(label.casefold() for label in labels)
    similar = [label for label in labels if folded[label.casefold()] > 1]
    if similar:
        raise DataError(f"{folder}: the classes {' and '.join(similar)} differ only in case; rename one of them")
    return tuple(labels)


def _list_files(folder: Path, root: Path) -> list[str]:
    """List the image files at any depth, relative to `root`, with / on every system; ignores linked folders."""
    prefix = folder.relative_to(root).as_posix() + "/" if folder != root else ""
    return [prefix + name for name in _walk(str(folder))]


def _walk(folder: str) -> Iterator[str]:
    # Not Path.rglob: it asks the system about each file again, which the folder's listing has already answered.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                for name in _walk(entry.path):
                    yield f"{entry.name}/{name}"
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():  # noqa: PTH122 (10 times)
                yield entry.name
