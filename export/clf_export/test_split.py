"""The images that an export is proven with: the very ones that were held out in training, and some trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from clf_runtime import artifacts
from clf_runtime.errors import DataError
from clf_runtime.preprocess import UInt8Array
from clf_runtime.spec import ModelSpec, Preprocess
from clf_train.config import DataSource, load_dataset
from clf_train.data.cache import Shard, choose_cache
from clf_train.data.dataset import Dataset, ImageSet, Int64Array, interleave_classes, raise_if_unreadable
from clf_train.data.loading import decode_dataset, select_readable

_CALIBRATION = 128
_SEARCH_IMAGES = 1000
# Below this an accuracy says too little; the images that are reported on have to do.
_MIN_SEARCH_IMAGES = 50


@dataclass(frozen=True)
class SearchImages:
    """Images to choose between several ways by: those that the proof is not about, where there are enough."""

    pixels: UInt8Array  # (N, H, W, C)
    targets: Int64Array  # (N,)


@dataclass(frozen=True)
class TestSplit:
    """A training's data set, found again."""

    dataset: Dataset
    all_images: Shard  # its test part, decoded
    preprocess: Preprocess

    @cached_property
    def calibration(self) -> UInt8Array:
        """Some images that were trained on, the classes in turn, uint8 (N, H, W, C)."""
        return _some(self.dataset.train, self.preprocess, _CALIBRATION)[0]

    @cached_property
    def search_images(self) -> SearchImages:
        """Images that neither the training nor a calibration saw."""
        validation = self.dataset.validation
        part = validation if len(validation) >= _MIN_SEARCH_IMAGES else self.dataset.test
        return SearchImages(*_some(part, self.preprocess, _SEARCH_IMAGES))


def find_test_split(folder: Path, spec: ModelSpec, data: str | None, data_root: str | None) -> TestSplit:
    """Find and decode what was held out when the model in `folder` was trained. Raises DataError."""
    origin = spec.provenance
    wanted = data or (origin.data if origin else None)
    if origin is None or wanted is None:
        raise DataError(
            "model.json: names no data, so there is nothing to prove the export with; say --data with labelled images"
        )
    source = DataSource(
        data=wanted,
        data_root=data_root or origin.data_root or "data",
        test_split=origin.test_split,
        seed=origin.seed,
    )
    try:
        dataset = load_dataset(source)
    except DataError as refusal:
        raise DataError(f"{refusal}; --data says where the images of the training are") from None
    found = _decoded(dataset, spec.preprocess, folder)
    _refuse_changed(source.data, found.dataset, spec)
    return found


def _decoded(dataset: Dataset, preprocess: Preprocess, folder: Path) -> TestSplit:
    nothing = dataset.train.subset([])
    cache = choose_cache(len(dataset.test), preprocess.shape, folder)
    loaded = decode_dataset(replace(dataset, train=nothing, validation=nothing), preprocess, cache)
    # What the training left out, if it left out any, is left out here too.
    if not (folder / artifacts.UNREADABLE).is_file():
        raise_if_unreadable(loaded.unreadable, len(dataset.test))
    return TestSplit(replace(dataset, test=loaded.dataset.test), loaded.test, preprocess)


def _refuse_changed(data: str, dataset: Dataset, spec: ModelSpec) -> None:
    """Raise DataError where these are not the images of the training, or not its classes."""
    fingerprint = spec.provenance.fingerprint if spec.provenance else None
    if fingerprint is not None and dataset.test.fingerprint() != fingerprint:
        raise DataError(
            f"{data}: its held-out images are not those of the training ({len(dataset.test):,} found, "
            "changed since), so a proof would be about something else; restore them, or train again"
        )
    if fingerprint is None and dataset.labels != spec.labels:
        raise DataError(f"{data}: its classes are {list(dataset.labels)}; expected the model's, {list(spec.labels)}")


def _some(images: ImageSet, preprocess: Preprocess, count: int) -> tuple[UInt8Array, Int64Array]:
    """Decode some of the images, the classes in turn; what cannot be read is passed over."""
    chosen = select_readable(images.subset(sorted(interleave_classes(images.targets, count))), preprocess)
    return chosen.decode(preprocess) if len(chosen) else np.empty((0, *preprocess.shape), np.uint8), chosen.targets
