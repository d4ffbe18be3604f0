"""What a model is worth on images that it was not trained on, with exactly the pixels that a device sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from clf_runtime.spec import Metrics, Normalize
from clf_train.data.cache import PixelStore, Shard
from clf_train.data.dataset import Int64Array
from clf_train.distributed import SINGLE_PROCESS, ProcessGroup

Float32Array = npt.NDArray[np.float32]

_BATCH = 500
_BINS = 15  # of equal width, as in Guo et al. 2017
_TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Quality:
    """Accuracy and expected calibration error 0..1, loss in nats."""

    accuracy: float
    loss: float
    calibration_error: float


def normalize_images(pixels: Tensor, normalize: Normalize) -> Tensor:
    """Turn uint8 (N, H, W, C) into float32 (N, C, H, W), scaled to 0..1 and normalised, channels last."""
    images = pixels.permute(0, 3, 1, 2).float().div(255)
    return standardize(images, normalize)


def standardize(images: Tensor, normalize: Normalize) -> Tensor:
    """Subtract the mean and divide by the deviation: (N, C, H, W) in 0..1, channels last."""
    mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (normalize.mean, normalize.std))
    return images.sub(mean).div(std).contiguous(memory_format=torch.channels_last)


def compute_logits(model: nn.Module, pixels: PixelStore, normalize: Normalize, device: torch.device) -> Float32Array:
    """Run eager PyTorch over uint8 (N, H, W, C); gives float32 (N, classes)."""
    model.eval()
    orders = (np.arange(at, min(at + _BATCH, len(pixels))) for at in range(0, len(pixels), _BATCH))
    parts = []
    with torch.inference_mode():
        for batch in pixels.batches(orders):
            parts.append(model(normalize_images(torch.from_numpy(batch).to(device), normalize)).float().cpu().numpy())
    return np.concatenate(parts)


def gather_logits(
    model: nn.Module, part: Shard, normalize: Normalize, device: torch.device, group: ProcessGroup = SINGLE_PROCESS
) -> tuple[Float32Array, Int64Array]:
    """Run eager PyTorch over a part that processes share: logits (N, classes) and classes (N,) of all of it."""
    group.broadcast_buffers(model)
    mine = (part.indices, compute_logits(model, part.pixels, normalize, device) if len(part) else None, part.targets)
    shares = [share for share in group.all_gather(mine) if share[1] is not None]
    indices, logits, targets = (np.concatenate(each) for each in zip(*shares, strict=True))
    order = np.argsort(indices)
    return logits[order], targets[order]


def compute_probabilities(logits: Float32Array, temperature: float) -> Float32Array:
    """Give softmax(logits / temperature), float32 (N, classes)."""
    probabilities: Float32Array = torch.softmax(torch.from_numpy(logits).double() / temperature, dim=1).float().numpy()
    return probabilities


def compute_metrics(logits: Float32Array, targets: Int64Array, temperature: float) -> Quality:
    """Judge logits (N, classes) against classes (N,)."""
    log_probabilities = torch.log_softmax(torch.from_numpy(logits).double() / temperature, dim=1).numpy()
    confidence = np.exp(log_probabilities.max(axis=1))
    right = logits.argmax(axis=1) == targets
    return Quality(
        accuracy=float(right.mean()),
        loss=float(-log_probabilities[np.arange(len(targets)), targets].mean()),
        calibration_error=_calibration_error(confidence, right),
    )


@dataclass(frozen=True)
class EvalResult:
    """What a model is worth on images that nothing was fitted on."""

    logits: Float32Array  # (N, classes)
    targets: Int64Array  # (N,)
    temperature: float  # fitted on other images
    quality: Quality  # with that temperature
    untempered: Quality  # without

    def metrics(self, split: str) -> Metrics:
        """Give what the spec keeps of it."""
        quality = self.quality
        return Metrics(split, len(self.targets), quality.accuracy, quality.loss, quality.calibration_error)


def evaluate(
    model: nn.Module,
    validation: Shard,
    test: Shard,
    normalize: Normalize,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
) -> EvalResult:
    """Fit the temperature on one part, where it has images, and judge on the other."""
    temperature = 1.0
    if validation.of:
        temperature = fit_temperature(*gather_logits(model, validation, normalize, device, group))
    logits, targets = gather_logits(model, test, normalize, device, group)
    qualities = (compute_metrics(logits, targets, each) for each in (temperature, 1.0))
    return EvalResult(logits, targets, temperature, *qualities)


def fit_temperature(logits: Float32Array, targets: Int64Array) -> float:
    """Find the temperature of least loss (Guo et al. 2017) on images that are neither trained on nor reported.

    An image counts as right with probability (N + 1) / (N + 2), not 1: from N right answers no certainty
    follows, and without this a flawless validation drives the temperature to zero (Platt 1999). The loss is
    convex in 1/T, so a search by thirds over log T ends at its minimum.
    """
    values, wanted = torch.from_numpy(logits).double(), torch.from_numpy(targets)
    classes = values.shape[1]
    smoothing = classes / (classes - 1) / (len(targets) + 2)
    low, high = (float(np.log(bound)) for bound in _TEMPERATURES)
    for _ in range(60):
        third = (high - low) / 3
        losses = [
            nn.functional.cross_entropy(values / float(np.exp(at)), wanted, label_smoothing=smoothing).item()
            for at in (low + third, high - third)
        ]
        low, high = (low, high - third) if losses[0] < losses[1] else (low + third, high)
    return float(np.exp((low + high) / 2))


def _calibration_error(confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> float:
    """Mean |confidence - accuracy| over bins of confidence, each weighted by its images."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    error = 0.0
    for index in np.unique(bins):
        inside = bins == index
        error += float(inside.mean()) * abs(float(confidence[inside].mean()) - float(right[inside].mean()))
    return error
