"""Files as someone could write them who knows the format: a digest that fits, and other content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from clf_runtime.onnx_file import footer


def rewritten(model: Path, target: Path, **metadata: str) -> Path:
    """Copy a model with other metadata and a digest that fits, as someone could who knows the format."""
    loaded = onnx.load(model)
    kept = {entry.key: entry.value for entry in loaded.metadata_props if entry.key != "clf.sha256"} | metadata
    del loaded.metadata_props[:]
    for key, value in kept.items():
        loaded.metadata_props.add(key=key, value=value)
    content = loaded.SerializeToString()
    target.write_bytes(content + footer(hashlib.sha256(content).hexdigest()))
    return target
