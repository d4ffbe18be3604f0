"""A finished model in an artifacts folder: model.pt, the state_dict, and model.json, the spec."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from clf_runtime import artifacts
from clf_runtime.errors import DataError, InvalidModelError
from clf_runtime.spec import ModelSpec
from clf_train.models.factory import build_from_spec


@dataclass(frozen=True)
class SavedModel:
    """A network in eval mode, in float32 on the CPU, and its spec."""

    spec: ModelSpec
    model: nn.Module


def serialize_state_dict(model: nn.Module) -> bytes:
    """Return a file that torch.load(weights_only=True) opens anywhere: contiguous tensors on the CPU."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def load_saved_model(folder: Path, trusted: str | Sequence[str] | None = None) -> SavedModel:
    """Open a finished model and check its digest.

    Args:
        folder: the artifacts folder.
        trusted: the package.module:factory that may be called, or several. A factory is code of another package, which
            a model.json from elsewhere must not be able to run.

    Raises:
        InvalidModelError: there is no model, it is damaged, or its factory is not trusted.
    """
    spec = _load_spec(folder)
    trusted = (trusted,) if isinstance(trusted, str) else trusted or ()
    if ":" in spec.architecture and spec.architecture not in trusted:
        raise InvalidModelError(
            f"{folder}: {artifacts.SPEC} names a factory outside clf-edge, {spec.architecture}; if you trust it, "
            f"add --trust-factory {spec.architecture}"
        )
    path = folder / artifacts.STATE_DICT
    content = _read_state_dict(path, spec)
    model = build_from_spec(spec)
    try:
        model.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:  # unpickling a damaged file can raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise InvalidModelError(
            f"{path}: not a state_dict of {spec.architecture} ({reason}); train again with --overwrite"
        ) from None
    raise_if_not_finite(model, path)
    return SavedModel(spec, model.float().eval())


def raise_if_finished(folder: Path, overwrite: bool) -> None:
    """Raise DataError if the folder has a finished model that may not be replaced."""
    if (folder / artifacts.SPEC).exists() and not overwrite:
        raise DataError(f"{folder}: has a finished model; --overwrite replaces it, -a names another folder")


def raise_if_not_finite(model: nn.Module, path: Path) -> None:
    """Raise InvalidModelError if any weight is NaN or infinite; `path` is the file the weights come from."""
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise InvalidModelError(
                f"{path}: {name} has NaN or infinite values, so the predictions would be meaningless; train again"
            )


def _load_spec(folder: Path) -> ModelSpec:
    path = folder / artifacts.SPEC
    if not path.is_file():
        has_weights = (folder / artifacts.STATE_DICT).is_file()
        found = f"{artifacts.STATE_DICT} without {artifacts.SPEC}" if has_weights else "no finished model"
        raise InvalidModelError(f"{folder}: {found}; clf-train makes one, -a names another folder")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidModelError(f"{path}: not UTF-8 text; train again with --overwrite") from None
    return ModelSpec.from_json(text, str(path))


def _read_state_dict(path: Path, spec: ModelSpec) -> bytes:
    if not path.is_file():
        raise InvalidModelError(f"{path}: missing beside {artifacts.SPEC}; train again with --overwrite")
    content = path.read_bytes()
    expected = spec.provenance.state_dict_sha256 if spec.provenance else None
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise InvalidModelError(
            f"{path}: digest does not match {artifacts.SPEC} (damaged, or from another training run); "
            "copy both files again, or train again with --overwrite"
        )
    return content
