"""Compare two trained models on the test split that both have in common, in eager PyTorch and without training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clf_runtime import artifacts
from clf_runtime.errors import DataError
from clf_runtime.evaluation.statistics import mcnemar_p, wilson_interval
from clf_runtime.spec import ModelSpec, Provenance
from clf_train.config import load_dataset
from clf_train.data.cache import choose_cache
from clf_train.data.dataset import Dataset, raise_if_unreadable
from clf_train.data.loading import LoadedDataset, decode_dataset
from clf_train.engine.evaluate import compute_logits
from clf_train.models.saved import SavedModel, load_saved_model
from clf_train.provenance import restore_source

_Z = 1.96  # of a 95 % interval


@dataclass(frozen=True)
class CompareOptions:
    """What the user chooses about a comparison."""

    data: str | None = None  # the images of both trainings, if they have moved
    data_root: str | None = None  # the folder of named data sets, if it has moved
    trusted_factories: tuple[str, ...] = ()  # package.module:factory of foreign architectures


@dataclass(frozen=True)
class ComparedModel:
    """One of the two models."""

    folder: Path
    spec: ModelSpec
    predicted: tuple[str, ...]  # the label of each test image
    correct: int

    @property
    def name(self) -> str:
        """The artifacts folder, as the user named it."""
        return str(self.folder)


@dataclass(frozen=True)
class ChangedImage:
    """A test image that the two models label differently."""

    name: str
    label: str
    predicted: str  # by the model
    other_predicted: str  # by the model that it is compared with


@dataclass(frozen=True)
class ModelComparison:
    """How a model compares with another one on the same images."""

    model: ComparedModel
    other: ComparedModel
    images: int
    changed: tuple[ChangedImage, ...]

    @property
    def fixed(self) -> int:
        """How many images only the model labels correctly."""
        return sum(image.predicted == image.label for image in self.changed)

    @property
    def broken(self) -> int:
        """How many images only the other model labels correctly."""
        return sum(image.other_predicted == image.label for image in self.changed)

    @property
    def difference(self) -> float:
        """The accuracy of the model minus that of the other, -1..1."""
        return (self.fixed - self.broken) / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference (Agresti & Min 2005: half an image more in each cell of the table)."""
        discordant, images = self.fixed + self.broken + 1, self.images + 2
        center = (self.fixed - self.broken) / images
        half = _Z * math.sqrt(max(0.0, discordant / images - center * center) / images)
        return max(-1.0, center - half), min(1.0, center + half)

    @property
    def p_value(self) -> float:
        """The exact McNemar test: how likely such a difference is between equally good models."""
        return mcnemar_p(self.fixed, self.broken)

    def accuracy_interval(self, model: ComparedModel) -> tuple[float, float]:
        """Return the 95 % interval of one model's accuracy."""
        return wilson_interval(model.correct, self.images)


def compare_models(
    folder: Path,
    other_folder: Path,
    options: CompareOptions,
    on_decode: Callable[[int], object] = lambda images: None,
) -> ModelComparison:
    """Compare the model of a finished artifacts folder with that of another one.

    Raises:
        InvalidModelError: a model is missing or damaged, or its factory is not trusted.
        DataError: the models have other labels or test splits, or the images are not those of their training.
        MachineError, OSError: this machine cannot do it.
    """
    model, other = (load_saved_model(path, options.trusted_factories) for path in (folder, other_folder))
    provenance = _find_common_provenance(folder, other_folder, model.spec, other.spec)
    dataset = _load_test_split(provenance, options)
    loaded = _decode(dataset, model.spec, (folder, other_folder), on_decode)
    _raise_if_changed(loaded.dataset, provenance, model.spec)
    labels = tuple(loaded.dataset.labels[target] for target in loaded.test.targets)
    predicted = _predict(model, loaded)
    if other.spec.preprocess != model.spec.preprocess:
        loaded = _decode(dataset, other.spec, (folder, other_folder), on_decode)
    other_predicted = _predict(other, loaded)
    return ModelComparison(
        _build_compared(folder, model.spec, predicted, labels),
        _build_compared(other_folder, other.spec, other_predicted, labels),
        len(labels),
        tuple(
            ChangedImage(*changed)
            for changed in zip(loaded.dataset.test.names, labels, predicted, other_predicted, strict=True)
            if changed[2] != changed[3]
        ),
    )


def _find_common_provenance(folder: Path, other_folder: Path, spec: ModelSpec, other: ModelSpec) -> Provenance:
    """Return the provenance of a test split that both models have; raise DataError if it is not the same one."""
    if set(spec.labels) != set(other.labels):
        difference = sorted(set(spec.labels) ^ set(other.labels))
        raise DataError(
            f"{folder} and {other_folder}: have different labels (only one has {', '.join(difference[:5])}); "
            "expected two models of the same classes"
        )
    found, expected = spec.provenance, other.provenance
    for path, provenance in ((folder, found), (other_folder, expected)):
        if provenance is None or provenance.fingerprint is None:
            raise DataError(f"{path}: was imported without images, so it has no test split; import it with --data")
    assert found is not None
    assert expected is not None
    if found.fingerprint != expected.fingerprint:
        pairs = (
            ("--data", found.data, expected.data),
            ("--seed", found.seed, expected.seed),
            ("--test-split", found.test_split, expected.test_split),
        )
        different = "; ".join(f"{option} {one} and {two}" for option, one, two in pairs if one != two)
        raise DataError(
            f"{folder} and {other_folder}: have different test splits ({different or 'the images changed'}), and "
            "images of one may have trained the other; train both on the same images with the same --seed"
        )
    return found


def _load_test_split(provenance: Provenance, options: CompareOptions) -> Dataset:
    """Return the data set of the training, with its test split only."""
    assert provenance.data is not None
    try:
        dataset = load_dataset(restore_source(provenance, options.data or provenance.data, options.data_root))
    except DataError as error:
        raise DataError(f"{error}; if the images of the training have moved, add --data") from None
    nothing = dataset.train.subset([])
    return replace(dataset, train=nothing, validation=nothing)


def _decode(
    dataset: Dataset, spec: ModelSpec, folders: tuple[Path, ...], on_decode: Callable[[int], object]
) -> LoadedDataset:
    cache = choose_cache(len(dataset.test), spec.preprocess.shape, folders[0])
    loaded = decode_dataset(dataset, spec.preprocess, cache, on_decode=on_decode)
    # Images that training skipped as unreadable are skipped here too.
    if not any((folder / artifacts.UNREADABLE).is_file() for folder in folders):
        raise_if_unreadable(loaded.unreadable, len(dataset.test))
    return loaded


def _raise_if_changed(dataset: Dataset, provenance: Provenance, spec: ModelSpec) -> None:
    if dataset.test.fingerprint() != provenance.fingerprint or set(dataset.labels) != set(spec.labels):
        raise DataError(
            f"{provenance.data}: its test split is not that of the trainings ({len(dataset.test):,} images found, "
            "changed since); restore them, name their folder with --data, or train again"
        )


def _predict(model: SavedModel, loaded: LoadedDataset) -> tuple[str, ...]:
    spec = model.spec
    logits = compute_logits(model.model, loaded.test.pixels, spec.normalize, torch.device("cpu"))
    return tuple(spec.labels[index] for index in logits.argmax(axis=1))


def _build_compared(
    folder: Path, spec: ModelSpec, predicted: tuple[str, ...], labels: tuple[str, ...]
) -> ComparedModel:
    return ComparedModel(folder, spec, predicted, sum(map(str.__eq__, predicted, labels)))
