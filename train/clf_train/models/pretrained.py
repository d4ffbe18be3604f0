"""Tell a network that starts from weights from one that starts from random numbers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from clf_train.models.factory import build_model
from clf_train.models.networks import Shape


def loads_own_weights(architecture: str, shape: Shape, classes: int) -> bool:
    """Return whether a user's factory loads weights by itself: then most of them are the same whatever the seed.

    The head of a pretrained network is usually new, and biases and normalization start from constants, so what counts
    is the share of the values in matrices and convolutions. A factory that sets its own seed counts as pretrained,
    too: a low learning rate costs such a network some accuracy, a high one would cost a pretrained network everything.

    Raises:
        InvalidModelError: the factory failed.
    """
    with torch.random.fork_rng(devices=()):
        first, second = (_build_with_seed(seed, architecture, shape, classes).state_dict() for seed in (1, 2))
    names = [name for name, value in first.items() if value.ndim > 1 and not isinstance(value, UninitializedParameter)]
    same = sum(first[name].numel() for name in names if name in second and torch.equal(first[name], second[name]))
    total = sum(first[name].numel() for name in names)
    return bool(2 * same > total)


def _build_with_seed(seed: int, architecture: str, shape: Shape, classes: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(architecture, shape, classes)
