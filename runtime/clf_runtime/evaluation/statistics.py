"""How certain an accuracy is, and whether two models differ."""

from __future__ import annotations

import math
from statistics import NormalDist

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson 1927).

    Unlike accuracy ± 1.96 standard errors, it never leaves 0..1, and it is not empty if all or no images are correct.

    Args:
        correct: How many images are classified correctly.
        total: How many images there are. Without any, nothing is known: the interval is (0, 1).

    Examples:
        >>> [round(end, 3) for end in wilson_interval(145, 153)]
        [0.9, 0.973]
    """
    if not total:
        return 0.0, 1.0
    share, spread = correct / total, _Z * _Z / total
    center = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread * spread / 4) / (1 + spread)
    # Rounding must not push an end that is exactly 0 or 1 to its other side.
    return (0.0 if correct == 0 else center - half), (1.0 if correct == total else center + half)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of the exact McNemar test (McNemar 1947): whether two models differ in accuracy.

    Images that both models classify correctly, or both wrongly, say nothing about the difference. If the models were
    equally good, each of the others would be a toss of a fair coin.

    Args:
        only_first: How many images only the first model classifies correctly.
        only_second: How many images only the second model classifies correctly.

    Examples:
        >>> round(mcnemar_p(2, 10), 4)
        0.0386
    """
    tosses = only_first + only_second
    ways, total = 1, 0  # integers: they are exact for any number of images
    for heads in range(min(only_first, only_second) + 1):
        total += ways
        ways = ways * (tosses - heads) // (heads + 1)
    return min(1.0, 2 * total / (1 << tosses))
