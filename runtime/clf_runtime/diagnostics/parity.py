"""The parity record inside a model file: what clf-export measured when it compared the file with PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clf_runtime.errors import InvalidModelError
from clf_runtime.onnx_file import PARITY_KEY, OnnxFile
from clf_runtime.spec import parse_json

# Key → the types of its value, of what is read here; the other keys are passed on.
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "precision": str,
    "images": int,
    "max_difference": (int, float),
    "flipped": int,
}


def read_parity(file: OnnxFile) -> Mapping[str, Any] | None:
    """Return the parity record of a model file; None if it has none. Raises InvalidModelError."""
    try:
        record = parse_json(file.metadata.get(PARITY_KEY, "null"))
    except ValueError as error:
        raise InvalidModelError(f"{file.path}: its {PARITY_KEY} cannot be parsed ({error}); export it again") from None
    if record is None:
        return None
    content = record if isinstance(record, dict) else {}
    for key, types in _TYPES.items():
        if not isinstance(content.get(key), types):
            raise InvalidModelError(f"{file.path}: its {PARITY_KEY} has no valid {key!r}; export it again")
    return content
