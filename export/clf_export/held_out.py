"""The pictures that an export is proven with: the very ones that were held out in training, and some trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from clf_runtime import artifacts
from clf_runtime.errors import DataRefused
from clf_runtime.preprocess import UInt8Array
from clf_runtime.spec import ModelSpec, Preprocess
from clf_train.dataset import Dataset, Int64Array, Pictures, in_turns, refuse_unreadable
from clf_train.loading import load, readable
from clf_train.order import Order, dataset_for
from clf_train.pixels import Part, place_for

_CALIBRATION = 128
_JUDGED = 1000
# Below this an accuracy says too little; the pictures that are reported on have to do.
_FEWEST_JUDGED = 50


@dataclass(frozen=True)
class Judging:
    """Pictures to choose between several ways by: those that the proof is not about, where there are enough."""

    pixels: UInt8Array  # (N, H, W, C)
    targets: Int64Array  # (N,)


@dataclass(frozen=True)
class HeldOut:
    """A training's data set, found again."""

    dataset: Dataset
    whole: Part  # its test part, decoded
    how: Preprocess

    @cached_property
    def calibration(self) -> UInt8Array:
        """Some pictures that were trained on, the classes in turn, uint8 (N, H, W, C)."""
        return _some(self.dataset.train, self.how, _CALIBRATION)[0]

    @cached_property
    def judging(self) -> Judging:
        """Pictures that neither the training nor a calibration saw."""
        validation = self.dataset.validation
        part = validation if len(validation) >= _FEWEST_JUDGED else self.dataset.test
        return Judging(*_some(part, self.how, _JUDGED))


def held_out(folder: Path, spec: ModelSpec, data: str | None, data_root: str | None) -> HeldOut:
    """Find and decode what was held out when the model in `folder` was trained. Raises DataRefused."""
    origin = spec.provenance
    wanted = data or (origin.data if origin else None)
    if origin is None or wanted is None:
        raise DataRefused(
            "model.json: names no data, so there is nothing to prove the export with; say --data with labelled pictures"
        )
    order = Order(
        data=wanted,
        data_root=data_root or origin.data_root or "data",
        held_out=origin.held_out,
        seed=origin.seed,
    )
    try:
        dataset = dataset_for(order)
    except DataRefused as refusal:
        raise DataRefused(f"{refusal}; --data says where the pictures of the training are") from None
    found = _decoded(dataset, spec.preprocess, folder)
    _refuse_changed(order.data, found.dataset, spec)
    return found


def _decoded(dataset: Dataset, how: Preprocess, folder: Path) -> HeldOut:
    nothing = dataset.train.subset([])
    place = place_for(len(dataset.test), how.shape, folder)
    loaded = load(replace(dataset, train=nothing, validation=nothing), how, place, folder)
    # What the training left out, if it left out any, is left out here too.
    if not (folder / artifacts.UNREADABLE).is_file():
        refuse_unreadable(loaded.unreadable, len(dataset.test))
    return HeldOut(replace(dataset, test=loaded.dataset.test), loaded.test, how)


def _refuse_changed(data: str, dataset: Dataset, spec: ModelSpec) -> None:
    """Raise DataRefused where these are not the pictures of the training, or not its classes."""
    fingerprint = spec.provenance.fingerprint if spec.provenance else None
    if fingerprint is not None and dataset.test.fingerprint() != fingerprint:
        raise DataRefused(
            f"{data}: its held-out pictures are not those of the training ({len(dataset.test):,} found, "
            "changed since), so a proof would be about something else; restore them, or train again"
        )
    if fingerprint is None and dataset.labels != spec.labels:
        raise DataRefused(f"{data}: its classes are {list(dataset.labels)}; expected the model's, {list(spec.labels)}")


def _some(pictures: Pictures, how: Preprocess, count: int) -> tuple[UInt8Array, Int64Array]:
    """Decode some of the pictures, the classes in turn; what cannot be read is passed over."""
    chosen = readable(pictures.subset(sorted(in_turns(pictures.targets, count))), how)
    return chosen.decoded(how) if len(chosen) else np.empty((0, *how.shape), np.uint8), chosen.targets
