"""What people should know about their images before they train: counted, with an example of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from clf_runtime.labeled.images import Split
from clf_runtime.preprocess import UInt8Array
from clf_runtime.spec import Preprocess
from clf_train.data.dataset import Dataset, FileImageSet, ImageSet
from clf_train.data.facts import HASH_BITS, ImageFacts

FindingKind = Literal[
    "data",
    "imbalance",
    "few-images",
    "duplicates",
    "near-duplicates",
    "shared-groups",
    "damaged-exif",
    "tiny",
    "huge",
    "elongated",
]

_IMBALANCE = 10  # times as many training images
_FEW_IMAGES = 10  # of a class, to train on
_MAX_DIFFERENT_BITS = 25  # see clf_train.data.facts
_MAX_PAIRS = 2_000_000_000  # of images to compare: 10 s on 2 cores
_PAIRS_AT_ONCE = 10_000_000
_TINY = 4  # times enlarged
_HUGE_PIXELS = 50_000_000
_ELONGATED = 4  # times as long as wide
_LOSSES = {
    "crop": "; --resize crop cuts most of them off, --resize pad keeps everything",
    "squash": "; --resize squash distorts them, --resize pad does not",
    "pad": "",
}


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Attributes:
        kind: Which.
        message: One line for the user.
        count: Of the images, or of the classes.
        examples: The names of all images, or classes.
    """

    kind: FindingKind
    message: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class ClassCounts:
    """How many images of a class each split has."""

    label: str
    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class NearDuplicate:
    """An image of the test or validation split, and the training image that it resembles most."""

    name: str
    training_name: str
    different_bits: int  # of 256; 0 also for files that are equal byte for byte


@dataclass(frozen=True)
class DataFindings:
    """What was found in a data set.

    Attributes:
        counts: The images of each class.
        origins: Split → the part of the data that it is, if the data has parts of its own.
        near_duplicates: Test images that training images resemble, then validation images that do.
        findings: What people should know.
    """

    counts: tuple[ClassCounts, ...]
    origins: Mapping[Split, str]
    near_duplicates: tuple[NearDuplicate, ...]
    findings: tuple[Finding, ...]


def analyze_dataset(dataset: Dataset, facts: Sequence[ImageFacts], preprocess: Preprocess) -> DataFindings:
    """Find what people should know about a data set.

    Args:
        dataset: its readable images.
        facts: those of its splits; without images for a data set that is no files.
        preprocess: the input of the network.
    """
    counts = count_classes(dataset)
    findings = [Finding("data", warning, 1, ()) for warning in dataset.warnings]
    findings += _check_balance(counts)
    near: list[NearDuplicate] = []
    if isinstance(dataset.train, FileImageSet):
        test, validation = (
            _find_near_duplicates(dataset.train, facts[0], images, facts[split])
            for images, split in ((dataset.test, 2), (dataset.validation, 1))
        )
        near = test + validation
        findings += [*_describe_duplicates(dataset, test), *_find_shared_groups(dataset)]
        findings += _check_files(dataset, facts, preprocess)
    return DataFindings(counts, dataset.origins, tuple(near), tuple(findings))


def count_classes(dataset: Dataset) -> tuple[ClassCounts, ...]:
    """Count the images of each class in each split."""
    columns = (np.bincount(split.targets, minlength=len(dataset.labels)).tolist() for split in dataset.splits)
    return tuple(ClassCounts(*row) for row in zip(dataset.labels, *columns, strict=True))


def _check_balance(counts: Sequence[ClassCounts]) -> Iterator[Finding]:
    smallest, largest = min(counts, key=lambda row: row.train), max(counts, key=lambda row: row.train)
    if largest.train >= _IMBALANCE * smallest.train:
        yield Finding(
            "imbalance",
            f"the classes are unbalanced: {largest.label!r} has {largest.train:,} training images, {smallest.label!r} "
            f"has {smallest.train:,}; look at the accuracy of each class, not only at the whole",
            2,
            (largest.label, smallest.label),
        )
    few = [row for row in counts if row.train < _FEW_IMAGES]
    if few:
        yield Finding(
            "few-images",
            f"{_count(len(few), 'class has', 'classes have')} fewer than {_FEW_IMAGES} training images (the first is "
            f"{few[0].label!r} with {few[0].train})",
            len(few),
            tuple(row.label for row in few),
        )


