"""A TorchScript or pt2 file, opened by torch. Both contain code, so only files with our digest are opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from clf_runtime.onnx_file import SPEC_KEY
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import Float32Array
from clf_runtime.spec import ModelSpec


class TorchModel:
    """A file of a torch format, opened on the CPU."""

    oldest_onnxruntime = None

    def __init__(
        self, path: Path, module: Callable[[Tensor], tuple[Tensor, Tensor]], metadata: Mapping[str, str]
    ) -> None:
        """Store what was opened.

        Args:
            path: the file, for error messages.
            module: takes uint8 (N, height, width, channels), returns logits and probabilities, float32 (N, classes).
            metadata: the file's extra files, by key.
        """
        self.metadata = metadata
        self._path = path
        self._module = module

    @cached_property
    def spec(self) -> ModelSpec:
        """The spec in the file's metadata. Raises InvalidModelError."""
        return ModelSpec.from_json(self.metadata[SPEC_KEY], str(self._path))

    @property
    def runtime(self) -> str:
        """What runs the file here, with its version."""
        return f"torch {torch.__version__}"

    def run(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Return logits and probabilities, float32 (N, classes), of pixels, uint8 (N, height, width, channels)."""
        with torch.inference_mode():
            logits, probabilities = self._module(torch.tensor(pixels))
        return logits.numpy(), probabilities.numpy()

    def run_self_test(self) -> None:
        """Return None: clf-run does not take these files."""
