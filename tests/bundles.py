"""A small bundle, without wheels that could be installed."""

from __future__ import annotations

import hashlib

from clf_deploy.bundle.manifest import Manifest, Part
from clf_deploy.bundle.platforms import Target

FILES = {"install.sh": b"#!/bin/sh\n", "model.onnx": bytes(1024), "wheels/a-1-py3-none-any.whl": b"PK" * 700}


def manifest_of(files: dict[str, bytes]) -> Manifest:
    """Return the manifest of a bundle for an Arm device."""
    parts = tuple(Part(path, len(files[path]), hashlib.sha256(files[path]).hexdigest()) for path in sorted(files))
    return Manifest("0.2.0", Target("linux-aarch64", "3.11"), "2.28", "model.onnx", None, parts)
