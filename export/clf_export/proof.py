"""The proof: an exported file against eager PyTorch, on real held-out pictures, from their bytes on.

A file that fails it never gets its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from clf_export.reference import Reference
from clf_runtime.errors import ModelRefused
from clf_runtime.preprocess import UInt8Array, pixels_from_picture
from clf_runtime.session import Float32Array
from clf_runtime.spec import ModelSpec
from clf_train.dataset import Dataset

TOLERANCE = 1e-4  # of a logit, and of a probability
BATCH_SIZES = (1, 2, 7, 32)
_PICTURES = 1000


class Candidate(Protocol):
    """An exported file, opened as a device would open it."""

    def logits(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Give logits and probabilities, float32 (N, classes), for uint8 (N, height, width, channels)."""
        ...


@dataclass(frozen=True)
class Evidence:
    """The pictures that a proof is about, and what PyTorch says of them. The same for every format."""

    names: tuple[str, ...]
    encoded: tuple[bytes, ...]  # picture files
    labels: tuple[str, ...]  # the data's own class names, in the order of the network's outputs
    targets: tuple[int, ...]
    logits: Float32Array  # (N, classes)
    probabilities: Float32Array  # (N, classes)


@dataclass(frozen=True)
class Parity:
    """What was found; also what travels in the file as `clf.parity`, and in export.json."""

    pictures: int
    batch_sizes: tuple[int, ...]
    max_difference: float  # of a logit, over all pictures, classes and batch sizes
    max_probability_difference: float
    flipped: int  # pictures whose label is not the one that PyTorch gives
    worst: str  # the picture with the largest difference
    tolerance: float
    accuracy: float  # of the exported file on these pictures
    reference: str
    runtime: str

    def record(self) -> dict[str, Any]:
        """Give what is written as JSON."""
        return asdict(self)


def evidence_from_data(dataset: Dataset, reference: Reference) -> Evidence:
    """Take the held-out pictures, 1,000 spread over all where there are more, and ask PyTorch. Raises DataRefused."""
    count = min(_PICTURES, len(dataset.test))
    pictures = dataset.test.subset(np.unique(np.linspace(0, len(dataset.test) - 1, count).astype(int)).tolist())
    encoded = [pictures.encoded(index) for index in range(len(pictures))]
    logits = reference.logits(encoded)
    if not np.isfinite(logits).all():
        raise ModelRefused("the proof failed: PyTorch itself gives NaN or infinite logits; train again")
    return Evidence(
        names=pictures.names,
        encoded=tuple(encoded),
        labels=dataset.labels,
        targets=tuple(pictures.targets.tolist()),
        logits=logits,
        probabilities=reference.probabilities(logits),
    )


def prove(candidate: Candidate, spec: ModelSpec, evidence: Evidence, reference: str, runtime: str) -> Parity:
    """Compare a file's answers with PyTorch's, in every batch size.

    Args:
        candidate: the file, opened.
        spec: the spec that was read back from the file.
        evidence: pictures and PyTorch's answers.
        reference: what computed the evidence, for the record.
        runtime: what runs the candidate, for the record.

    Raises:
        ModelRefused: naming the worst picture and the numbers.
    """
    pixels = np.stack([pixels_from_picture(each, spec.preprocess) for each in evidence.encoded])
    answers = [_in_batches(candidate, pixels, size) for size in BATCH_SIZES]
    logits, probabilities = (np.stack(each) for each in zip(*answers, strict=True))  # (batch sizes, N, classes)
    if logits.shape[1:] != evidence.logits.shape:
        raise ModelRefused(f"the proof failed: it gives {logits.shape[1:]}, PyTorch {evidence.logits.shape}")
    by_picture = np.abs(logits - evidence.logits).max(axis=(0, 2))
    worst = int(by_picture.argmax())  # a NaN counts as the largest
    given = [[spec.labels[index] for index in row] for row in logits.argmax(axis=2)]
    wanted = [evidence.labels[index] for index in evidence.logits.argmax(axis=1)]
    truth = [evidence.labels[index] for index in evidence.targets]
    parity = Parity(
        pictures=len(pixels),
        batch_sizes=BATCH_SIZES,
        max_difference=float(by_picture[worst]),
        max_probability_difference=float(np.abs(probabilities - evidence.probabilities).max()),
        flipped=sum(any(row[at] != label for row in given) for at, label in enumerate(wanted)),
        worst=evidence.names[worst],
        tolerance=TOLERANCE,
        accuracy=_share_alike(given[0], truth),
        reference=reference,
        runtime=runtime,
    )
    _refuse_failed(parity, given, wanted, evidence.names)
    return parity


def _in_batches(candidate: Candidate, pixels: UInt8Array, size: int) -> tuple[Float32Array, Float32Array]:
    parts = [candidate.logits(pixels[at : at + size]) for at in range(0, len(pixels), size)]
    return np.concatenate([logits for logits, _ in parts]), np.concatenate(
        [probabilities for _, probabilities in parts]
    )


def _refuse_failed(parity: Parity, given: Sequence[Sequence[str]], wanted: Sequence[str], names: Sequence[str]) -> None:
    # Written so that a NaN, which compares as false, fails.
    alike = parity.max_difference <= TOLERANCE and parity.max_probability_difference <= TOLERANCE
    if alike and not parity.flipped:
        return
    example = ""
    if parity.flipped:
        at, label = next((at, row[at]) for at in range(len(names)) for row in given if row[at] != wanted[at])
        example = f", {names[at]} for one is {label!r} there and {wanted[at]!r} in PyTorch"
    raise ModelRefused(
        f"the proof failed on {parity.worst}: a logit differs from PyTorch's by {parity.max_difference:.2g}, "
        f"a probability by {parity.max_probability_difference:.2g} (tolerance {TOLERANCE:g}); "
        f"{parity.flipped} of {parity.pictures} labels flipped{example}; no file was written"
    )


def _share_alike(given: Sequence[str], truth: Sequence[str]) -> float:
    return sum(one == other for one, other in zip(given, truth, strict=True)) / len(truth)
