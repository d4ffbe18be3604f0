"""The proof: an exported file against eager PyTorch, on real held-out images.

At four levels: the graph alone, beside float64, which tells rounding from error; every batch size; from the bytes of
image files to probabilities, with torchvision's own transforms on PyTorch's side; and the accuracy over every
held-out image. A file that fails one never gets its name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from clf_export.parity.reference_outputs import ReferenceOutputs
from clf_export.quantize.search import MIN_AGREEMENT
from clf_runtime.errors import InvalidModelError
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import Float32Array
from clf_runtime.spec import ModelSpec

TOLERANCE = 1e-4  # of a logit, and of a probability, in float32
BATCH_SIZES = (1, 2, 7, 32)

# Deep networks have float32 sums that differ by more than TOLERANCE from one order of adding to the next. How far
# PyTorch's own are from float64 says how much of a difference is that: two orders may be twice as far apart.
_ROUNDINGS = 4.0
# float16 has 11 bits: 5e-4 of a number's size for each rounding, of which a deep network's logit has had many.
_FP16_TOLERANCE = 0.01
# INT8 is held to labels and accuracy. Another processor's float32 parts may round a quantised value the other way.
_INT8_SLACK = 1.5
_IMAGES_PER_BATCH_SIZE = 128
_ALL_AT_ONCE = 32


class OpenedModel(Protocol):
    """An exported file, opened as a device would open it."""

    def run(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Give logits and probabilities, float32 (N, classes), for uint8 (N, height, width, channels)."""
        ...


@dataclass(frozen=True)
class Limits:
    """What a file may differ by."""

    precision: str
    tolerance: float | None  # of a logit; None where labels and accuracy say more
    probability_tolerance: float
    agreement: float  # of labels with PyTorch's, at least
    max_drop: float  # percentage points of accuracy


@dataclass(frozen=True)
class Parity:
    """What was found; also what travels in the file as `clf.parity`, and in export.json."""

    precision: str
    quantization: str  # how, where there was a choice
    images: int  # from their bytes on
    batch_sizes: tuple[int, ...]
    max_difference: float  # of a logit, over all images, classes and batch sizes
    max_probability_difference: float
    flipped: int  # images whose label is not the one that PyTorch gives
    worst_image: str  # the image with the largest difference
    tolerance: float  # the difference of a logit up to which another machine gives the same answer
    float64_images: int  # also computed in float64
    difference_from_float64: float  # of this file's logits
    rounding: float  # of PyTorch's own, in float32
    accuracy: float  # of the exported file, on every held-out image
    accuracy_images: int
    reference_accuracy: float  # likewise
    reference: str
    runtime: str

    def record(self) -> dict[str, Any]:
        """Give what is written as JSON."""
        return asdict(self)


def limits_for(precision: str, reference_outputs: ReferenceOutputs, max_drop: float) -> Limits:
    """Give what a file of this precision may differ by; `max_drop` in percentage points."""
    if precision == "int8":
        return Limits(precision, None, 1.0, MIN_AGREEMENT, max_drop)
    if precision == "fp16":
        scale = max(1.0, float(np.abs(reference_outputs.logits).max()))
        return Limits(precision, _FP16_TOLERANCE * scale, _FP16_TOLERANCE, MIN_AGREEMENT, max_drop)
    tolerance = max(TOLERANCE, _ROUNDINGS * reference_outputs.rounding)
    return Limits(precision, tolerance, tolerance, 1.0, max_drop=max(0.1, 100 / len(reference_outputs.all_images)))


