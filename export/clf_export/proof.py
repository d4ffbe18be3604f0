"""The proof: an exported file against eager PyTorch, on real held-out pictures.

At four levels: the graph alone, beside float64, which tells rounding from error; every batch size; from the bytes of
picture files to probabilities, with torchvision's own transforms on PyTorch's side; and the accuracy over every
held-out picture. A file that fails one never gets its name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from clf_export.choosing import AGREEMENT_FLOOR
from clf_export.evidence import Evidence
from clf_runtime.errors import ModelRefused
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
_PICTURES_PER_BATCH_SIZE = 128
_ALL_AT_ONCE = 32


class Candidate(Protocol):
    """An exported file, opened as a device would open it."""

    def logits(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
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
    made: str  # how, where there was a choice
    pictures: int  # from their bytes on
    batch_sizes: tuple[int, ...]
    max_difference: float  # of a logit, over all pictures, classes and batch sizes
    max_probability_difference: float
    flipped: int  # pictures whose label is not the one that PyTorch gives
    worst: str  # the picture with the largest difference
    tolerance: float  # the difference of a logit up to which another machine gives the same answer
    graph_pictures: int  # also computed in float64
    difference_from_float64: float  # of this file's logits
    rounding: float  # of PyTorch's own, in float32
    accuracy: float  # of the exported file, on every held-out picture
    accuracy_pictures: int
    accuracy_of_pytorch: float  # likewise
    reference: str
    runtime: str

    def record(self) -> dict[str, Any]:
        """Give what is written as JSON."""
        return asdict(self)


def limits_for(precision: str, evidence: Evidence, max_drop: float) -> Limits:
    """Give what a file of this precision may differ by; `max_drop` in percentage points."""
    if precision == "int8":
        return Limits(precision, None, 1.0, AGREEMENT_FLOOR, max_drop)
    if precision == "fp16":
        scale = max(1.0, float(np.abs(evidence.logits).max()))
        return Limits(precision, _FP16_TOLERANCE * scale, _FP16_TOLERANCE, AGREEMENT_FLOOR, max_drop)
    tolerance = max(TOLERANCE, _ROUNDINGS * evidence.rounding)
    return Limits(precision, tolerance, tolerance, 1.0, max_drop=max(0.1, 100 / len(evidence.whole)))


def prove(
    candidate: Candidate, spec: ModelSpec, evidence: Evidence, limits: Limits, made: str, reference: str, runtime: str
) -> Parity:
    """Compare a file's answers with PyTorch's.

    Args:
        candidate: the file, opened.
        spec: the spec that was read back from the file.
        evidence: pictures and PyTorch's answers.
        limits: what it may differ by.
        made: how the file was made, for the record.
        reference: what computed the evidence, for the record.
        runtime: what runs the candidate, for the record.

    Raises:
        ModelRefused: naming the worst picture and the numbers.
    """
    logits, probabilities = _in_batches(candidate, evidence.pixels, _ALL_AT_ONCE)
    if logits.shape != evidence.logits.shape:
        raise ModelRefused(f"the proof failed: it gives {logits.shape}, PyTorch {evidence.logits.shape}")
    answers = [(logits, probabilities)]
    some = evidence.pixels[:_PICTURES_PER_BATCH_SIZE]
    answers += [_in_batches(candidate, some, size) for size in BATCH_SIZES if size != _ALL_AT_ONCE]
    by_picture = np.zeros(len(logits), np.float32)
    for each, _ in answers:
        of_these = np.abs(each - evidence.logits[: len(each)]).max(axis=1)
        by_picture[: len(each)] = np.maximum(by_picture[: len(each)], of_these)
    worst = int(by_picture.argmax())  # a NaN counts as the largest
    flips = _flips(answers, spec, evidence, limits)
    accuracy = _accuracy(candidate, spec, evidence)
    difference = float(by_picture[worst])
    parity = Parity(
        precision=limits.precision,
        made=made,
        pictures=len(logits),
        batch_sizes=BATCH_SIZES,
        max_difference=difference,
        max_probability_difference=max(
            float(np.abs(each - evidence.probabilities[: len(each)]).max()) for _, each in answers
        ),
        flipped=len(flips),
        worst=evidence.names[worst],
        tolerance=_INT8_SLACK * difference if limits.tolerance is None else limits.tolerance,
        graph_pictures=len(evidence.exact),
        difference_from_float64=float(np.abs(logits[: len(evidence.exact)] - evidence.exact).max(initial=0.0)),
        rounding=evidence.rounding,
        accuracy=accuracy,
        accuracy_pictures=len(evidence.whole),
        accuracy_of_pytorch=evidence.accuracy,
        reference=reference,
        runtime=runtime,
    )
    _refuse_failed(parity, limits, flips)
    return parity


def _in_batches(candidate: Candidate, pixels: UInt8Array, size: int) -> tuple[Float32Array, Float32Array]:
    parts = [candidate.logits(pixels[at : at + size]) for at in range(0, len(pixels), size)]
    logits, probabilities = zip(*parts, strict=True)
    return np.concatenate(logits), np.concatenate(probabilities)


def _flips(
    answers: Sequence[tuple[Float32Array, Float32Array]], spec: ModelSpec, evidence: Evidence, limits: Limits
) -> dict[str, tuple[str, str]]:
    """Give the pictures with another label in some batch size: their names, its label, and PyTorch's.

    Where PyTorch's own two best logits are no further apart than the tolerance lets them move, either is right.
    """
    best_two = np.sort(evidence.logits, axis=1)[:, -2:]
    # Labels in another order than the data's are no matter of rounding.
    undecided = (best_two[:, -1] - best_two[:, 0] <= 2 * (limits.tolerance or 0.0)) & (spec.labels == evidence.labels)
    flips = {}
    for logits, _ in answers:
        for at, index in enumerate(logits.argmax(axis=1)):
            given, wanted = spec.labels[index], evidence.labels[evidence.logits[at].argmax()]
            if given != wanted and not undecided[at]:
                flips[evidence.names[at]] = (given, wanted)
    return flips


def _accuracy(candidate: Candidate, spec: ModelSpec, evidence: Evidence) -> float:
    """Give the share of all held-out pictures whose label is right."""
    right = 0
    count = len(evidence.whole)
    orders = [np.arange(at, min(at + _ALL_AT_ONCE, count)) for at in range(0, count, _ALL_AT_ONCE)]
    for order, pixels in zip(orders, evidence.whole.pixels.batches(orders), strict=True):
        answers = candidate.logits(pixels)[0].argmax(axis=1)
        truth = evidence.whole.targets[order]
        right += sum(
            spec.labels[answer] == evidence.labels[target] for answer, target in zip(answers, truth, strict=True)
        )
    return right / count


def _refuse_failed(parity: Parity, limits: Limits, flips: dict[str, tuple[str, str]]) -> None:
    agreement = 1 - len(flips) / parity.pictures
    drop = 100 * (parity.accuracy_of_pytorch - parity.accuracy)
    # Written so that a NaN, which compares as false, fails.
    alike = parity.max_difference <= (math.inf if limits.tolerance is None else limits.tolerance)
    alike = alike and parity.max_probability_difference <= limits.probability_tolerance
    if alike and agreement >= limits.agreement and drop <= limits.max_drop + 1e-9:
        return
    example = ""
    if flips:
        name, (given, wanted) = next(iter(flips.items()))
        example = f", {name} for one is {given!r} there and {wanted!r} in PyTorch"
    allowed = "" if limits.tolerance is None else f" (tolerance {limits.tolerance:.2g})"
    raise ModelRefused(
        f"the proof failed on {parity.worst}: a logit differs from PyTorch's by {parity.max_difference:.2g}, "
        f"a probability by {parity.max_probability_difference:.2g}{allowed}; "
        f"{len(flips)} of {parity.pictures} labels flipped{example}; accuracy {parity.accuracy:.2%} for "
        f"{parity.accuracy_of_pytorch:.2%}; no file was written"
    )