def _find_near_duplicates(
    train: ImageSet, train_facts: ImageFacts, images: ImageSet, facts: ImageFacts
) -> list[NearDuplicate]:
    """Find the images that a training image resembles, or equals byte for byte."""
    equal = {digest: name for name, digest in zip(train.names, train.digests, strict=True)}
    nearest, distances = _find_nearest(train_facts.hashes, facts.hashes)
    found = []
    for index, (name, digest) in enumerate(zip(images.names, images.digests, strict=True)):
        if digest in equal:
            found.append(NearDuplicate(name, equal[digest], 0))
        elif distances[index] <= _MAX_DIFFERENT_BITS:
            found.append(NearDuplicate(name, train.names[nearest[index]], int(distances[index])))
    return found


def _find_nearest(train: UInt8Array, others: UInt8Array) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Return the nearest training hash of each hash, and the number of bits by which they differ.

    All are compared, as a product of matrices. If there are too many, nothing is near.
    """
    nearest, distances = np.zeros(len(others), np.intp), np.full(len(others), HASH_BITS, np.int64)
    if not 0 < len(train) * len(others) <= _MAX_PAIRS:
        return nearest, distances
    signs = _signs(train).T
    step = max(1, _PAIRS_AT_ONCE // len(train))
    for start in range(0, len(others), step):
        # Equal bits minus different ones.
        agreement = _signs(others[start : start + step]) @ signs
        best = agreement.argmax(axis=1)
        nearest[start : start + step] = best
        distances[start : start + step] = (HASH_BITS - agreement[np.arange(len(best)), best]) // 2
    return nearest, distances


def _signs(hashes: UInt8Array) -> npt.NDArray[np.float32]:
    return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1


def _describe_duplicates(dataset: Dataset, found: Sequence[NearDuplicate]) -> Iterator[Finding]:
    duplicates = set(dataset.find_duplicates())
    total = len(dataset.test)
    kinds: tuple[tuple[FindingKind, bool, str, str], ...] = (
        ("duplicates", True, "are training images too", ""),
        ("near-duplicates", False, "nearly equal training images", "; --group-by keeps such images in one split"),
    )
    for kind, selected, what, remedy in kinds:
        pairs = [pair for pair in found if (pair.name in duplicates) == selected]
        if pairs:
            yield Finding(
                kind,
                f"{len(pairs):,} of {total:,} test images {what} (the first is {pairs[0].name}, like "
                f"{pairs[0].training_name}), so the accuracy is too high{remedy}",
                len(pairs),
                tuple(pair.name for pair in pairs),
            )


def _find_shared_groups(dataset: Dataset) -> Iterator[Finding]:
    """Find test images whose group has training images; only parts of the data itself can cause that."""
    training = set(dataset.train.groups)
    names = [name for name, group in zip(dataset.test.names, dataset.test.groups, strict=True) if group in training]
    if names:
        yield Finding(
            "shared-groups",
            f"{len(names):,} of {len(dataset.test):,} test images are of a group that also has training images (the "
            f"first is {names[0]}), so the accuracy may be too high; the splits of the data itself are kept",
            len(names),
            tuple(names),
        )


def _check_files(dataset: Dataset, facts: Sequence[ImageFacts], preprocess: Preprocess) -> Iterator[Finding]:
    names = [name for split in dataset.splits for name in split.names]
    sizes = np.concatenate([part.sizes for part in facts]).astype(np.int64)
    short, long = sizes.min(axis=1), sizes.max(axis=1)
    side = min(preprocess.height, preprocess.width)
    checks: tuple[tuple[FindingKind, npt.NDArray[np.bool_], str], ...] = (
        (
            "damaged-exif",
            np.concatenate([part.has_damaged_exif for part in facts]),
            "have damaged EXIF data, so they may be turned the wrong way",
        ),
        (
            "tiny",
            # Where most images are small, none is unusual.
            (short * _TINY < side) & (2 * short <= np.median(short)),
            f"are enlarged more than {_TINY} times to the input's {side} pixels",
        ),
        (
            "huge",
            sizes.prod(axis=1) > _HUGE_PIXELS,
            f"have more than {_HUGE_PIXELS // 1_000_000} megapixels, which makes decoding slow",
        ),
        (
            "elongated",
            long > _ELONGATED * short,
            f"are more than {_ELONGATED} times as long as wide" + _LOSSES[preprocess.resize],
        ),
    )
    for kind, is_found, what in checks:
        indices = np.flatnonzero(is_found).tolist()
        if indices:
            width, height = sizes[indices[0]].tolist()
            yield Finding(
                kind,
                f"{len(indices):,} of {len(names):,} images {what} (the first is {names[indices[0]]}, {width} x "
                f"{height})",
                len(indices),
                tuple(names[index] for index in indices),
            )


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"
