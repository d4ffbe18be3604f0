"""TorchScript, for C++ and for phones that already have libtorch.

The one module that uses torch.jit, which is deprecated from torch 2.11 on; pt2 is its successor.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch

from clf_export.exporters.archive import append_digest, verify_digest
from clf_export.exporters.exporter import METADATA_KEYS
from clf_export.exporters.module import ExportModule, example_input
from clf_export.exporters.torch_model import TorchModel
from clf_export.quiet import quiet
from clf_runtime.spec import ModelSpec


def torchscript_from_model(module: ExportModule, spec: ModelSpec) -> torch.jit.ScriptModule:
    """Trace the module. The batch size is dynamic, because nothing in the module depends on it."""
    with quiet():
        traced: torch.jit.ScriptModule = torch.jit.trace(module, example_input(spec))  # type: ignore[no-untyped-call]
    return traced


class TorchScriptExporter:
    """Writes and opens TorchScript files; the metadata are their extra files."""

    quantization = ""

    def __init__(self, traced: torch.jit.ScriptModule) -> None:
        self._traced = traced

    def build(self, metadata: Mapping[str, str]) -> bytes:
        """Return the file's bytes: the network, the metadata and the digest of both."""
        file = io.BytesIO()
        with quiet():
            torch.jit.save(self._traced, file, _extra_files=dict(metadata))
        return append_digest(_without_debug_records(file.getvalue()))

    @staticmethod
    def open(path: Path) -> TorchModel:
        """Open a file of clf-export. Raises InvalidModelError, OSError."""
        verify_digest(path)
        extra: dict[str, str | bytes] = dict.fromkeys(METADATA_KEYS, "")
        with quiet():
            module = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location="cpu", _extra_files=extra
            )
        metadata = {key: value.decode() if isinstance(value, bytes) else value for key, value in extra.items()}
        return TorchModel(path, module, metadata)


def _without_debug_records(archive: bytes) -> bytes:
    """Return an archive without the records that name the source files of this machine; they only serve messages."""
    reader = torch._C.PyTorchFileReader(io.BytesIO(archive))
    file = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(file)
    for name in reader.get_all_records():
        # The writer itself writes those at the top that describe the archive.
        if not name.endswith(".debug_pkl") and name not in ("version", "byteorder", ".data/serialization_id"):
            content = reader.get_record(name)
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    return file.getvalue()
