"""Whether the state in a checkpoint is one of this training run.

Whoever can write a checkpoint can write its digest, so its content may be anything; PyTorch finds some of it only in
the next step, and some never.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from clf_train.history import Epoch

_COLUMNS = {field.name for field in fields(Epoch)}
_NUMBERS = (int, float, type(None))
_KEPT_BY = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}


def raise_if_foreign(
    state: Mapping[str, Any], own: Mapping[str, Any], optimizer: torch.optim.Optimizer, steps: int
) -> None:
    """Compare a state with that of the trainer that is to continue from it.

    Args:
        state: what a checkpoint contains.
        own: the state of the trainer, at any step.
        optimizer: of the trainer.
        steps: of the complete training run.

    Raises:
        ValueError: the message names the first part that does not fit.
    """
    for name, expected in own.items():
        if name not in state:
            raise ValueError(f"it has no {name}")
        found = state[name]
        if name == "step":
            fits = type(found) is int and 0 <= found <= steps
        elif name == "history":
            fits = isinstance(found, list) and all(map(_is_epoch, found))
        elif name == "optimizer":
            fits = _fits_optimizer(found, optimizer)
        else:
            fits = _is_like(found, expected)
        if not fits:
            raise ValueError(f"its {name} is another one")


def _is_epoch(row: object) -> bool:
    return isinstance(row, dict) and row.keys() == _COLUMNS and all(isinstance(row[name], _NUMBERS) for name in row)


def _fits_optimizer(found: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Return whether there are the same groups of parameters, and for each parameter tensors of its shape."""
    if not isinstance(found, dict) or not isinstance(found.get("state"), dict):
        return False
    own_groups, groups = optimizer.state_dict()["param_groups"], found.get("param_groups")
    if not isinstance(groups, list) or len(groups) != len(own_groups):
        return False
    if not all(_fits_group(group, own) for group, own in zip(groups, own_groups, strict=True)):
        return False
    parameters = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
    return all(
        index in parameters and _fits_parameter(kept, parameters[index], _KEPT_BY[type(optimizer)])
        for index, kept in found["state"].items()
    )


def _fits_group(group: Any, own: Mapping[str, Any]) -> bool:
    return _is_like(group, own) and bool(group["params"] == own["params"])


def _fits_parameter(kept: Any, parameter: Tensor, names: set[str]) -> bool:
    shapes = (parameter.shape, ())
    return (
        isinstance(kept, dict)
        and kept.keys() == names
        and all(value is None or (isinstance(value, Tensor) and value.shape in shapes) for value in kept.values())
    )


def _is_like(found: Any, own: Any) -> bool:
    """Return whether values are nested as others, with tensors of the same shapes."""
    if isinstance(own, Tensor):
        return isinstance(found, Tensor) and found.shape == own.shape and found.dtype == own.dtype
    if isinstance(own, Mapping):
        return (
            isinstance(found, Mapping)
            and found.keys() == own.keys()
            and all(_is_like(found[name], own[name]) for name in own)
        )
    if isinstance(own, (list, tuple)):
        return isinstance(found, (list, tuple)) and len(found) == len(own) and all(map(_is_like, found, own))
    return isinstance(found, _NUMBERS) if isinstance(own, _NUMBERS) else type(found) is type(own)
