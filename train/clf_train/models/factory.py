"""From a name to a network: one of ours or of a tutorial, one of torchvision, or a factory of the user's own."""

from __future__ import annotations

import contextlib
import inspect
import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from torch import nn

from clf_runtime.errors import InvalidModelError, MachineError
from clf_runtime.spec import ModelSpec
from clf_train.models.networks import Shape
from clf_train.registry import MODELS, TORCHVISION, model_row


def build_from_spec(spec: ModelSpec) -> nn.Module:
    """Build the untrained network that a spec names. Raises InvalidModelError."""
    return build(spec.architecture, spec.preprocess.shape, len(spec.labels))


def build(architecture: str, shape: Shape, classes: int) -> nn.Module:
    """Build the network of this name for images of (H, W, C), with fresh weights from torch's own seed.

    Raises InvalidModelError.
    """
    row = model_row(architecture)
    if row is not None:
        module, _, factory = row.factory.partition(":")
        model: nn.Module = getattr(import_module(module), factory)(shape, classes)
        return model
    if architecture in TORCHVISION:
        return _torchvision(architecture, shape, classes)
    if ":" in architecture:
        return _from_factory(architecture, classes)
    known = ", ".join(row.name for row in MODELS)
    raise InvalidModelError(
        f"model {architecture!r}: unknown here; expected one of {known}, a classifier of torchvision.models, "
        "or package.module:factory"
    )


def build_pretrained(architecture: str, classes: int) -> nn.Module:
    """Build a network of torchvision with its default weights, and a fresh head for other classes.

    torchvision's own loader downloads them once and keeps them. Raises InvalidModelError, MachineError.
    """
    from torchvision.models import get_model

    if architecture not in TORCHVISION:
        raise InvalidModelError(
            f"model {architecture!r}: has no weights to load; expected a classifier of torchvision.models"
        )
    try:
        with _tensors_only():
            model: nn.Module = get_model(architecture, weights="DEFAULT")
    except pickle.UnpicklingError as error:
        raise InvalidModelError(
            f"{architecture}: refused: its weights hold more than tensors, and were not run "
            f"({' '.join(str(error).split())[:160]}); clear torch's download folder"
        ) from None
    except OSError as error:
        raise MachineError(
            f"{architecture}: its weights could not be downloaded ({' '.join(str(error).split())}); download "
            "them where there is a network, and name the file with --weights"
        ) from None
    _simplify(model)
    return replace_head(model, classes)


def replace_head(model: nn.Module, classes: int) -> nn.Module:
    """Replace the last layer of a torchvision classifier by a fresh one for so many classes."""
    name, last = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))][
        -1
    ]
    fresh: nn.Module
    if isinstance(last, nn.Linear):
        fresh = nn.Linear(last.in_features, classes, bias=last.bias is not None)
    else:
        assert isinstance(last, nn.Conv2d)  # SqueezeNet's
        fresh = nn.Conv2d(last.in_channels, classes, kernel_size=1)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, fresh)
    return model


def _torchvision(architecture: str, shape: Shape, classes: int) -> nn.Module:
    from torchvision.models import get_model

    # A vision transformer has an embedding for each place of its images.
    sized = {"image_size": shape[0]} if architecture.startswith("vit") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a default that changes; nothing depends on it
        model: nn.Module = get_model(architecture, weights=None, num_classes=classes, **sized)
    _simplify(model)
    return model


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """torchvision's loader lets torch.load open any pickle; this variable of torch's overrules it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _simplify(model: nn.Module) -> None:
    """Make GoogLeNet and Inception like the others: no further heads, which only their own papers train, and no
    normalisation of their own, which `clf_train.config` gives them as everyone's.
    """
    if hasattr(model, "transform_input"):
        model.transform_input = False  # type: ignore[assignment]
    if getattr(model, "aux_logits", False):
        model.aux_logits = False  # type: ignore[assignment]
        for name in ("aux1", "aux2", "AuxLogits"):
            if hasattr(model, name):
                setattr(model, name, None)


def _from_factory(architecture: str, classes: int) -> nn.Module:
    """Call a function of the user's: with num_classes where it takes that, else with nothing."""
    module_name, _, name = architecture.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` would have it
    try:
        factory = getattr(import_module(module_name), name)
        takes = inspect.signature(factory).parameters
        model = factory(num_classes=classes) if "num_classes" in takes else factory()
    except Exception as error:  # it is somebody else's code
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InvalidModelError(
            f"model {architecture!r}: cannot be built ({reason}); expected a function or class that takes "
            "num_classes, or nothing, and gives a torch.nn.Module"
        ) from None
    if not isinstance(model, nn.Module):
        raise InvalidModelError(f"model {architecture!r}: gives a {type(model).__name__}; expected a torch.nn.Module")
    return model
