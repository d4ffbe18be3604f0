"""The parity check: an exported file against eager PyTorch, on real images of the test split.

It has four levels: the graph alone, beside float64, which separates rounding from errors; every batch size; the path
from the bytes of image files to probabilities, with torchvision's own transforms on PyTorch's side; and the accuracy on
the entire test split. A file that fails at one level is not written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from clf_export.exporters.exporter import OpenedModel
from clf_export.parity.limits import TOLERANCE, Limits
from clf_export.parity.reference_outputs import ReferenceOutputs
from clf_runtime.errors import InvalidModelError
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import Float32Array

BATCH_SIZES = (1, 2, 7, 32)

_FULL_BATCH = 32
_IMAGES_PER_BATCH_SIZE = 128
# INT8 is checked by labels and accuracy. Another processor's float32 parts may round a quantized value the other way,
# so the tolerance of its self-test is the difference found here with this much slack.
_INT8_SLACK = 1.5


class ParityError(InvalidModelError):
    """A file's answers differ too much from PyTorch's, or from those of the file that was verified."""


@dataclass(frozen=True)
class Parity:
    """The result of a parity check, as it is written to `clf.parity` in the file and to export.json."""

    precision: str
    quantization: str  # the config, where one was chosen
    images: int  # that were compared from their bytes on
    batch_sizes: tuple[int, ...]
    max_difference: float  # of a logit, over all images, classes and batch sizes
    max_probability_difference: float
    flipped: int  # images with another label than PyTorch's
    worst_image: str  # the image with the largest difference
    tolerance: float  # the difference of a logit up to which another machine passes the self-test
    float64_images: int  # that were also computed in float64
    difference_from_float64: float  # of this file's logits
    rounding: float  # PyTorch's own difference from float64
    accuracy: float  # of this file, on the test split
    accuracy_images: int
    reference_accuracy: float  # of PyTorch, on the test split
    reference: str
    runtime: str

    def record(self) -> dict[str, Any]:
        """Return what is written as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Answers:
    """Logits and probabilities, float32 (N, classes) each, of the first N reference images."""

    logits: Float32Array
    probabilities: Float32Array


@dataclass(frozen=True)
class _Flip:
    """An image with another label than PyTorch's."""

    image: str
    label: str
    reference_label: str


def check_parity(
    model: OpenedModel, reference_outputs: ReferenceOutputs, limits: Limits, quantization: str = ""
) -> Parity:
    """Compare a file's answers with PyTorch's.

    Args:
        model: the file, opened.
        reference_outputs: the images, and PyTorch's answers for them.
        limits: how far the file's answers may differ.
        quantization: how the file was quantized, for the record.

    Raises:
        ParityError: the answers differ too much; the message names the worst image and the numbers.
    """
    runs = _run_all_batch_sizes(model, reference_outputs)
    logits = runs[0].logits
    differences = _largest_differences(runs, reference_outputs)
    worst = int(differences.argmax())  # a NaN counts as the largest
    flips = _find_flips(runs, model.spec.labels, reference_outputs, limits)
    exact = reference_outputs.float64_logits
    parity = Parity(
        precision=limits.precision,
        quantization=quantization,
        images=len(logits),
        batch_sizes=BATCH_SIZES,
        max_difference=float(differences[worst]),
        max_probability_difference=_largest_probability_difference(runs, reference_outputs),
        flipped=len(flips),
        worst_image=reference_outputs.names[worst],
        tolerance=_INT8_SLACK * float(differences[worst]) if limits.tolerance is None else limits.tolerance,
        float64_images=len(exact),
        difference_from_float64=float(np.abs(logits[: len(exact)] - exact).max(initial=0.0)),
        rounding=reference_outputs.rounding,
        accuracy=_measure_accuracy(model, reference_outputs, logits),
        accuracy_images=len(reference_outputs.all_images),
        reference_accuracy=reference_outputs.accuracy,
        reference=f"torch {torch.__version__}",
        runtime=model.runtime,
    )
    _raise_if_failed(parity, limits, flips)
    return parity


def run_batch(model: OpenedModel, reference_outputs: ReferenceOutputs) -> Answers:
    """Return the answers to one batch of the reference images."""
    return Answers(*model.run(reference_outputs.pixels[:_FULL_BATCH]))


def check_final_file(
    model: OpenedModel, metadata: Mapping[str, str], verified: Answers, reference_outputs: ReferenceOutputs
) -> None:
    """Compare a complete file, reopened, with the file that passed the parity check.

    Args:
        model: the complete file, opened. Its network is the same and so is the machine, so there is only rounding.
        metadata: what was written into it.
        verified: the other file's answers, by `run_batch`.
        reference_outputs: the images of that batch.

    Raises:
        ParityError: it has other metadata or other answers, or does not pass its own self-test.
    """
    if {key: model.metadata.get(key) for key in metadata} != metadata:
        raise ParityError("the final file does not carry the metadata written into it; no file was written")
    final = run_batch(model, reference_outputs)
    tolerance = TOLERANCE * max(1.0, float(np.abs(verified.logits).max()))
    difference = _difference(final.logits, verified.logits)
    probability_difference = _difference(final.probabilities, verified.probabilities)
    # Written so that a NaN, which compares as false, fails.
    if not (difference <= tolerance and probability_difference <= TOLERANCE):
        raise ParityError(
            f"the final file differs from the verified one: a logit by {difference:.2g} (tolerance {tolerance:.2g}), "
            f"a probability by {probability_difference:.2g} (tolerance {TOLERANCE:.2g}); no file was written"
        )
    result = model.run_self_test()
    if result is not None and not result.passed:
        raise ParityError(f"the final file does not pass its own self-test ({result}); no file was written")


