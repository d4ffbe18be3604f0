"""Classes that are confused with each other, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from clf_train.data.dataset import Int64Array
from clf_train.data_quality.label_issues import LabelIssue

Advice = Literal["labels", "few", "overlap", "direction", "images"]

MIN_COUNT = 3  # fewer confusions may be chance

_LABEL_ISSUE_SHARE = 1 / 3
_FEW = 1 / 3  # of the images of the other class
_OVERLAP_SHARE = 0.15
_ONE_SIDED = 4  # times as many in one direction


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes and how often each is predicted as the other, out of fold."""

    first: int  # the class that is more often predicted as the other one
    second: int
    first_as_second: int
    second_as_first: int
    first_images: int
    second_images: int
    advice: Advice

    @property
    def count(self) -> int:
        """The confusions in both directions."""
        return self.first_as_second + self.second_as_first

    @property
    def share(self) -> float:
        """The confusions as a share of the images of both classes, 0..1."""
        return self.count / (self.first_images + self.second_images)


def rank_confused_pairs(
    predicted: Int64Array, targets: Int64Array, classes: int, issues: Sequence[LabelIssue]
) -> tuple[ConfusedPair, ...]:
    """Return the pairs of classes with at least three confusions, the most frequent first.

    Args:
        predicted: the classes (N,) predicted out of fold.
        targets: the given classes (N,).
        classes: how many there are.
        issues: the likely wrong labels.
    """
    wrong = np.flatnonzero(predicted != targets)
    counts = Counter(zip(targets[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    doubtful = Counter(frozenset((issue.given, issue.suggested)) for issue in issues)
    images = np.bincount(targets, minlength=classes).tolist()
    pairs = []
    for low, high in {(min(pair), max(pair)) for pair in counts}:
        # Of equal counts, the class that comes first in the labels.
        first, second = (low, high) if counts[low, high] >= counts[high, low] else (high, low)
        there, back = counts[first, second], counts[second, first]
        if there + back >= MIN_COUNT:
            numbers = (there, back, images[first], images[second])
            advice = _advise(*numbers, label_issues=doubtful[frozenset((first, second))])
            pairs.append(ConfusedPair(first, second, *numbers, advice))
    return tuple(sorted(pairs, key=lambda pair: (-pair.count, pair.first, pair.second)))


def _advise(there: int, back: int, first_images: int, second_images: int, label_issues: int) -> Advice:
    if label_issues >= _LABEL_ISSUE_SHARE * (there + back):
        return "labels"
    if first_images <= _FEW * second_images:
        return "few"
    if (there + back) / (first_images + second_images) >= _OVERLAP_SHARE:
        return "overlap"
    return "direction" if there >= _ONE_SIDED * max(back, 1) else "images"
