"""Labeled images in folders, archives, manifests and shards, and what is used as which split."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from clf_runtime.errors import DataError, ImageError
from clf_runtime.image_files import FORMATS
from clf_runtime.labeled import Columns, ImageFile, LabeledImages, Split, find_labeled_images
from clf_runtime.labeled.members import Member
from clf_runtime.preprocess import pixels_from_image
from clf_runtime.spec import Color, Preprocess
from clf_train.data.dataset import Dataset, FileImageSet, split_off, split_validation
from clf_train.data.files import ImageRoot

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


def load(source: Path, test_split: float, seed: int, columns: Columns = Columns()) -> Dataset:  # noqa: B008 (frozen)
    """Find labeled images and split them.

    Args:
        source: a folder, an archive, a manifest or shards.
        test_split: the share of the test split, if the data has none of its own.
        seed: of the splits.
        columns: of a manifest, and how images are grouped.

    Raises:
        DataError: the data cannot be used.
        UsageError: the columns do not apply to it.
        MachineError: a package for its format is missing.
    """
    found = find_labeled_images(source, columns)
    labels = found.class_names
    _raise_if_unusable_classes(source, labels)
    images = _image_set(found, labels)
    parts = {split: _select(images, found, split) for split in found.origins}
    test_part: Split = "test" if "test" in parts else "validation"
    if "train" not in parts and parts:
        raise DataError(f"{source}: has no training images, only {' and '.join(found.origins.values())}; add some")
    warnings = found.warnings
    if test_part not in parts:
        dataset = _split_by_seed(source, images, labels, test_split, seed)
    else:
        warnings += tuple(_compare_classes(source, found))
        train, test, test_name = parts["train"], parts[test_part], found.origins[test_part]
        if test_part == "test" and "validation" in parts:
            dataset = Dataset(labels, train, parts["validation"], test, test_name)
        else:
            dataset = split_validation(labels, train, test, test_name, seed)
    return replace(dataset, origins=_name_origins(found), warnings=warnings)


def survey_images(images: FileImageSet) -> ImageProperties:
    """Return the typical size and color of images, from the headers of at most 256 of them, spread over all."""
    sides, is_gray, has_many_colors = [], True, []
    for number, index in enumerate(np.unique(np.linspace(0, len(images) - 1, _SURVEYED_IMAGES).astype(int))):
        try:
            with _open(images.file(int(index))) as image:
                sides.append(min(image.size))
                is_gray = is_gray and image.mode in _GRAY_MODES
        except (OSError, ImageError):
            continue  # decoding reports it
        if number % _SURVEYED_IMAGES_PER_COUNT == 0 and not is_gray and sides[-1] <= _MAX_ICON_SIDE:
            has_many_colors.append(_has_many_colors(images.file(int(index))))
    if not sides:
        return ImageProperties(1, "RGB")
    side = int(np.median(sides))
    is_photo = side > _MAX_ICON_SIDE or (not is_gray and 2 * sum(has_many_colors) > len(has_many_colors))
    return ImageProperties(side, "L" if is_gray else "RGB", is_photo)


def _has_many_colors(file: ImageFile) -> bool:
    """Return whether a small image has as many colors as a photo: a third of its pixels. Drawings have a few colors."""
    try:
        pixels = pixels_from_image(file.read() if isinstance(file, Member) else file, _COLOR_COUNT)
    except ImageError:
        return False
    return bool(len(np.unique(pixels.reshape(-1, 3), axis=0)) > pixels.shape[0] * pixels.shape[1] // 3)


def _open(file: ImageFile) -> Image.Image:
    return Image.open(io.BytesIO(file.read()) if isinstance(file, Member) else file, formats=FORMATS)


def _image_set(found: LabeledImages, labels: tuple[str, ...]) -> FileImageSet:
    target_of = {label: target for target, label in enumerate(labels)}
    targets = np.asarray([target_of[label] for label in found.labels], dtype=np.int64)
    return FileImageSet(ImageRoot(found.root, found.archive, found.shards), found.names, targets, found.groups)


def _select(images: FileImageSet, found: LabeledImages, split: Split) -> FileImageSet:
    return images.subset([index for index, of_image in enumerate(found.splits) if of_image == split])


def _name_origins(found: LabeledImages) -> dict[Split, str]:
    """Return the parts of the data by what they are used as: a validation part is the test split if there is none."""
    origins = dict(found.origins)
    if "test" not in origins and "validation" in origins:
        origins["test"] = origins.pop("validation")
    return {split: origins[split] for split in ("train", "validation", "test") if split in origins}


def _split_by_seed(
    source: Path, images: FileImageSet, labels: tuple[str, ...], test_split: float, seed: int
) -> Dataset:
    _raise_if_not_splittable(source, images, labels)
    rest, test = split_off(images, test_split, seed, "test", smallest=2)
    return split_validation(labels, rest, test, f"test {test_split:.0%}", seed)


def _raise_if_unusable_classes(source: Path, labels: tuple[str, ...]) -> None:
    if len(labels) == 1:
        raise DataError(f"{source}: has one class, {labels[0]!r}; expected two or more")
    folded = Counter(label.casefold() for label in labels)
    similar = [label for label in labels if folded[label.casefold()] > 1]
    if similar:
        raise DataError(f"{source}: the classes {' and '.join(similar[:4])} differ only in case; rename one of them")


def _raise_if_not_splittable(source: Path, images: FileImageSet, labels: tuple[str, ...]) -> None:
    counts = Counter(images.targets.tolist())
    groups = Counter(target for target, _ in set(zip(images.targets.tolist(), images.groups, strict=True)))
    for target, label in enumerate(labels):
        if counts[target] < 2:
            raise DataError(
                f"{source}: class {label!r} has 1 image; expected at least 2, one for training and one for the test "
                "split"
            )
        if groups[target] < 2:
            raise DataError(
                f"{source}: class {label!r} has all of its {counts[target]:,} images in one group; expected at least 2 "
                "groups, one for training and one for the test split; change --group-by"
            )


def _compare_classes(source: Path, found: LabeledImages) -> list[str]:
    """Return a warning for each part of the data that lacks classes of the training part.

    Raises:
        DataError: a part has a class that the training part lacks.
    """
    classes: dict[Split | None, set[str]] = {}
    for split, label in zip(found.splits, found.labels, strict=True):
        classes.setdefault(split, set()).add(label)
    warnings = []
    for split, name in found.origins.items():
        missing, unknown = sorted(classes["train"] - classes[split]), sorted(classes[split] - classes["train"])
        difference = [f"has no {label!r}" for label in missing[:3]] + [f"has {label!r}" for label in unknown[:3]]
        if unknown:
            raise DataError(
                f"{source}: the classes of {name} differ from those of the training split: it {', '.join(difference)}"
            )
        if missing:
            warnings.append(f"{source}: {name} has no images of {len(missing)} classes (the first is {missing[0]!r})")
    return warnings
