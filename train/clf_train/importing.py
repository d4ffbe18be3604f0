"""Turn a state_dict that was trained elsewhere into a finished artifacts folder, ready to export."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from clf_runtime import artifacts, folders
from clf_runtime.errors import DataError, UsageError
from clf_runtime.folders import ReplacementPlan
from clf_runtime.spec import ModelSpec, Normalize, Preprocess
from clf_train.config import DataSource, InputOptions, load_dataset
from clf_train.data.cache import full_shard
from clf_train.data.dataset import Dataset
from clf_train.engine.checkpoint import has_checkpoint
from clf_train.engine.evaluate import EvalResult, Predictor, evaluate
from clf_train.models.factory import build_model
from clf_train.models.fit import raise_if_input_does_not_fit
from clf_train.models.saved import raise_if_finished, raise_if_not_finite, serialize_state_dict
from clf_train.models.weights import load_weights
from clf_train.plan import resolve_input
from clf_train.provenance import record_provenance
from clf_train.registry import TORCHVISION, find_model_row
from clf_train.report.samples import write_samples


@dataclass(frozen=True)
class ImportConfig:
    """The user's choices for an import."""

    weights: Path
    model: str
    labels: tuple[str, ...]  # in output order
    source: DataSource
    has_data: bool  # whether `source` names labeled images; if not, it only records how an export will split them
    input: InputOptions = field(default_factory=InputOptions)
    overwrite: bool = False
    command: str = ""  # for the provenance


def read_labels(text: str) -> tuple[str, ...]:
    """Read labels in output order from a file with one label per line, or from a list with commas.

    Raises:
        UsageError: the file does not exist, a label repeats, or there are fewer than 2.
    """
    path = Path(text)
    if "," not in text and not path.is_file():
        raise UsageError(f"--labels {text}: no such file; expected one with a label on each line, or a,b,c")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    labels = tuple(line.strip() for line in lines if line.strip())
    if len(set(labels)) < max(2, len(labels)):
        raise UsageError(
            f"--labels {text}: {len(labels)} labels, {len(set(labels))} of them different; "
            "expected at least 2, all different"
        )
    return labels


def import_model(config: ImportConfig, folder: Path) -> ModelSpec:
    """Write a finished model into an artifacts folder.

    With data, the temperature is fitted and the accuracy measured.

    Raises:
        InvalidModelError: the weights do not fit the network, or are NaN or infinite.
        DataError: the images have other classes, or the folder has a model or unfinished training.
        UsageError: an option contradicts the model.
        MachineError, OSError: this machine cannot do it.
    """
    plan = ReplacementPlan(artifacts.SPEC, (*artifacts.DERIVED, *artifacts.OF_TRAINING), leftovers=artifacts.UNFINISHED)
    with folders.locked_folder(folder, "clf-import"):
        raise_if_finished(folder, config.overwrite)
        if has_checkpoint(folder) and not config.overwrite:
            raise DataError(f"{folder}: has unfinished training; --overwrite replaces it, -a names another folder")
        with folders.atomic_folder(folder, plan) as staging:
            return _import_into(staging, config)


def _import_into(staging: Path, config: ImportConfig) -> ModelSpec:
    preprocess, normalize = resolve_input(config.model, _complete_input(config), is_pretrained=True)
    model = _load_model(config, preprocess, normalize)
    dataset = _load_dataset(config) if config.has_data else None
    evaluation = None if dataset is None else _evaluate(model, dataset, preprocess, normalize)
    weights = serialize_state_dict(model)
    spec = ModelSpec(
        architecture=config.model,
        labels=config.labels,
        preprocess=preprocess,
        normalize=normalize,
        temperature=evaluation.temperature if evaluation else 1.0,
        metrics=evaluation.metrics if evaluation else None,
        provenance=record_provenance(config.source, dataset, weights, 0, config.command),
    )
    (staging / artifacts.STATE_DICT).write_bytes(weights)
    (staging / artifacts.SPEC).write_text(spec.to_json() + "\n", encoding="utf-8")
    if dataset is not None:
        write_samples(staging / artifacts.SAMPLES, dataset.test, spec)
    return spec


def _complete_input(config: ImportConfig) -> InputOptions:
    """Return the user's choices; nothing is known about weights of a user's factory, so pixels in 0..1 are assumed."""
    if find_model_row(config.model) is not None or config.model in TORCHVISION:
        return config.input
    return replace(config.input, mean=config.input.mean or (0.0,), std=config.input.std or (1.0,))


def _load_model(config: ImportConfig, preprocess: Preprocess, normalize: Normalize) -> nn.Module:
    model = build_model(config.model, preprocess.shape, len(config.labels))
    load_weights(model, config.weights)
    raise_if_not_finite(model, config.weights)
    model = model.float().eval()
    raise_if_input_does_not_fit(model, config.model, preprocess, len(config.labels))
    return model


def _load_dataset(config: ImportConfig) -> Dataset:
    dataset = load_dataset(config.source)
    if dataset.labels != config.labels:
        raise DataError(
            f"{config.source.data}: its classes are {list(dataset.labels)}; "
            f"expected those of --labels, {list(config.labels)}"
        )
    return dataset


def _evaluate(model: nn.Module, dataset: Dataset, preprocess: Preprocess, normalize: Normalize) -> EvalResult:
    validation, test = (
        full_shard(
            split.decode(preprocess) if len(split) else np.empty((0, *preprocess.shape), np.uint8), split.targets
        )
        for split in (dataset.validation, dataset.test)
    )
    return evaluate(Predictor(model, normalize, torch.device("cpu")), validation, test, dataset.test_name)
