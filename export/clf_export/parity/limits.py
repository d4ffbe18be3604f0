"""How far the answers of an exported file may be from PyTorch's, for each precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from clf_export.parity.reference_outputs import ReferenceOutputs

TOLERANCE = 1e-4  # of a logit, and of a probability, in float32

# The share of images that must keep the label they have in float32. A network that is right for 80 % of them could
# answer the others differently without an accuracy drop, but it would be another network.
MIN_AGREEMENT = 0.95

# In deep networks, float32 sums in two orders of addition differ by more than TOLERANCE. The difference of PyTorch's
# own sums from float64 is the scale of that rounding: two orders may be twice as far apart.
_ROUNDINGS = 4.0
# float16 has 11 bits: 5e-4 of a number's size for each rounding, and many roundings reach a deep network's logit.
_FP16_TOLERANCE = 0.01
# Percentage points: the accuracy of float32 may change by one image, or by this much.
_FP32_MAX_DROP = 0.1


@dataclass(frozen=True)
class Limits:
    """How far a file's answers may differ from PyTorch's."""

    precision: str
    tolerance: float | None  # of a logit; None where only labels and accuracy are compared
    probability_tolerance: float
    min_agreement: float  # the share of labels that must be PyTorch's
    max_drop: float  # accuracy drop in percentage points


def limits_for(precision: str, reference_outputs: ReferenceOutputs, max_drop: float) -> Limits:
    """Return the limits of a precision.

    Args:
        precision: fp32, fp16 or int8.
        reference_outputs: whose scale and rounding the limits follow.
        max_drop: the accuracy drop in percentage points that fp16 and int8 may cost.
    """
    if precision == "int8":
        return Limits(precision, None, 1.0, MIN_AGREEMENT, max_drop)
    if precision == "fp16":
        scale = max(1.0, float(np.abs(reference_outputs.logits).max()))
        return Limits(precision, _FP16_TOLERANCE * scale, _FP16_TOLERANCE, MIN_AGREEMENT, max_drop)
    tolerance = max(TOLERANCE, _ROUNDINGS * reference_outputs.rounding)
    return Limits(precision, tolerance, tolerance, 1.0, max(_FP32_MAX_DROP, 100 / len(reference_outputs.all_images)))
