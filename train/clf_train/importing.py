"""A state_dict trained elsewhere becomes a finished artifacts folder, ready to export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from clf_runtime import artifacts, files
from clf_runtime.errors import DataError, InvalidModelError, UsageError
from clf_runtime.spec import ModelSpec, Normalize, Preprocess
from clf_train.config import TrainConfig, input_of, load_dataset
from clf_train.data.cache import full_shard
from clf_train.data.dataset import Dataset
from clf_train.engine import checkpoint
from clf_train.engine.evaluate import EvalResult, evaluate, normalize_images
from clf_train.models.factory import build
from clf_train.models.saved import raise_if_finished, raise_if_not_finite, serialize_state_dict
from clf_train.models.weights import load_weights
from clf_train.provenance import provenance
from clf_train.registry import TORCHVISION, model_row
from clf_train.report.samples import write_samples


@dataclass(frozen=True)
class Origin:
    """What only the person knows who trained it."""

    weights: Path
    labels: tuple[str, ...]
    mean: tuple[float, ...] | None  # per channel, of pixels in 0..1; None for what the network's authors took
    std: tuple[float, ...] | None


def labels_from(text: str) -> tuple[str, ...]:
    """Read labels in output order: a file with one on each line, or a list with commas. Raises UsageError."""
    path = Path(text)
    if "," not in text and not path.is_file():
        raise UsageError(f"--labels {text}: no such file; expected one with a label on each line, or a,b,c")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    labels = tuple(line.strip() for line in lines if line.strip())
    if len(set(labels)) < max(2, len(labels)):
        raise UsageError(
            f"--labels {text}: {len(labels)} labels, {len(set(labels))} of them different; expected 2 or more"
        )
    return labels


def import_model(
    origin: Origin, config: TrainConfig, artifacts_folder: Path, *, with_data: bool, overwrite: bool = False
) -> ModelSpec:
    """Write a finished model.

    Args:
        origin: the weights and what they mean.
        order: the network, its input, and the data set to judge it with.
        artifacts_folder: where to.
        with_data: whether `config.data` is to be looked at: then the temperature is fitted, and accuracy told.
        overwrite: replace a finished model.

    Raises:
        InvalidModelError: the weights are not this network's, or no numbers.
        DataError: the images have other classes.
        UsageError, MachineError, OSError.
    """
    raise_if_finished(artifacts_folder, overwrite)
    if checkpoint.exists(artifacts_folder) and not overwrite:
        raise DataError(
            f"{artifacts_folder}: has an unfinished training; --overwrite replaces it, -a names another folder"
        )
    preprocess, normalize = input_of(config, config.model)
    normalize = _normalize(origin, normalize, config.model, preprocess.channels)
    with files.atomic_folder(
        artifacts_folder, artifacts.SPEC, (*artifacts.DERIVED, *artifacts.OF_TRAINING, *artifacts.UNFINISHED)
    ) as staging:
        model = build(config.model, preprocess.shape, len(origin.labels))
        load_weights(model, origin.weights)
        raise_if_not_finite(model, origin.weights)
        model = model.float().eval()
        _refuse_misfit(model, preprocess, normalize, origin, config.model)
        dataset = _dataset(config, origin.labels) if with_data else None
        evaluation = None if dataset is None else _judged(model, dataset, preprocess, normalize)
        weights = serialize_state_dict(model)
        spec = ModelSpec(
            architecture=config.model,
            labels=origin.labels,
            preprocess=preprocess,
            normalize=normalize,
            temperature=evaluation.temperature if evaluation else 1.0,
            metrics=evaluation.metrics(dataset.test_name) if evaluation and dataset else None,
            provenance=provenance(config, dataset, 0, weights),
        )
        (staging / artifacts.STATE_DICT).write_bytes(weights)
        (staging / artifacts.SPEC).write_text(spec.to_json() + "\n", encoding="utf-8")
        if dataset is not None:
            write_samples(staging / artifacts.SAMPLES, dataset.test, spec)
    return spec


def _normalize(origin: Origin, default: Normalize, architecture: str, channels: int) -> Normalize:
    """Take what was said, else what the tutorial or torchvision trains with, else pixels in 0..1 as they are."""
    row = model_row(architecture)
    if row is not None:
        default = Normalize((row.normalize[0],) * channels, (row.normalize[1],) * channels)
    elif architecture not in TORCHVISION:
        default = Normalize((0.0,) * channels, (1.0,) * channels)
    mean, std = (_per_channel(values, channels) for values in (origin.mean, origin.std))
    return Normalize(mean or default.mean, std or default.std)


def _per_channel(values: tuple[float, ...] | None, channels: int) -> tuple[float, ...] | None:
    if values is None or len(values) == channels:
        return values
    if len(values) == 1:
        return values * channels
    raise UsageError(f"--mean and --std have {len(values)} numbers; expected 1 or {channels}, one for each channel")


def _refuse_misfit(
    model: nn.Module, preprocess: Preprocess, normalize: Normalize, origin: Origin, architecture: str
) -> None:
    """Run two images through it, since a size that does not fit shows nowhere else."""
    wanted = (2, len(origin.labels))
    try:
        with torch.inference_mode():
            given = model(normalize_images(torch.zeros((2, *preprocess.shape), dtype=torch.uint8), normalize))
    except Exception as error:  # of whatever layer the shape does not fit
        reason = " ".join(str(error).split())[:200]
        raise InvalidModelError(
            f"{architecture}: does not take {preprocess.height}x{preprocess.width} {preprocess.color} ({reason}); "
            "say another --size or --color"
        ) from None
    if not isinstance(given, torch.Tensor) or tuple(given.shape) != wanted:
        found = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise InvalidModelError(f"{architecture}: gives {found} for two images; expected logits of shape {wanted}")


def _dataset(config: TrainConfig, labels: tuple[str, ...]) -> Dataset:
    dataset = load_dataset(config)
    if dataset.labels != labels:
        raise DataError(
            f"{config.data}: its classes are {list(dataset.labels)}; expected those of --labels, {list(labels)}"
        )
    return dataset


def _judged(model: nn.Module, dataset: Dataset, preprocess: Preprocess, normalize: Normalize) -> EvalResult:
    validation, test = (
        full_shard(part.decoded(preprocess) if len(part) else np.empty((0, *preprocess.shape), np.uint8), part.targets)
        for part in (dataset.validation, dataset.test)
    )
    return evaluate(model, validation, test, normalize, torch.device("cpu"))
