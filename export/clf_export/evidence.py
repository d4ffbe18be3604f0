"""What a proof is about: real held-out pictures, and what PyTorch says of them. The same for every file."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from clf_export.deployable import Deployable
from clf_export.reference import Reference
from clf_runtime.errors import ModelRefused
from clf_runtime.preprocess import UInt8Array, pixels_from_picture
from clf_runtime.session import Float32Array
from clf_runtime.spec import ModelSpec
from clf_train.dataset import Dataset, Int64Array
from clf_train.evaluate import logits_of
from clf_train.pixels import Part

Float64Array = npt.NDArray[np.float64]

_PICTURES = 1000  # from their bytes on
_DOUBLED = 64  # in float64, which takes three times as long


@dataclass(frozen=True)
class Evidence:
    """Pictures as files, with the answers of PyTorch behind torchvision's own transforms, and the whole split."""

    names: tuple[str, ...]
    encoded: tuple[bytes, ...]  # picture files
    pixels: UInt8Array  # (N, H, W, C), by the runtime's preprocessing
    labels: tuple[str, ...]  # the data's own class names, in the order of the network's outputs
    targets: Int64Array  # (N,)
    logits: Float32Array  # (N, classes)
    probabilities: Float32Array  # (N, classes)
    exact: Float64Array  # (some of N, classes): the logits of the first few, computed in float64
    whole: Part  # every held-out picture
    accuracy: float  # of PyTorch on all of them

    @property
    def rounding(self) -> float:
        """The largest difference of a logit between PyTorch in float32 and in float64: what is no error."""
        return float(np.abs(self.logits[: len(self.exact)] - self.exact).max(initial=0.0))


def evidence_from_data(dataset: Dataset, whole: Part, module: Deployable, reference: Reference) -> Evidence:
    """Take the held-out pictures, 1,000 spread over all where there are more, and ask PyTorch.

    Args:
        dataset: its test part is what was held out.
        whole: the same pictures, decoded.
        module: what will be exported, in float32.
        reference: what the answers should be.

    Raises DataRefused, and ModelRefused where PyTorch itself gives no numbers.
    """
    count = min(_PICTURES, len(dataset.test))
    spread = np.unique(np.linspace(0, len(dataset.test) - 1, count).astype(int)).tolist()
    pictures = dataset.test.subset(spread)
    encoded = [pictures.encoded(index) for index in range(len(pictures))]
    logits = reference.logits(encoded)
    if not np.isfinite(logits).all():
        raise ModelRefused("the proof failed: PyTorch itself gives NaN or infinite logits; train again")
    pixels = np.stack([pixels_from_picture(each, reference.spec.preprocess) for each in encoded])
    return Evidence(
        names=pictures.names,
        encoded=tuple(encoded),
        pixels=pixels,
        labels=dataset.labels,
        targets=pictures.targets,
        logits=logits,
        probabilities=reference.probabilities(logits),
        exact=_exact(module, pixels[:_DOUBLED]),
        whole=whole,
        accuracy=_accuracy(reference.spec, module, whole),
    )


def _accuracy(spec: ModelSpec, module: Deployable, whole: Part) -> float:
    """Give what the training measured on these very pictures, or measure it now."""
    if spec.metrics is not None and spec.metrics.images == len(whole):
        return spec.metrics.accuracy
    logits = logits_of(module.model, whole.pixels, spec.normalize, torch.device("cpu"))
    return float((logits.argmax(axis=1) == whole.targets).mean())


def _exact(module: Deployable, pixels: UInt8Array) -> Float64Array:
    """Give the logits of pixels, uint8 (N, H, W, C), with every sum and product in float64: (N, classes)."""
    doubled = copy.deepcopy(module).double()
    with torch.inference_mode():
        parts = [doubled(torch.from_numpy(each[None]))[0].numpy() for each in pixels]
    return np.concatenate(parts)
