"""TorchScript: the same module, for C++ and for phones that already carry libtorch.

The one place that touches torch.jit, which torch calls deprecated from 2.11 on; pt2 is its successor.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch

from clf_export.exporters.archive import append_digest, verify_digest
from clf_export.exporters.module import ExportModule, example
from clf_export.quiet import quiet
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import Float32Array
from clf_runtime.spec import ModelSpec


def torchscript_from_model(module: ExportModule, spec: ModelSpec) -> torch.jit.ScriptModule:
    """Trace the module; N is dynamic, since nothing in it depends on N."""
    with quiet():
        traced: torch.jit.ScriptModule = torch.jit.trace(module, example(spec))  # type: ignore[no-untyped-call]
    return traced


def torchscript_bytes(traced: torch.jit.ScriptModule, metadata: Mapping[str, str]) -> bytes:
    """Give the file: metadata as extra files, and the digest of all before it."""
    file = io.BytesIO()
    with quiet():
        torch.jit.save(traced, file, _extra_files=dict(metadata))
    return append_digest(file.getvalue())


class TorchScriptModel:
    """A file of ours, opened with torch. TorchScript is code, so nobody else's is ever opened."""

    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        """Open `path` and read the extra files named by `keys`. Raises InvalidModelError."""
        verify_digest(path)
        extra = dict.fromkeys(keys, "")
        with quiet():
            self._module = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location="cpu", _extra_files=extra
            )
        self.metadata = {key: value.decode() if isinstance(value, bytes) else value for key, value in extra.items()}

    def run(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Give logits and probabilities, float32 (N, classes), for uint8 (N, height, width, channels)."""
        with torch.inference_mode():
            logits, probabilities = self._module(torch.tensor(pixels))
        return logits.numpy(), probabilities.numpy()
