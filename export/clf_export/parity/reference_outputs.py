"""What a proof is about: real held-out images, and what PyTorch says of them. The same for every file."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from clf_export.exporters.module import ExportModule
from clf_export.parity.reference import Reference
from clf_runtime.errors import InvalidModelError
from clf_runtime.preprocess import UInt8Array, pixels_from_image
from clf_runtime.session import Float32Array
from clf_runtime.spec import ModelSpec
from clf_train.data.cache import Shard
from clf_train.data.dataset import Dataset, Int64Array
from clf_train.engine.evaluate import compute_logits

Float64Array = npt.NDArray[np.float64]

_IMAGES = 1000  # from their bytes on
_DOUBLED = 64  # in float64, which takes three times as long


@dataclass(frozen=True)
class ReferenceOutputs:
    """Images as files, with the answers of PyTorch behind torchvision's own transforms, and the whole split."""

    names: tuple[str, ...]
    encoded: tuple[bytes, ...]  # image files
    pixels: UInt8Array  # (N, H, W, C), by the runtime's preprocessing
    labels: tuple[str, ...]  # the data's own class names, in the order of the network's outputs
    targets: Int64Array  # (N,)
    logits: Float32Array  # (N, classes)
    probabilities: Float32Array  # (N, classes)
    exact: Float64Array  # (some of N, classes): the logits of the first few, computed in float64
    all_images: Shard  # every held-out image
    accuracy: float  # of PyTorch on all of them

    @property
    def rounding(self) -> float:
        """The largest difference of a logit between PyTorch in float32 and in float64: what is no error."""
        return float(np.abs(self.logits[: len(self.exact)] - self.exact).max(initial=0.0))


def compute_reference_outputs(
    dataset: Dataset, all_images: Shard, module: ExportModule, reference: Reference
) -> ReferenceOutputs:
    """Take the held-out images, 1,000 spread over all where there are more, and ask PyTorch.

    Args:
        dataset: its test part is what was held out.
        whole: the same images, decoded.
        module: what will be exported, in float32.
        reference: what the answers should be.

    Raises DataError, and InvalidModelError where PyTorch itself gives no numbers.
    """
    count = min(_IMAGES, len(dataset.test))
    spread = np.unique(np.linspace(0, len(dataset.test) - 1, count).astype(int)).tolist()
    images = dataset.test.subset(spread)
    encoded = [images.encode(index) for index in range(len(images))]
    logits = reference.logits(encoded)
    if not np.isfinite(logits).all():
        raise InvalidModelError("the proof failed: PyTorch itself gives NaN or infinite logits; train again")
    pixels = np.stack([pixels_from_image(each, reference.spec.preprocess) for each in encoded])
    return ReferenceOutputs(
        names=images.names,
        encoded=tuple(encoded),
        pixels=pixels,
        labels=dataset.labels,
        targets=images.targets,
        logits=logits,
        probabilities=reference.probabilities(logits),
        exact=_exact(module, pixels[:_DOUBLED]),
        all_images=all_images,
        accuracy=_accuracy(reference.spec, module, all_images),
    )


def _accuracy(spec: ModelSpec, module: ExportModule, all_images: Shard) -> float:
    """Give what the training measured on these very images, or measure it now."""
    if spec.metrics is not None and spec.metrics.images == len(all_images):
        return spec.metrics.accuracy
    logits = compute_logits(module.model, all_images.pixels, spec.normalize, torch.device("cpu"))
    return float((logits.argmax(axis=1) == all_images.targets).mean())


def _exact(module: ExportModule, pixels: UInt8Array) -> Float64Array:
    """Give the logits of pixels, uint8 (N, H, W, C), with every sum and product in float64: (N, classes)."""
    doubled = copy.deepcopy(module).double()
    with torch.inference_mode():
        parts = [doubled(torch.from_numpy(each[None]))[0].numpy() for each in pixels]
    return np.concatenate(parts)
