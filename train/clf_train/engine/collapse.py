"""Notice training that goes wrong while it runs: its accuracy collapses, or it never learns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from clf_runtime.evaluation.statistics import wilson_interval
from clf_train.data.dataset import Int64Array
from clf_train.history import Epoch
from clf_train.recipe import Recipe

# At its end, training with a learning rate that falls to zero is near its best; on 24 images, chance explains a tenth.
_LOST_SHARE = 0.2
# The learning rate rises for a quarter of the training, and a network may learn little before.
_MIN_EPOCHS_AT_CHANCE, _SHARE_AT_CHANCE = 3, 0.25


class CollapseMonitor:
    """Looks at the history after each epoch. Every comparison is one of 95 % intervals: 15 images prove little."""

    def __init__(self, train: Int64Array, validation: Int64Array, recipe: Recipe) -> None:
        """Store how many images there are, and the share of the largest class, which a constant answer reaches.

        Args:
            train: the classes (N,) of the training split.
            validation: the classes of the validation split, which may be empty.
            recipe: of the training.
        """
        self._images = len(train)
        self._validation_images = len(validation)
        self._chance = _share_of_largest_class(train)
        self._validation_chance = _share_of_largest_class(validation)
        self._rate = recipe.learning_rate
        self._epochs_at_chance = max(_MIN_EPOCHS_AT_CHANCE, math.ceil(_SHARE_AT_CHANCE * recipe.epochs))
        self._has_warned = False

    def check(self, history: Sequence[Epoch]) -> str | None:
        """Return a warning the first time that the training goes wrong, with advice."""
        problem = None if self._has_warned else self._find_fall(history) or self._find_chance(history)
        self._has_warned = self._has_warned or problem is not None
        return problem and f"{problem}; Ctrl-C stops the training"

    def conclude(self, history: Sequence[Epoch]) -> tuple[str, ...]:
        """Return what is wrong with the finished training."""
        problem = self._find_loss(history) or self._find_chance(history)
        return () if problem is None else (problem,)

    def _find_fall(self, history: Sequence[Epoch]) -> str | None:
        """Look for a validation accuracy of at most half of its best in two epochs on end: one may be an outlier."""
        best = _find_best(history[:-2])
        if best is None or not all(self._is_below(row, best, 0.5) for row in history[-2:]):
            return None
        return f"the {_format_fall(best, history[-1])}; {self._advise()}"

    def _find_loss(self, history: Sequence[Epoch]) -> str | None:
        """Look for a training that ended far below its best epoch."""
        best = _find_best(history[:-1])
        if best is None or not self._is_below(history[-1], best, 1 - _LOST_SHARE):
            return None
        return f"the {_format_fall(best, history[-1])} at the end; train again: {self._advise()}"

    def _find_chance(self, history: Sequence[Epoch]) -> str | None:
        """Look for several epochs on end that are no better than the answer that is always the largest class."""
        if len(history) < self._epochs_at_chance:
            return None
        recent = history[-self._epochs_at_chance :]
        if not all(self._is_at_chance(row) for row in recent):
            return None
        row = recent[-1]
        if self._learns(row):
            cause = "it memorizes training images only; check the labels with --preview"
        else:
            cause = f"the network learns nothing; check the labels with --preview, or {self._advise()}"
        if row.validation_accuracy is None:
            return f"the training accuracy stays at chance level ({row.train_accuracy:.1%}): {cause}"
        return (
            f"the validation accuracy stays at chance level ({row.validation_accuracy:.1%}, while "
            f"{self._validation_chance:.1%} of the images are of the largest class): {cause}"
        )

    def _is_below(self, row: Epoch, best: Epoch, share: float) -> bool:
        """Return whether the accuracy is at most this share of the best one, and not by chance."""
        accuracy, highest = row.validation_accuracy, best.validation_accuracy
        if accuracy is None or highest is None or accuracy > share * highest:
            return False
        images = self._validation_images
        return (
            wilson_interval(round(accuracy * images), images)[1] < wilson_interval(round(highest * images), images)[0]
        )

    def _is_at_chance(self, row: Epoch) -> bool:
        if row.validation_accuracy is None:
            return not self._learns(row)
        if row.validation_accuracy > self._validation_chance:
            return False
        # A network that learns on the training images may look bad on a few validation images.
        highest = self._interval(row.validation_accuracy)[1]
        return not self._learns(row) or highest < self._lowest_train_accuracy(row)

    def _learns(self, row: Epoch) -> bool:
        return self._lowest_train_accuracy(row) > self._chance

    def _lowest_train_accuracy(self, row: Epoch) -> float:
        return wilson_interval(round(row.train_accuracy * self._images), self._images)[0]

    def _interval(self, accuracy: float) -> tuple[float, float]:
        """Return the 95 % interval of a validation accuracy."""
        return wilson_interval(round(accuracy * self._validation_images), self._validation_images)

    def _advise(self) -> str:
        return f"try --learning-rate {self._rate / 10:g} (now {self._rate:g})"


def _share_of_largest_class(targets: Int64Array) -> float:
    return float(np.bincount(targets).max() / len(targets)) if len(targets) else 0.0


def _find_best(history: Sequence[Epoch]) -> Epoch | None:
    rows = [row for row in history if row.validation_accuracy is not None]
    return max(rows, key=lambda row: row.validation_accuracy or 0.0, default=None)


def _format_fall(best: Epoch, row: Epoch) -> str:
    return (
        f"validation accuracy fell from {best.validation_accuracy:.1%} (epoch {best.epoch}) "
        f"to {row.validation_accuracy:.1%} (epoch {row.epoch})"
    )
