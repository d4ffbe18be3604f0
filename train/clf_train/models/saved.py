"""A finished model as the artifacts folder holds it: model.pt, the state_dict, beside model.json, the spec."""

from __future__ import annotations

import hashlib
import io
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
    """A network in eval mode, in float32 on the CPU, and what it needs to know about itself."""

    spec: ModelSpec
    model: nn.Module


def serialize_state_dict(model: nn.Module) -> bytes:
    """Give the file that torch.load(weights_only=True) opens anywhere: contiguous tensors on the CPU."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def raise_if_finished(folder: Path, overwrite: bool) -> None:
    """Raise DataError where a finished model would be replaced without having been asked to."""
    if (folder / artifacts.SPEC).exists() and not overwrite:
        raise DataError(f"{folder}: has a finished model; --overwrite replaces it, -a names another folder")


def load(folder: Path, trusted: str | None = None) -> SavedModel:
    """Open a finished model, digest checked.

    An architecture of the form package.module:factory is code of somebody's, which a model.json from elsewhere
    must not be able to run: it is built only where `trusted` names the very same. Raises InvalidModelError.
    """
    spec_path, weights_path = folder / artifacts.SPEC, folder / artifacts.STATE_DICT
    if not spec_path.is_file():
        found = f"{artifacts.STATE_DICT} without {artifacts.SPEC}" if weights_path.is_file() else "no finished model"
        raise InvalidModelError(f"{folder}: {found}; clf-train makes one, -a names another folder")
    spec = ModelSpec.from_json(_text(spec_path), str(spec_path))
    if ":" in spec.architecture and spec.architecture != trusted:
        raise InvalidModelError(
            f"{folder}: {artifacts.SPEC} names code that is not clf-edge's, {spec.architecture}; where you trust it, "
            f"say --model {spec.architecture}"
        )
    if not weights_path.is_file():
        raise InvalidModelError(f"{weights_path}: missing beside {artifacts.SPEC}; train again with --overwrite")
    content = weights_path.read_bytes()
    stated = spec.provenance.state_dict_sha256 if spec.provenance else None
    if stated is not None and hashlib.sha256(content).hexdigest() != stated:
        raise InvalidModelError(
            f"{weights_path}: refused: its digest is not the one in {artifacts.SPEC} (damaged, or of another "
            "training); copy both again, or train again with --overwrite"
        )
    model = build_from_spec(spec)
    try:
        model.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:  # unpickling a damaged file can raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise InvalidModelError(f"{weights_path}: refused: no state_dict of {spec.architecture} ({reason})") from None
    raise_if_not_finite(model, weights_path)
    return SavedModel(spec, model.float().eval())


def raise_if_not_finite(model: nn.Module, path: Path) -> None:
    """Raise InvalidModelError for weights that are no numbers; `path` is where they come from."""
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise InvalidModelError(
                f"{path}: refused: {name} has NaN or infinite values, so no answer of it means anything; train again"
            )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidModelError(f"{path}: refused: it is not UTF-8 text; train again with --overwrite") from None
