"""The images of an export: the same test split that training had, and some of its other images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from clf_runtime import artifacts
from clf_runtime.errors import DataError
from clf_runtime.preprocess import UInt8Array
from clf_runtime.spec import ModelSpec, Preprocess
from clf_train.config import load_dataset
from clf_train.data.cache import Shard, choose_cache
from clf_train.data.dataset import Dataset, ImageSet, Int64Array, interleave_classes, raise_if_unreadable
from clf_train.data.loading import decode_dataset, select_readable
from clf_train.provenance import restore_source

_CALIBRATION_IMAGES = 128
_SEARCH_IMAGES = 1000
# With fewer images than this the accuracy is too imprecise, and the test split is used instead.
_MIN_SEARCH_IMAGES = 50


@dataclass(frozen=True)
class SearchImages:
    """Images to compare quantization configs on: not those of the parity check, where there are enough others."""

    pixels: UInt8Array  # (N, H, W, C)
    targets: Int64Array  # (N,)


@dataclass(frozen=True)
class TestSplit:
    """The data set that a model was trained on, with its test split decoded."""

    dataset: Dataset
    all_images: Shard  # the test split
    preprocess: Preprocess

    @cached_property
    def calibration(self) -> UInt8Array:
        """Some training images, the classes in turn, uint8 (N, H, W, C)."""
        return _decode_some(self.dataset.train, self.preprocess, _CALIBRATION_IMAGES).pixels

    @cached_property
    def search_images(self) -> SearchImages:
        """Images that neither training nor calibration saw: the validation split, unless it is too small."""
        validation = self.dataset.validation
        images = validation if len(validation) >= _MIN_SEARCH_IMAGES else self.dataset.test
        return _decode_some(images, self.preprocess, _SEARCH_IMAGES)


def find_test_split(folder: Path, spec: ModelSpec, data: str | None, data_root: str | None) -> TestSplit:
    """Load the data of a training and decode its test split.

    Args:
        folder: the artifacts folder.
        spec: the model's, with the provenance of its data.
        data: the name of a data set, or a folder, an archive or a manifest, in place of the one that training used.
        data_root: the folder of named data sets, in place of the one that training used.

    Raises:
        InvalidModelError: the provenance names columns that do not exist.
        DataError: the images are missing, cannot be read, or are not those of the training.
    """
    provenance = spec.provenance
    name = data or (provenance.data if provenance else None)
    if provenance is None or name is None:
        raise DataError(
            "model.json: names no data, and the parity check needs labeled images; add --data NAME or --data DIR"
        )
    source = restore_source(provenance, name, data_root)
    try:
        dataset = load_dataset(source)
    except DataError as error:
        raise DataError(f"{error}; if the images of the training have moved, add --data") from None
    split = _decode_test_split(dataset, spec.preprocess, folder)
    _raise_if_changed(source.data, split.dataset, spec)
    return split


def _decode_test_split(dataset: Dataset, preprocess: Preprocess, folder: Path) -> TestSplit:
    nothing = dataset.train.subset([])
    cache = choose_cache(len(dataset.test), preprocess.shape, folder)
    loaded = decode_dataset(replace(dataset, train=nothing, validation=nothing), preprocess, cache)
    # Images that training skipped as unreadable are skipped here too.
    if not (folder / artifacts.UNREADABLE).is_file():
        raise_if_unreadable(loaded.unreadable, len(dataset.test))
    return TestSplit(replace(dataset, test=loaded.dataset.test), loaded.test, preprocess)


def _raise_if_changed(name: str, dataset: Dataset, spec: ModelSpec) -> None:
    """Raise DataError where these are not the images of the training, or not its classes."""
    fingerprint = spec.provenance.fingerprint if spec.provenance else None
    if fingerprint is not None and dataset.test.fingerprint() != fingerprint:
        raise DataError(
            f"{name}: its test split is not that of the training ({len(dataset.test):,} images found, changed "
            "since), so a parity check would compare the wrong images; restore them, or train again"
        )
    if fingerprint is None and dataset.labels != spec.labels:
        raise DataError(f"{name}: its classes are {list(dataset.labels)}; expected the model's, {list(spec.labels)}")


def _decode_some(images: ImageSet, preprocess: Preprocess, count: int) -> SearchImages:
    """Decode `count` images, the classes in turn, without those that cannot be read."""
    readable = select_readable(images.subset(sorted(interleave_classes(images.targets, count))), preprocess)
    pixels = readable.decode(preprocess) if len(readable) else np.empty((0, *preprocess.shape), np.uint8)
    return SearchImages(pixels, readable.targets)
