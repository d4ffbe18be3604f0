"""Is my data good enough? Everything that the features of a pretrained network say about labeled images."""

from __future__ import annotations

from dataclasses import dataclass

from clf_train.data_quality.confusions import ConfusedPair, rank_confused_pairs
from clf_train.data_quality.duplicates import DuplicatePair, find_duplicates, group_duplicates
from clf_train.data_quality.label_issues import LabelIssue, find_label_issues
from clf_train.data_quality.learning_curve import LearningCurve, measure_learning_curve
from clf_train.data_quality.out_of_fold import assign_folds, count_fitted, predict_out_of_fold
from clf_train.data_quality.outliers import Outlier, find_outliers
from clf_train.data_quality.pool import ImagePool

# The probabilities of so many take 200 MB.
MAX_PROBABILITIES = 50_000_000


@dataclass(frozen=True)
class DataQuality:
    """What was found; indices are those of the pool."""

    label_issues: tuple[LabelIssue, ...]  # the likeliest first
    duplicates: tuple[DuplicatePair, ...]  # the most similar first
    outliers: tuple[Outlier, ...]  # the farthest first
    confused_pairs: tuple[ConfusedPair, ...]  # the most frequent first
    learning_curve: LearningCurve | None  # None if there are too few images


def analyze(pool: ImagePool) -> DataQuality | None:
    """Analyze labeled images by their features; return None if there are too many images and classes for it."""
    if len(pool) * pool.classes > MAX_PROBABILITIES:
        return None
    duplicates = find_duplicates(pool.features, pool.hashes)
    # A copy outside its fold would vouch for a wrong label.
    folds = assign_folds(pool.targets, group_duplicates(len(pool), duplicates))
    probabilities = predict_out_of_fold(pool, folds, count_fitted(len(pool)))
    issues = find_label_issues(probabilities, pool.targets)
    return DataQuality(
        label_issues=issues,
        duplicates=duplicates,
        outliers=find_outliers(pool.features),
        confused_pairs=rank_confused_pairs(probabilities.argmax(axis=1), pool.targets, pool.classes, issues),
        learning_curve=measure_learning_curve(pool, folds, probabilities),
    )
