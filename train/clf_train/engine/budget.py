"""How deep and how long a pretrained network is fine-tuned in the time that is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from clf_train.recipe import Recipe


@dataclass(frozen=True)
class Depth:
    """Fine-tuning from one block on."""

    first_block: int
    relative_cost: float  # of a step, against the deepest one
    min_epochs: float  # with fewer, the next one is better


# Measured with EfficientNet-Lite0 on 2 cores; the deepest first.
DEPTHS = (Depth(3, 1.0, 3.0), Depth(9, 0.73, 2.0), Depth(12, 0.55, 0.8))
_MIN_EPOCHS = 0.1
MAX_EPOCHS = 30.0  # more change little on any of our data sets


def fit_to_budget(recipe: Recipe, epoch_s: float, seconds: float) -> Recipe:
    """Return the recipe with as many epochs as fit into a number of seconds.

    A pretrained network is trained from the deepest block on that leaves time for enough epochs; with less time than
    the shallowest one needs, it has 0 epochs.

    Args:
        recipe: of the training; one with a first block has that of the deepest fine-tuning.
        epoch_s: seconds of an epoch of this recipe.
        seconds: what is left for the training.
    """
    if recipe.first_block is None:
        return replace(recipe, epochs=_round(max(_MIN_EPOCHS, seconds / epoch_s)))
    for depth in DEPTHS:
        epochs = min(MAX_EPOCHS, seconds / (epoch_s * depth.relative_cost))
        if epochs >= depth.min_epochs:
            return replace(recipe, first_block=depth.first_block, epochs=_round(epochs))
    return replace(recipe, epochs=0.0)


def restore_recipe(recipe: Recipe, identity: Mapping[str, str]) -> Recipe:
    """Return the recipe with the epochs and the first block of a checkpoint, by its identity."""
    first_block = identity.get("first block", "None")
    return replace(
        recipe,
        epochs=float(identity.get("epochs", recipe.epochs)),
        first_block=None if first_block == "None" else int(first_block),
    )


def _round(epochs: float) -> float:
    return round(epochs, 2)
