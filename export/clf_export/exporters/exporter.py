"""The protocol of the export formats: an exporter builds the bytes of a file and opens it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from clf_runtime.diagnostics.selftest import SelfTestResult
from clf_runtime.onnx_file import PARITY_KEY, SELFTEST_KEY, SPEC_KEY
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import Float32Array
from clf_runtime.spec import ModelSpec

METADATA_KEYS = (SPEC_KEY, SELFTEST_KEY, PARITY_KEY)


class OpenedModel(Protocol):
    """An exported file, opened by the runtime that it is for."""

    @property
    def spec(self) -> ModelSpec:
        """The spec in the file's metadata."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """The texts that the file carries, by key; those of METADATA_KEYS that it lacks are empty or missing."""
        ...

    @property
    def runtime(self) -> str:
        """What runs the file here, with its version."""
        ...

    @property
    def oldest_onnxruntime(self) -> str | None:
        """The oldest onnxruntime that reads the file; None for other runtimes, and for a newer file than we know."""
        ...

    def run(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Return logits and probabilities, float32 (N, classes), of pixels, uint8 (N, height, width, channels)."""
        ...

    def run_self_test(self) -> SelfTestResult | None:
        """Run the self-test in the file as `clf-run --self-test` does; None for formats that clf-run does not take."""
        ...


class Exporter(Protocol):
    """One network, ready to be written in one format."""

    @property
    def quantization(self) -> str:
        """How the network was quantized, for the record; empty where nothing was chosen."""
        ...

    def build(self, metadata: Mapping[str, str]) -> bytes:
        """Return the file's bytes: the network, the metadata and the digest of both."""
        ...

    @staticmethod
    def open(path: Path) -> OpenedModel:
        """Open a file of this format. Raises InvalidModelError, OSError."""
        ...
