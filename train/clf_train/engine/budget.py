"""How deep and how long a pretrained network is fine-tuned in the time that is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from clf_train.recipe import Recipe


@dataclass(frozen=True)
class Depth:
    """Fine-tuning from one block on."""

    first_block: int
    relative_cost: float  # of a step, against that of the recipe's own first block
    relative_rate: float  # the learning rate, likewise: what is trained deeply forgets more
    min_epochs: float  # with fewer, the next one is better


# Measured with EfficientNet-Lite0 on 2 cores; the deepest first, and the recipe's own second.
DEPTHS = (Depth(3, 1.38, 0.5, 8.0), Depth(9, 1.0, 1.0, 1.5), Depth(12, 0.76, 1.0, 0.8))
_MIN_EPOCHS = 0.1
MAX_EPOCHS = 30.0  # more change little on any of our data sets


def fit_to_budget(recipe: Recipe, epoch_s: float, seconds: float) -> Recipe:
    """Return the recipe with as many epochs as fit into a number of seconds.

    A pretrained network is trained from the deepest block on that leaves time for enough epochs; with less time than
    the shallowest one needs, it has 0 epochs.

    Args:
        recipe: of the training.
        epoch_s: seconds of an epoch of this recipe.
        seconds: what is left for the training.
    """
    if recipe.first_block is None:
        return replace(recipe, epochs=_round(max(_MIN_EPOCHS, seconds / epoch_s)))
    for depth in DEPTHS:
        epochs = min(MAX_EPOCHS, seconds / (epoch_s * depth.relative_cost))
        if epochs >= depth.min_epochs:
            return replace(
                recipe,
                first_block=depth.first_block,
                epochs=_round(epochs),
                learning_rate=recipe.learning_rate * depth.relative_rate,
            )
    return replace(recipe, epochs=0.0)


def restore_recipe(recipe: Recipe, identity: Mapping[str, str]) -> Recipe:
    """Return the recipe with what a budget chose for a checkpoint, by its identity."""
    first_block = identity.get("first block", "None")
    return replace(
        recipe,
        epochs=float(identity.get("epochs", recipe.epochs)),
        first_block=None if first_block == "None" else int(first_block),
        learning_rate=float(identity.get("learning rate", recipe.learning_rate)),
    )


def _round(epochs: float) -> float:
    return round(epochs, 2)
