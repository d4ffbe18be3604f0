"""Weights from a file: a state_dict, a checkpoint that holds one, or safetensors; and what does not fit, told shortly.

A pickle is code. It is only ever read with `weights_only=True`: tensors and plain values, nothing that runs.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from clf_runtime.errors import InvalidModelError
from clf_train.config import DEFAULT_WEIGHTS
from clf_train.models.factory import build, build_pretrained
from clf_train.models.networks import Shape

StateDict = dict[str, Tensor]

# Where training scripts put the state_dict inside a checkpoint.
_INSIDE = ("state_dict", "model_state_dict", "model")
# What DataParallel and torch.compile put before every name.
_WRAPPERS = ("module.", "_orig_mod.")
_SHOWN = 3


def initial_model(architecture: str, weights: str | None, shape: Shape, classes: int) -> nn.Module:
    """Build a network to train: fresh, with torchvision's weights, or with a file's and a head that may be new.

    Raises InvalidModelError, MachineError.
    """
    if weights == DEFAULT_WEIGHTS:
        return build_pretrained(architecture, classes)
    model = build(architecture, shape, classes)
    if weights is not None:
        load_weights(model, Path(weights), new_head=True)
    return model


def load_weights(model: nn.Module, path: Path, new_head: bool = False) -> None:
    """Load a file's weights into a network.

    Args:
        model: takes them in place.
        path: a state_dict, a checkpoint with one inside, or safetensors.
        new_head: leave the last layer fresh where its shape is another one: it was trained for other classes.

    Raises:
        InvalidModelError: naming what is missing, unexpected or of another shape.
    """
    wanted = model.state_dict()
    given = _aligned(_state_dict(path), wanted)
    differing = [name for name in given if name in wanted and given[name].shape != wanted[name].shape]
    if new_head and set(differing) <= _head(model):
        given |= {name: wanted[name] for name in differing}
        differing = []
    # A counter that old checkpoints lack and that inference never reads.
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    faults = [
        _listed("missing", missing),
        _listed("unexpected", unexpected),
        _listed(
            "of another shape",
            [f"{name} {_shape(given[name])} for {_shape(wanted[name])}" for name in differing],
        ),
    ]
    if any(faults):
        raise InvalidModelError(
            f"{path}: refused: not the weights of this model: {'; '.join(filter(None, faults))}; name another --model"
        )
    model.load_state_dict(given, strict=False)


def _head(model: nn.Module) -> set[str]:
    last = [name for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))][-1]
    return {f"{last}.weight", f"{last}.bias"}


def _state_dict(path: Path) -> StateDict:
    content = _content(path)
    for key in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise InvalidModelError(f"{path}: refused: it holds {_named(content)}; expected a state_dict")
    odd = [f"{name} is {_named(value)}" for name, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise InvalidModelError(
            f"{path}: refused: no state_dict: {_listed('no tensors', odd)}; save model.state_dict()"
        )
    return {str(name): value for name, value in content.items()}


def _content(path: Path) -> object:
    if not path.is_file():
        raise InvalidModelError(f"{path}: no such file; expected a state_dict's, or safetensors")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InvalidModelError(f"{path}: refused: no safetensors file ({_reason(error)})") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidModelError(
            f"{path}: refused: it holds more than tensors and plain values, and was not run "
            f"({_reason(error)}); save model.state_dict() alone"
        ) from None
    except Exception as error:  # damage makes the reader raise nearly anything
        raise InvalidModelError(f"{path}: refused: no file of torch.save ({_reason(error)})") from None


def _aligned(given: StateDict, wanted: Mapping[str, Tensor]) -> StateDict:
    """Strip what wrappers put before the names, and one prefix that all names have on one side only."""
    for wrapper in (*_WRAPPERS, *_WRAPPERS):
        if all(name.startswith(wrapper) for name in given):
            given = {name.removeprefix(wrapper): value for name, value in given.items()}
    ours, theirs = _prefix(wanted), _prefix(given)
    if set(given) & set(wanted) or ours == theirs:
        return given
    if theirs and {name.removeprefix(theirs) for name in given} & set(wanted):
        return {name.removeprefix(theirs): value for name, value in given.items()}
    if ours and {f"{ours}{name}" for name in given} & set(wanted):
        return {f"{ours}{name}": value for name, value in given.items()}
    return given


def _prefix(names: Mapping[str, Tensor]) -> str:
    firsts = {name.partition(".")[0] for name in names}
    return f"{firsts.pop()}." if len(firsts) == 1 else ""


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what}: {', '.join(names[:_SHOWN])}{more}"


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"


def _named(value: object) -> str:
    return f"a {type(value).__name__}"


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160]
