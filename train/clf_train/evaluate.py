"""What a model is worth on pictures that it was not trained on, with exactly the pixels that a device sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from clf_runtime.preprocess import UInt8Array
from clf_runtime.spec import Metrics, Normalize
from clf_train.dataset import Int64Array

Float32Array = npt.NDArray[np.float32]
Part = tuple[UInt8Array, Int64Array]  # pixels (N, H, W, C), classes (N,)

_BATCH = 500
_BINS = 15  # of equal width, as in Guo et al. 2017
_TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Quality:
    """Accuracy and expected calibration error 0..1, loss in nats."""

    accuracy: float
    loss: float
    calibration_error: float


def normalized(pixels: Tensor, normalize: Normalize) -> Tensor:
    """Turn uint8 (N, H, W, C) into float32 (N, C, H, W), scaled to 0..1 and normalised, channels last."""
    images = pixels.permute(0, 3, 1, 2).float().div(255)
    return standardized(images, normalize)


def standardized(images: Tensor, normalize: Normalize) -> Tensor:
    """Subtract the mean and divide by the deviation: (N, C, H, W) in 0..1, channels last."""
    mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (normalize.mean, normalize.std))
    return images.sub(mean).div(std).contiguous(memory_format=torch.channels_last)


def logits_of(model: nn.Module, pixels: UInt8Array, normalize: Normalize, device: torch.device) -> Float32Array:
    """Run eager PyTorch over uint8 (N, H, W, C); gives float32 (N, classes)."""
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), _BATCH):
            batch = torch.tensor(pixels[start : start + _BATCH]).to(device)
            parts.append(model(normalized(batch, normalize)).float().cpu().numpy())
    return np.concatenate(parts)


def probabilities_of(logits: Float32Array, temperature: float) -> Float32Array:
    """Give softmax(logits / temperature), float32 (N, classes)."""
    probabilities: Float32Array = torch.softmax(torch.from_numpy(logits).double() / temperature, dim=1).float().numpy()
    return probabilities


def quality_of(logits: Float32Array, targets: Int64Array, temperature: float) -> Quality:
    """Judge logits (N, classes) against classes (N,)."""
    log_probabilities = torch.log_softmax(torch.from_numpy(logits).double() / temperature, dim=1).numpy()
    confidence = np.exp(log_probabilities.max(axis=1))
    right = logits.argmax(axis=1) == targets
    return Quality(
        accuracy=float(right.mean()),
        loss=float(-log_probabilities[np.arange(len(targets)), targets].mean()),
        calibration_error=_calibration_error(confidence, right),
    )


def judged(
    model: nn.Module, validation: Part, test: Part, test_name: str, normalize: Normalize, device: torch.device
) -> tuple[Float32Array, float, Metrics]:
    """Fit the temperature on one part and judge on the other: the other's logits, the temperature, the metrics."""
    temperature = 1.0
    if len(validation[0]):
        temperature = fitted_temperature(logits_of(model, validation[0], normalize, device), validation[1])
    logits = logits_of(model, test[0], normalize, device)
    quality = quality_of(logits, test[1], temperature)
    return (
        logits,
        temperature,
        Metrics(test_name, len(logits), quality.accuracy, quality.loss, quality.calibration_error),
    )


def fitted_temperature(logits: Float32Array, targets: Int64Array) -> float:
    """Find the temperature of least loss (Guo et al. 2017) on pictures that are neither trained on nor reported.

    A picture counts as right with probability (N + 1) / (N + 2), not 1: from N right answers no certainty
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
    """Mean |confidence - accuracy| over bins of confidence, each weighted by its pictures."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    error = 0.0
    for index in np.unique(bins):
        inside = bins == index
        error += float(inside.mean()) * abs(float(confidence[inside].mean()) - float(right[inside].mean()))
    return error
