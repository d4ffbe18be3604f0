"""pt2: the same module as torch.export keeps it, for those who have a recent PyTorch where the model runs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export import ExportedProgram

from clf_export.exporters.archive import append_digest, verify_digest
from clf_export.quiet import quiet
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import Float32Array


def pt2_bytes(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """Give the file: metadata as extra files, and the digest of all before it."""
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files=dict(metadata))
    return append_digest(file.getvalue())


class Pt2Model:
    """A file of ours, opened with torch. It is code, so nobody else's is ever opened."""

    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        """Open `path` and read the extra files named by `keys`. Raises InvalidModelError."""
        verify_digest(path)
        self.metadata = dict.fromkeys(keys, "")
        with quiet():
            self._module = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=self.metadata).module()

    def run(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Give logits and probabilities, float32 (N, classes), for uint8 (N, height, width, channels)."""
        with torch.inference_mode():
            logits, probabilities = self._module(torch.tensor(pixels))
        return logits.numpy(), probabilities.numpy()