def check_parity(
    model: OpenedModel,
    spec: ModelSpec,
    reference_outputs: ReferenceOutputs,
    limits: Limits,
    quantization: str,
    reference: str,
    runtime: str,
) -> Parity:
    """Compare a file's answers with PyTorch's.

    Args:
        candidate: the file, opened.
        spec: the spec that was read back from the file.
        evidence: images and PyTorch's answers.
        limits: what it may differ by.
        made: how the file was made, for the record.
        reference: what computed the evidence, for the record.
        runtime: what runs the candidate, for the record.

    Raises:
        InvalidModelError: naming the worst image and the numbers.
    """
    logits, probabilities = _in_batches(model, reference_outputs.pixels, _ALL_AT_ONCE)
    if logits.shape != reference_outputs.logits.shape:
        raise InvalidModelError(f"the proof failed: it gives {logits.shape}, PyTorch {reference_outputs.logits.shape}")
    answers = [(logits, probabilities)]
    some = reference_outputs.pixels[:_IMAGES_PER_BATCH_SIZE]
    answers += [_in_batches(model, some, size) for size in BATCH_SIZES if size != _ALL_AT_ONCE]
    by_image = np.zeros(len(logits), np.float32)
    for each, _ in answers:
        of_these = np.abs(each - reference_outputs.logits[: len(each)]).max(axis=1)
        by_image[: len(each)] = np.maximum(by_image[: len(each)], of_these)
    worst_image = int(by_image.argmax())  # a NaN counts as the largest
    flips = _flips(answers, spec, reference_outputs, limits)
    accuracy = _accuracy(model, spec, reference_outputs)
    difference = float(by_image[worst_image])
    parity = Parity(
        precision=limits.precision,
        quantization=quantization,
        images=len(logits),
        batch_sizes=BATCH_SIZES,
        max_difference=difference,
        max_probability_difference=max(
            float(np.abs(each - reference_outputs.probabilities[: len(each)]).max()) for _, each in answers
        ),
        flipped=len(flips),
        worst_image=reference_outputs.names[worst_image],
        tolerance=_INT8_SLACK * difference if limits.tolerance is None else limits.tolerance,
        float64_images=len(reference_outputs.exact),
        difference_from_float64=float(
            np.abs(logits[: len(reference_outputs.exact)] - reference_outputs.exact).max(initial=0.0)
        ),
        rounding=reference_outputs.rounding,
        accuracy=accuracy,
        accuracy_images=len(reference_outputs.all_images),
        reference_accuracy=reference_outputs.accuracy,
        reference=reference,
        runtime=runtime,
    )
    _refuse_failed(parity, limits, flips)
    return parity


def _in_batches(model: OpenedModel, pixels: UInt8Array, size: int) -> tuple[Float32Array, Float32Array]:
    parts = [model.run(pixels[at : at + size]) for at in range(0, len(pixels), size)]
    logits, probabilities = zip(*parts, strict=True)
    return np.concatenate(logits), np.concatenate(probabilities)


def _flips(
    answers: Sequence[tuple[Float32Array, Float32Array]],
    spec: ModelSpec,
    reference_outputs: ReferenceOutputs,
    limits: Limits,
) -> dict[str, tuple[str, str]]:
    """Give the images with another label in some batch size: their names, its label, and PyTorch's.

    Where PyTorch's own two best logits are no further apart than the tolerance lets them move, either is right.
    """
    best_two = np.sort(reference_outputs.logits, axis=1)[:, -2:]
    # Labels in another order than the data's are no matter of rounding.
    undecided = (best_two[:, -1] - best_two[:, 0] <= 2 * (limits.tolerance or 0.0)) & (
        spec.labels == reference_outputs.labels
    )
    flips = {}
    for logits, _ in answers:
        for at, index in enumerate(logits.argmax(axis=1)):
            given, wanted = spec.labels[index], reference_outputs.labels[reference_outputs.logits[at].argmax()]
            if given != wanted and not undecided[at]:
                flips[reference_outputs.names[at]] = (given, wanted)
    return flips


def _accuracy(model: OpenedModel, spec: ModelSpec, reference_outputs: ReferenceOutputs) -> float:
    """Give the share of all held-out images whose label is right."""
    right = 0
    count = len(reference_outputs.all_images)
    orders = [np.arange(at, min(at + _ALL_AT_ONCE, count)) for at in range(0, count, _ALL_AT_ONCE)]
    for order, pixels in zip(orders, reference_outputs.all_images.pixels.batches(orders), strict=True):
        answers = model.run(pixels)[0].argmax(axis=1)
        truth = reference_outputs.all_images.targets[order]
        right += sum(
            spec.labels[answer] == reference_outputs.labels[target]
            for answer, target in zip(answers, truth, strict=True)
        )
    return right / count


def _refuse_failed(parity: Parity, limits: Limits, flips: dict[str, tuple[str, str]]) -> None:
    agreement = 1 - len(flips) / parity.images
    drop = 100 * (parity.reference_accuracy - parity.accuracy)
    # Written so that a NaN, which compares as false, fails.
    broadcast_buffers = parity.max_difference <= (math.inf if limits.tolerance is None else limits.tolerance)
    broadcast_buffers = broadcast_buffers and parity.max_probability_difference <= limits.probability_tolerance
    if broadcast_buffers and agreement >= limits.agreement and drop <= limits.max_drop + 1e-9:
        return
    example = ""
    if flips:
        name, (given, wanted) = next(iter(flips.items()))
        example = f", {name} for one is {given!r} there and {wanted!r} in PyTorch"
    allowed = "" if limits.tolerance is None else f" (tolerance {limits.tolerance:.2g})"
    raise InvalidModelError(
        f"the proof failed on {parity.worst_image}: a logit differs from PyTorch's by {parity.max_difference:.2g}, "
        f"a probability by {parity.max_probability_difference:.2g}{allowed}; "
        f"{len(flips)} of {parity.images} labels flipped{example}; accuracy {parity.accuracy:.2%} for "
        f"{parity.reference_accuracy:.2%}; no file was written"
    )
