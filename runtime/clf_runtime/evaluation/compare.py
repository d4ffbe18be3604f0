"""Compare two models on the same images."""

from __future__ import annotations

import numpy as np

from clf_runtime.evaluation.labels import fold_label
from clf_runtime.evaluation.results import Change, Comparison, ModelResult
from clf_runtime.evaluation.selection import EvalImages
from clf_runtime.evaluation.statistics import mcnemar_p


def compare(first: ModelResult, second: ModelResult, images: EvalImages) -> Comparison:
    """Compare the predictions of two models for the images that both scored."""
    both, in_first, in_second = np.intersect1d(
        first.positions, second.positions, assume_unique=True, return_indices=True
    )
    first_correct, second_correct = first.scored.correct[in_first], second.scored.correct[in_second]
    only_first, only_second = int((first_correct & ~second_correct).sum()), int((second_correct & ~first_correct).sum())
    changes = []
    for row, position in enumerate(both.tolist()):
        labels = (
            first.labels[int(first.scored.predicted[in_first[row]])],
            second.labels[int(second.scored.predicted[in_second[row]])],
        )
        if labels[0] != labels[1] and fold_label(labels[0]) != fold_label(labels[1]):
            correct = bool(first_correct[row]), bool(second_correct[row])
            changes.append(Change(str(images.files[position]), images.labels[position], *labels, *correct))
    return Comparison(
        first.name,
        second.name,
        len(both),
        only_first,
        only_second,
        mcnemar_p(only_first, only_second),
        tuple(changes),
    )
