"""Build a network from its name: one of clf-edge or of a tutorial, one of torchvision, or a user's factory."""

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
from clf_train.registry import MODELS, TORCHVISION, find_model_row


def build_from_spec(spec: ModelSpec) -> nn.Module:
    """Build the network of a spec, with fresh weights.

    Raises:
        InvalidModelError: there is no such network.
    """
    return build_model(spec.architecture, spec.preprocess.shape, len(spec.labels))


def build_model(architecture: str, shape: Shape, classes: int) -> nn.Module:
    """Build a network, with fresh weights from torch's global seed.

    Args:
        architecture: its name.
        shape: (H, W, C) of an image.
        classes: how many.

    Raises:
        InvalidModelError: there is no such network, or a user's factory failed.
    """
    row = find_model_row(architecture)
    if row is not None:
        module, _, factory = row.factory.partition(":")
        model: nn.Module = getattr(import_module(module), factory)(shape, classes)
        return model
    if architecture in TORCHVISION:
        return _build_torchvision(architecture, shape, classes)
    if ":" in architecture:
        return _build_by_factory(architecture, classes)
    known = ", ".join(row.name for row in MODELS)
    raise InvalidModelError(
        f"model {architecture!r}: unknown; expected one of {known}, a classifier of torchvision.models, "
        "or package.module:factory"
    )


def build_pretrained(architecture: str, classes: int) -> nn.Module:
    """Build a network of torchvision with its default weights and a new head.

    torchvision's own loader downloads the weights once and caches them.

    Raises:
        InvalidModelError: it is not a network of torchvision, or the cached weights are unsafe.
        MachineError: the weights could not be downloaded.
    """
    from torchvision.models import get_model

    if architecture not in TORCHVISION:
        raise InvalidModelError(
            f"model {architecture!r}: has no pretrained weights; expected one of {_list_packaged()}, "
            "or a classifier of torchvision.models"
        )
    try:
        with _force_weights_only():
            model: nn.Module = get_model(architecture, weights="DEFAULT")
    except pickle.UnpicklingError as error:
        raise InvalidModelError(
            f"{architecture}: its weights contain more than tensors ({' '.join(str(error).split())[:160]}), "
            "so they were not loaded; clear torch's download folder"
        ) from None
    except OSError as error:
        raise MachineError(
            f"{architecture}: its weights could not be downloaded ({' '.join(str(error).split())}); download "
            "them on a machine with a network, and name the file with --weights; or use a model whose weights are in "
            f"Python packages: {_list_packaged()}"
        ) from None
    _remove_extras(model)
    return replace_head(model, classes)


def _list_packaged() -> str:
    return ", ".join(row.name for row in MODELS if row.weights is not None)


def find_head(model: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Return the last layer with weights and its name: the head of a classifier."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    return layers[-1]


def replace_head(model: nn.Module, classes: int) -> nn.Module:
    """Replace the head of a torchvision classifier by a new one for this number of classes."""
    name, last = find_head(model)
    head: nn.Module
    if isinstance(last, nn.Linear):
        head = nn.Linear(last.in_features, classes, bias=last.bias is not None)
    else:  # SqueezeNet's
        head = nn.Conv2d(last.in_channels, classes, kernel_size=1)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, head)
    return model


def _build_torchvision(architecture: str, shape: Shape, classes: int) -> nn.Module:
    from torchvision.models import get_model

    # A vision transformer has an embedding for each position in the image.
    size = {"image_size": shape[0]} if architecture.startswith("vit") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a default that will change; nothing depends on it
        model: nn.Module = get_model(architecture, weights=None, num_classes=classes, **size)
    _remove_extras(model)
    return model


@contextlib.contextmanager
def _force_weights_only() -> Iterator[None]:
    """Overrule torchvision's loader, which lets torch.load open any pickle, by a variable of torch's."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _remove_extras(model: nn.Module) -> None:
    """Make GoogLeNet and Inception like the other networks.

    Without the auxiliary heads, which only their own papers train, and without their own normalization, which
    `clf_train.plan` applies as for the others.
    """
    if hasattr(model, "transform_input"):
        model.transform_input = False  # type: ignore[assignment]
    if getattr(model, "aux_logits", False):
        model.aux_logits = False  # type: ignore[assignment]
        for name in ("aux1", "aux2", "AuxLogits"):
            if hasattr(model, name):
                setattr(model, name, None)


def _build_by_factory(architecture: str, classes: int) -> nn.Module:
    """Call a user's factory, with num_classes if it takes that, otherwise without arguments."""
    module_name, _, name = architecture.partition(":")
    with _import_from_working_directory():
        try:
            factory = getattr(import_module(module_name), name)
            parameters = inspect.signature(factory).parameters
            model = factory(num_classes=classes) if "num_classes" in parameters else factory()
        except Exception as error:  # a user's code can raise anything
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise InvalidModelError(
                f"model {architecture!r}: cannot be built ({reason}); expected a function or class that takes "
                "num_classes, or nothing, and returns a torch.nn.Module"
            ) from None
    if not isinstance(model, nn.Module):
        raise InvalidModelError(f"model {architecture!r}: returns a {type(model).__name__}; expected a torch.nn.Module")
    return model


@contextlib.contextmanager
def _import_from_working_directory() -> Iterator[None]:
    """Let imports find modules in the working directory, as `python -m` does, and restore sys.path afterwards.

    The factory itself runs inside the block, so what it imports while it builds is found too.
    """
    folder = str(Path.cwd())
    if folder in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        # By value: the factory may have changed the path, too.
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