def _difference(values: Float32Array, expected: Float32Array) -> float:
    return float(np.abs(values - expected).max()) if values.shape == expected.shape else math.inf


def _run_all_batch_sizes(model: OpenedModel, reference_outputs: ReferenceOutputs) -> list[Answers]:
    """Run all images in full batches, then some of them in batches of each other size."""
    answers = _run_in_batches(model, reference_outputs.pixels, _FULL_BATCH)
    if answers.logits.shape != reference_outputs.logits.shape:
        raise ParityError(
            f"the parity check failed: the logits have shape {answers.logits.shape}, "
            f"expected PyTorch's {reference_outputs.logits.shape}; no file was written"
        )
    some = reference_outputs.pixels[:_IMAGES_PER_BATCH_SIZE]
    return [answers, *(_run_in_batches(model, some, size) for size in BATCH_SIZES if size != _FULL_BATCH)]


def _run_in_batches(model: OpenedModel, pixels: UInt8Array, size: int) -> Answers:
    batches = [model.run(pixels[start : start + size]) for start in range(0, len(pixels), size)]
    logits, probabilities = zip(*batches, strict=True)
    return Answers(np.concatenate(logits), np.concatenate(probabilities))


def _largest_differences(runs: Sequence[Answers], reference_outputs: ReferenceOutputs) -> Float32Array:
    """Return the largest difference of a logit of each image, (N,), over all batch sizes."""
    largest = np.zeros(len(reference_outputs.logits), np.float32)
    for run in runs:
        count = len(run.logits)
        differences = np.abs(run.logits - reference_outputs.logits[:count]).max(axis=1)
        largest[:count] = np.maximum(largest[:count], differences)
    return largest


def _largest_probability_difference(runs: Sequence[Answers], reference_outputs: ReferenceOutputs) -> float:
    return max(
        float(np.abs(run.probabilities - reference_outputs.probabilities[: len(run.probabilities)]).max())
        for run in runs
    )


def _find_flips(
    runs: Sequence[Answers], labels: tuple[str, ...], reference_outputs: ReferenceOutputs, limits: Limits
) -> list[_Flip]:
    """Return the images with another label in some batch size; `labels` are those of the file.

    An image whose two best logits in PyTorch are within what the tolerance lets them move has no certain label, and is
    left out.
    """
    best_two = np.sort(reference_outputs.logits, axis=1)[:, -2:]
    # A different order of the labels is an error, however close the logits are.
    is_uncertain = (best_two[:, -1] - best_two[:, 0] <= 2 * (limits.tolerance or 0.0)) & (
        labels == reference_outputs.labels
    )
    flips: dict[int, _Flip] = {}
    for run in runs:
        for row, index in enumerate(run.logits.argmax(axis=1)):
            label = labels[index]
            reference_label = reference_outputs.labels[reference_outputs.logits[row].argmax()]
            if label != reference_label and not is_uncertain[row]:
                flips[row] = _Flip(reference_outputs.names[row], label, reference_label)
    return list(flips.values())


def _measure_accuracy(model: OpenedModel, reference_outputs: ReferenceOutputs, logits: Float32Array) -> float:
    """Return the share of the test split whose label is right.

    Args:
        model: the file, opened.
        reference_outputs: the test split, and the images that were compared.
        logits: the file's, (N, classes), of the images that were compared, in full batches. Where those are the test
            split, to the same pixels, they are not computed a second time.
    """
    images, compared = reference_outputs.all_images, reference_outputs.pixels
    count = len(images)
    batches = [np.arange(start, min(start + _FULL_BATCH, count)) for start in range(0, count, _FULL_BATCH)]
    right = 0
    for indices, pixels in zip(batches, images.pixels.batches(batches), strict=True):
        is_known = len(compared) == count and np.array_equal(pixels, compared[indices])
        answers = (logits[indices] if is_known else model.run(pixels)[0]).argmax(axis=1)
        right += sum(
            model.spec.labels[answer] == reference_outputs.labels[target]
            for answer, target in zip(answers, images.targets[indices], strict=True)
        )
    return right / count


def _raise_if_failed(parity: Parity, limits: Limits, flips: Sequence[_Flip]) -> None:
    agreement = 1 - len(flips) / parity.images
    drop = 100 * (parity.reference_accuracy - parity.accuracy)
    # Written so that a NaN, which compares as false, fails.
    is_close = parity.max_difference <= (math.inf if limits.tolerance is None else limits.tolerance)
    is_close = is_close and parity.max_probability_difference <= limits.probability_tolerance
    if is_close and agreement >= limits.min_agreement and drop <= limits.max_drop + 1e-9:
        return
    tolerance = "" if limits.tolerance is None else f" (tolerance {limits.tolerance:.2g})"
    example = "".join(f", such as {flip.image} ({flip.label!r}, not {flip.reference_label!r})" for flip in flips[:1])
    raise ParityError(
        f"the parity check failed on {parity.worst_image}: a logit differs from PyTorch's by "
        f"{parity.max_difference:.2g}, a probability by {parity.max_probability_difference:.2g}{tolerance}; "
        f"{len(flips)} of {parity.images} labels flipped{example}; accuracy {parity.accuracy:.2%}, "
        f"in PyTorch {parity.reference_accuracy:.2%}; no file was written"
    )
