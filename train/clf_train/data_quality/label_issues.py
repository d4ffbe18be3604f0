"""Likely wrong labels, found by confident learning (Northcutt, Jiang & Chuang 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clf_train.data.dataset import Int64Array
from clf_train.engine.features import Float32Array

# A class with fewer images than folds has folds whose probe never saw it.
MIN_IMAGES = 5


@dataclass(frozen=True)
class LabelIssue:
    """An image whose label is likely wrong."""

    index: int  # of the image
    given: int  # its class
    suggested: int  # the class it likely has
    given_probability: float  # out of fold
    suggested_probability: float

    @property
    def margin(self) -> float:
        """The normalized margin, -1..1: the lower, the likelier the label is wrong."""
        return self.given_probability - self.suggested_probability


def find_label_issues(probabilities: Float32Array, targets: Int64Array) -> tuple[LabelIssue, ...]:
    """Return the likely wrong labels, the likeliest first.

    A class's threshold is the mean probability of that class among the images labeled with it. An image belongs
    confidently to the most probable class that reaches its threshold. If that is another class than its label, it is an
    off-diagonal count of the confident joint. The images are ranked by normalized margin.

    Args:
        probabilities: out of fold, (N, classes).
        targets: the given classes (N,).
    """
    counts = np.bincount(targets, minlength=probabilities.shape[1])
    thresholds = np.full(probabilities.shape[1], np.inf, dtype=np.float32)
    for target in np.flatnonzero(counts >= MIN_IMAGES):
        thresholds[target] = probabilities[targets == target, target].mean()
    confident = np.where(probabilities >= thresholds, probabilities, -1)
    suggested = confident.argmax(axis=1)
    rows = np.arange(len(targets))
    is_issue = (confident[rows, suggested] >= 0) & (suggested != targets) & (counts[targets] >= MIN_IMAGES)
    issues = [
        LabelIssue(
            index,
            int(targets[index]),
            int(suggested[index]),
            float(probabilities[index, targets[index]]),
            float(probabilities[index, suggested[index]]),
        )
        for index in np.flatnonzero(is_issue).tolist()
    ]
    return tuple(sorted(issues, key=lambda issue: issue.margin))
