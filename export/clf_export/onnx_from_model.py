"""ONNX: the graph by torch's exporter, our metadata and the digest behind it. One file, always."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from clf_export.deployable import INPUT, OUTPUTS, Deployable, example
from clf_runtime.onnx_file import footer, metadata_entry
from clf_runtime.spec import ModelSpec

# The oldest onnxruntime that we promise, 1.15, reads opset 19 and IR 8; torch's exporter starts at opset 18.
OPSET = 18
IR_VERSION = 8


def onnx_from_model(module: Deployable, spec: ModelSpec) -> bytes:
    """Give the graph as an ONNX file without metadata; N is dynamic.

    What torch stamps on each node (the call stack, with the paths of this machine) is left out, so the same
    weights give the same bytes wherever they are exported.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about torch
        program = torch.onnx.export(
            module,
            (example(spec),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("N")},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    proto.ir_version = IR_VERSION
    _strip(proto.graph)
    for function in proto.functions:
        _strip(function)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def with_metadata(graph: bytes, metadata: Mapping[str, str]) -> bytes:
    """Append metadata and the digest to a graph. See docs/artifact-format.md."""
    content = graph + b"".join(metadata_entry(key, value) for key, value in metadata.items())
    return content + footer(hashlib.sha256(content).hexdigest())


def _strip(graph: Any) -> None:
    """Clear notes that no runtime reads; shapes inside the graph follow from its input."""
    graph.doc_string = ""
    for named in ("metadata_props", "value_info"):
        graph.ClearField(named)
    values = [value for field in ("input", "output") for value in getattr(graph, field) if not isinstance(value, str)]
    for each in [*graph.node, *values, *getattr(graph, "initializer", ())]:
        each.doc_string = ""
        each.ClearField("metadata_props")
