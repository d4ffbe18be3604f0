"""TorchScript: the same module, for C++ and for phones that already carry libtorch.

The one place that touches torch.jit, which torch calls deprecated from 2.11 on.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from clf_export.deployable import Deployable, example
from clf_runtime.errors import ModelRefused
from clf_runtime.onnx_file import DIGEST_KEY
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import Float32Array
from clf_runtime.spec import ModelSpec

# A TorchScript file is a ZIP archive, and the archive's comment is the last thing in it.
_COMMENT = f"{DIGEST_KEY}:"
_COMMENT_BYTES = len(_COMMENT) + 64


def torchscript_from_model(module: Deployable, spec: ModelSpec) -> torch.jit.ScriptModule:
    """Trace the module; N is dynamic, since nothing in it depends on N."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced: torch.jit.ScriptModule = torch.jit.trace(module, example(spec))  # type: ignore[no-untyped-call]
    return traced


def torchscript_bytes(traced: torch.jit.ScriptModule, metadata: Mapping[str, str]) -> bytes:
    """Give the file: metadata as extra files, the digest of all before it as the archive's comment."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(traced, file, _extra_files=dict(metadata))
    content = file.getvalue()[:-2] + _COMMENT_BYTES.to_bytes(2, "little")
    return content + f"{_COMMENT}{hashlib.sha256(content).hexdigest()}".encode()


def _refuse_changed(path: Path) -> None:
    """Check the digest before torch parses a byte: TorchScript is code."""
    content = path.read_bytes()
    comment = content[-_COMMENT_BYTES:].decode("ascii", "replace")
    if comment != f"{_COMMENT}{hashlib.sha256(content[:-_COMMENT_BYTES]).hexdigest()}":
        raise ModelRefused(f"{path}: refused: its digest does not match its content; export it again")


class TorchScriptModel:
    """A file of ours, opened with torch. TorchScript is code, so nobody else's is ever opened."""

    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        """Open `path` and read the extra files named by `keys`. Raises ModelRefused."""
        _refuse_changed(path)
        extra = dict.fromkeys(keys, "")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._module = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location="cpu", _extra_files=extra
            )
        self.metadata = {key: value.decode() if isinstance(value, bytes) else value for key, value in extra.items()}

    def logits(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Give logits and probabilities, float32 (N, classes), for uint8 (N, height, width, channels)."""
        with torch.inference_mode():
            logits, probabilities = self._module(torch.tensor(pixels))
        return logits.numpy(), probabilities.numpy()
