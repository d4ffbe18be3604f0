"""The module as a graph of torch's own operators; ONNX and pt2 are both made from it, traced once."""

from __future__ import annotations

import torch
from torch.export import Dim, ExportedProgram

from clf_export.exporters.module import ExportModule, example
from clf_export.quiet import quiet
from clf_runtime.errors import InvalidModelError
from clf_runtime.spec import ModelSpec


def program_from_model(module: ExportModule, spec: ModelSpec) -> ExportedProgram:
    """Trace the module with N dynamic. Raises InvalidModelError where torch cannot."""
    with quiet(), torch.no_grad():
        try:
            return torch.export.export(module, (example(spec),), dynamic_shapes=({0: Dim("N")},), strict=False)
        except Exception as error:  # torch's own faults have no common base
            reason = " ".join(str(error).split())[:300]
            raise InvalidModelError(
                f"{spec.architecture}: torch.export cannot trace it for any number of images: {reason}"
            ) from None
