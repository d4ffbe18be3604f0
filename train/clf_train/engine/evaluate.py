"""Evaluate a network on images it was not trained on, with exactly the pixels that a device sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from clf_runtime.evaluation.calibration import compute_calibration_error
from clf_runtime.spec import Metrics, Normalize
from clf_train.data.cache import PixelStore, Shard
from clf_train.data.dataset import Int64Array
from clf_train.distributed import SINGLE_PROCESS, ProcessGroup
from clf_train.engine.calibration import Float32Array, fit_temperature

# EfficientNet-Lite0 at 224 pixels is as fast with 16 images as with 32, and takes gigabytes with 500.
_MAX_BATCH, _BATCH_PIXELS = 500, 16 * 224 * 224


@dataclass(frozen=True)
class Predictor:
    """A network and what it takes to run it."""

    model: nn.Module  # (N, C, H, W) float32 to logits (N, classes)
    normalize: Normalize
    device: torch.device
    group: ProcessGroup = SINGLE_PROCESS  # the processes that share the images
    on_batch: Callable[[int], object] = lambda images: None  # called after each batch, with its size


@dataclass(frozen=True)
class EvalResult:
    """The outputs of a network on the test split, and their metrics."""

    logits: Float32Array  # (N, classes)
    targets: Int64Array  # (N,)
    temperature: float  # fitted on the validation split
    metrics: Metrics  # with that temperature
    uncalibrated: Metrics  # with temperature 1


def evaluate(predictor: Predictor, validation: Shard, test: Shard, split: str) -> EvalResult:
    """Fit the temperature on one split and compute the metrics on another.

    Args:
        predictor: the network.
        validation: this process's share of the validation split; without images the temperature is 1.
        test: this process's share of the test split.
        split: the name of the test split, for the metrics.
    """
    outputs = gather_logits(predictor, validation) if validation.total else None
    return evaluate_logits(outputs, gather_logits(predictor, test), split)


def evaluate_logits(
    validation: tuple[Float32Array, Int64Array] | None, test: tuple[Float32Array, Int64Array], split: str
) -> EvalResult:
    """Do what `evaluate` does with the logits (N, classes) and the classes (N,) of both splits."""
    temperature = 1.0 if validation is None else fit_temperature(*validation)
    logits, targets = test
    return EvalResult(
        logits,
        targets,
        temperature,
        metrics=compute_metrics(logits, targets, temperature, split),
        uncalibrated=compute_metrics(logits, targets, 1.0, split),
    )


def compute_metrics(logits: Float32Array, targets: Int64Array, temperature: float, split: str) -> Metrics:
    """Compute the metrics of logits (N, classes) for the classes (N,) of the images of a split."""
    log_probabilities = torch.log_softmax(torch.from_numpy(logits).double() / temperature, dim=1).numpy()
    correct = logits.argmax(axis=1) == targets
    return Metrics(
        split=split,
        images=len(targets),
        accuracy=float(correct.mean()),
        loss=float(-log_probabilities[np.arange(len(targets)), targets].mean()),
        calibration_error=compute_calibration_error(np.exp(log_probabilities.max(axis=1)), correct),
    )


def compute_probabilities(logits: Float32Array, temperature: float) -> Float32Array:
    """Return softmax(logits / temperature), float32 (N, classes)."""
    probabilities: Float32Array = torch.softmax(torch.from_numpy(logits).double() / temperature, dim=1).float().numpy()
    return probabilities


def gather_logits(predictor: Predictor, shard: Shard) -> tuple[Float32Array, Int64Array]:
    """Return the logits (N, classes) and the classes (N,) of a complete split, of which each process has a shard."""
    predictor.group.broadcast_buffers(predictor.model)
    logits = _run_on_shard(predictor, shard.pixels) if len(shard) else None
    return gather_shards(predictor.group, shard, logits)


def gather_shards(
    group: ProcessGroup, shard: Shard, logits_of_shard: Float32Array | None
) -> tuple[Float32Array, Int64Array]:
    """Return the logits and the classes of a complete split, of which each process has those of its shard, or None."""
    shards = group.all_gather((shard.indices, logits_of_shard, shard.targets))
    indices, logits, targets = (
        np.concatenate(arrays) for arrays in zip(*(arrays for arrays in shards if arrays[1] is not None), strict=True)
    )
    order = np.argsort(indices)
    return logits[order], targets[order]


def compute_logits(model: nn.Module, pixels: PixelStore, normalize: Normalize, device: torch.device) -> Float32Array:
    """Run eager PyTorch on uint8 (N, H, W, C); return float32 logits (N, classes)."""
    return _run_on_shard(Predictor(model, normalize, device), pixels)


def _run_on_shard(predictor: Predictor, pixels: PixelStore) -> Float32Array:
    predictor.model.eval()
    size = max(1, min(_MAX_BATCH, _BATCH_PIXELS // (pixels.shape[0] * pixels.shape[1])))
    indices = (np.arange(start, min(start + size, len(pixels))) for start in range(0, len(pixels), size))
    logits = []
    with torch.inference_mode():
        for batch in pixels.batches(indices):
            images = normalize_images(torch.from_numpy(batch).to(predictor.device), predictor.normalize)
            logits.append(predictor.model(images).float().cpu().numpy())
            predictor.on_batch(len(batch))
    return np.concatenate(logits)


def normalize_images(pixels: Tensor, normalize: Normalize) -> Tensor:
    """Scale uint8 (N, H, W, C) to 0..1 and normalize it; return float32 (N, C, H, W), channels last."""
    images = pixels.permute(0, 3, 1, 2).float().div(255)
    return standardize(images, normalize)


def standardize(images: Tensor, normalize: Normalize) -> Tensor:
    """Subtract the mean and divide by the standard deviation: (N, C, H, W) in 0..1, channels last."""
    mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (normalize.mean, normalize.std))
    return images.sub(mean).div(std).contiguous(memory_format=torch.channels_last)
