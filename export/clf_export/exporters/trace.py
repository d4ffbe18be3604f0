"""The module as a graph of torch's operators. It is traced once, and ONNX and pt2 are both made from it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from clf_export.exporters.module import ExportModule, example_input
from clf_export.quiet import quiet
from clf_runtime.errors import InvalidModelError
from clf_runtime.spec import ModelSpec

_MAX_REASON = 300  # characters


def program_from_model(module: ExportModule, spec: ModelSpec) -> ExportedProgram:
    """Trace the module with a dynamic batch size. Raises InvalidModelError where torch cannot."""
    with quiet(), torch.no_grad(), _not_in_place(module):
        try:
            program = torch.export.export(module, (example_input(spec),), dynamic_shapes=({0: Dim("N")},), strict=False)
        except Exception as error:  # torch.export runs the network's own code, which can raise anything
            reason = " ".join(str(error).split())[:_MAX_REASON]
            raise InvalidModelError(
                f"{spec.architecture}: torch.export cannot trace it for a dynamic batch size: {reason}"
            ) from None
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names the source files of this machine
    return program


@contextlib.contextmanager
def _not_in_place(module: ExportModule) -> Iterator[None]:
    """Let activations return new tensors meanwhile, with the same values.

    torch's ONNX exporter takes ReLU6 apart if it is in place: EfficientNet-Lite0 takes 7.7 s then, and 2.7 s otherwise.
    """
    layers: list[Any] = [layer for layer in module.modules() if getattr(layer, "inplace", None) is True]
    for layer in layers:
        layer.inplace = False
    try:
        yield
    finally:
        for layer in layers:
            layer.inplace = True
