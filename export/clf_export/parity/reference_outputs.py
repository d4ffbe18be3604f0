"""The images of the parity check, and PyTorch's outputs for them; the same for every exported file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from clf_export.exporters.module import ExportModule
from clf_export.parity.reference import Reference
from clf_export.reference_split import TestSplit
from clf_runtime.errors import InvalidModelError
from clf_runtime.preprocess import UInt8Array, pixels_from_image
from clf_runtime.session import Float32Array
from clf_runtime.spec import ModelSpec
from clf_train.data.cache import Shard
from clf_train.data.dataset import Int64Array
from clf_train.engine.evaluate import compute_logits

Float64Array = npt.NDArray[np.float64]

_MAX_IMAGES = 1000  # that are compared from the bytes of their files
_FLOAT64_IMAGES = 32  # float64 takes five times as long
# EfficientNet-Lite0 at 224 pixels, one thread, images per second: 10.0 in batches of 1, 11.6 of 4, 11.0 of 16. Unless
# freed memory is kept, batches of 16 are the slowest: 7.8.
_FLOAT64_BATCH = 4


@dataclass(frozen=True)
class ReferenceOutputs:
    """Image files of the test split with PyTorch's answers behind torchvision's transforms, and the split itself."""

    names: tuple[str, ...]
    encoded: tuple[bytes, ...]  # image files
    pixels: UInt8Array  # (N, H, W, C), by the runtime's preprocessing
    labels: tuple[str, ...]  # the data set's own class names, in the order of the network's outputs
    targets: Int64Array  # (N,)
    logits: Float32Array  # (N, classes)
    probabilities: Float32Array  # (N, classes)
    float64_logits: Float64Array  # (n, classes), of the first n images
    all_images: Shard  # the test split, decoded
    accuracy: float  # of PyTorch on the test split

    @property
    def rounding(self) -> float:
        """The largest difference of a logit between PyTorch in float32 and in float64."""
        return float(np.abs(self.logits[: len(self.float64_logits)] - self.float64_logits).max(initial=0.0))


def compute_reference_outputs(
    split: TestSplit,
    module: ExportModule,
    reference: Reference,
    on_progress: Callable[[float], object] = lambda share: None,
) -> ReferenceOutputs:
    """Run PyTorch on the test split, or on 1,000 images spread over it where it has more.

    Args:
        split: the images.
        module: what will be exported, in float32.
        reference: the same network behind torchvision's transforms.
        on_progress: called after some images, with the share that is done.

    Raises:
        DataError: an image cannot be read.
        InvalidModelError: PyTorch's own answers are not finite.
    """
    test = split.dataset.test
    count = min(_MAX_IMAGES, len(test))
    images = test.subset(np.unique(np.linspace(0, len(test) - 1, count).astype(int)).tolist())
    encoded = [images.encode(index) for index in range(len(images))]
    logits = reference.compute_logits(encoded, on_progress)
    if not np.isfinite(logits).all():
        raise InvalidModelError("the parity check failed: PyTorch's own logits are NaN or infinite; train again")
    pixels = np.stack([pixels_from_image(content, reference.spec.preprocess) for content in encoded])
    return ReferenceOutputs(
        names=images.names,
        encoded=tuple(encoded),
        pixels=pixels,
        labels=split.dataset.labels,
        targets=images.targets,
        logits=logits,
        probabilities=reference.compute_probabilities(logits),
        float64_logits=_compute_float64_logits(module, pixels[:_FLOAT64_IMAGES]),
        all_images=split.all_images,
        accuracy=_measure_accuracy(reference.spec, module, split.all_images),
    )


def _measure_accuracy(spec: ModelSpec, module: ExportModule, images: Shard) -> float:
    """Return the accuracy that training measured on these images, or measure it now."""
    if spec.metrics is not None and spec.metrics.images == len(images):
        return spec.metrics.accuracy
    logits = compute_logits(module.model, images.pixels, spec.normalize, torch.device("cpu"))
    return float((logits.argmax(axis=1) == images.targets).mean())


def _compute_float64_logits(module: ExportModule, pixels: UInt8Array) -> Float64Array:
    """Return the logits, (N, classes), of pixels, uint8 (N, H, W, C), with all arithmetic in float64."""
    doubled = copy.deepcopy(module).double()
    batches = [pixels[start : start + _FLOAT64_BATCH] for start in range(0, len(pixels), _FLOAT64_BATCH)]
    with torch.inference_mode():
        return np.concatenate([doubled(torch.from_numpy(batch))[0].numpy() for batch in batches])
