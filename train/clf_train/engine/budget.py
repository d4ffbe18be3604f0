"""How deep and how long a pretrained network is fine-tuned in the time that is left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from clf_train.recipe import Recipe


@dataclass(frozen=True)
class Depth:
    """Fine-tuning from one block on."""

    first_block: int
    relative_cost: float  # of a step, against that of the recipe's own first block
    min_epochs: float  # with fewer, the next one is better


# Measured with EfficientNet-Lite0 on 2 cores; the deepest first, which is the recipe's own without a GPU.
# Of 648 clothing photos, 10 epochs from block 3 on recognize 92.0 %, 8 from block 9 on in half the time 92.6 %.
DEPTHS = (Depth(9, 1.0, 1.5), Depth(12, 0.76, 0.8))
_MIN_EPOCHS = 0.1


def fit_to_budget(recipe: Recipe, epoch_s: float, seconds: float) -> Recipe:
    """Return the recipe with as many epochs as fit into a number of seconds.

    A pretrained network whose own first block is that of `DEPTHS[0]` is trained from the earliest one that leaves time
    for enough epochs; with less time than the last one needs, it has 0 epochs. It never gets more epochs than without a
    budget: of 648 clothing photos, 92.7 % are recognized after 7 epochs, and 91.4 % after 20.

    Args:
        recipe: of the training.
        epoch_s: seconds of an epoch of this recipe.
        seconds: what is left for the training.
    """
    if recipe.first_block is None:
        return replace(recipe, epochs=_round(max(_MIN_EPOCHS, seconds / epoch_s)))
    is_measured = recipe.first_block == DEPTHS[0].first_block
    for depth in DEPTHS if is_measured else (Depth(recipe.first_block, 1.0, _MIN_EPOCHS),):
        epochs = min(recipe.epochs, seconds / (epoch_s * depth.relative_cost))
        if epochs >= depth.min_epochs:
            return replace(recipe, first_block=depth.first_block, epochs=_round(epochs))
    return replace(recipe, epochs=0.0)


def restore_recipe(recipe: Recipe, identity: Mapping[str, str]) -> Recipe:
    """Return the recipe with what a budget chose for a checkpoint, by its identity."""
    first_block = identity.get("first block", "None")
    try:
        epochs = float(identity.get("epochs", recipe.epochs))
        block = None if first_block == "None" else int(first_block)
    except ValueError:
        return recipe  # of another training run, which is reported when the two are compared
    return replace(recipe, epochs=epochs, first_block=block) if 0 <= epochs < math.inf else recipe


def _round(epochs: float) -> float:
    return round(epochs, 2)
