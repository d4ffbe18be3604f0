"""Model files with changed content and a matching digest, as someone who knows the format could write them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx

from clf_runtime.onnx_file import footer, read


def rewritten(model: Path, target: Path, **metadata: str) -> Path:
    """Copy a model with changed metadata and a matching digest."""
    loaded = onnx.load(model)
    kept = {entry.key: entry.value for entry in loaded.metadata_props if entry.key != "clf.sha256"} | metadata
    del loaded.metadata_props[:]
    for key, value in kept.items():
        loaded.metadata_props.add(key=key, value=value)
    content = loaded.SerializeToString()
    target.write_bytes(content + footer(hashlib.sha256(content).hexdigest()))
    return target


def with_serial(model: Path, target: Path, serial: int | None) -> Path:
    """Copy a model with another serial number."""
    spec = json.loads(read(model).metadata["clf.spec"])
    spec.pop("serial", None)
    if serial is not None:
        spec["serial"] = serial
    return rewritten(model, target, **{"clf.spec": json.dumps(spec)})
