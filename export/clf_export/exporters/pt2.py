"""pt2, the format of torch.export, for devices with a recent PyTorch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export import ExportedProgram

from clf_export.exporters.archive import append_digest, verify_digest
from clf_export.exporters.exporter import METADATA_KEYS
from clf_export.exporters.torch_model import TorchModel
from clf_export.quiet import quiet


class Pt2Exporter:
    """Writes and opens pt2 files; the metadata are their extra files."""

    quantization = ""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program

    def build(self, metadata: Mapping[str, str]) -> bytes:
        """Return the file's bytes: the network, the metadata and the digest of both."""
        file = io.BytesIO()
        with quiet():
            torch.export.save(self._program, file, extra_files=dict(metadata))
        return append_digest(file.getvalue())

    @staticmethod
    def open(path: Path) -> TorchModel:
        """Open a file of clf-export. Raises InvalidModelError, OSError."""
        verify_digest(path)
        metadata = dict.fromkeys(METADATA_KEYS, "")
        with quiet():
            module = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=metadata).module()
        return TorchModel(path, module, metadata)
