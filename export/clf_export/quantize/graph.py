"""ONNX graphs before they are files: run, optimized, searched and edited.

The one module here that imports onnxruntime itself; calibration.py, int8.py and fp16.py import its tools.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

from clf_export.exporters.module import INPUT, OUTPUTS
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import CPU, Float32Array

# What onnxruntime raises for a graph that it cannot open or run; the classes have no common base.
ONNXRUNTIME_ERRORS: tuple[type[Exception], ...] = tuple(
    getattr(onnxruntime_pybind11_state, name)
    for name in ("Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException")
)

BATCH = 32
_MEASURE_BATCH = 4  # every activation of a batch is held at once
_LOG_FATAL_ONLY = 4  # errors are raised, with the same text
# The operators that prepare the pixels, in front of the network.
_PREPARING = frozenset(("Cast", "DequantizeLinear", "Transpose", "Sub", "Mul", "Div"))


class Graph:
    """An ONNX graph opened on the CPU. It need not be a file of clf-export."""

    def __init__(self, content: bytes, threads: int = 0) -> None:
        """Open the bytes of an ONNX file with `threads` threads per batch; 0 leaves the number to onnxruntime."""
        self._session = onnxruntime.InferenceSession(content, _session_options(threads), providers=[CPU])

    def run(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Return logits and probabilities, float32 (N, classes), of pixels, uint8 (N, height, width, channels)."""
        logits, probabilities = self._session.run(list(OUTPUTS), {INPUT: pixels})
        return logits, probabilities

    def compute_logits(self, pixels: UInt8Array) -> Float32Array:
        """Return the logits, float32 (N, classes), of any number of images, in batches."""
        batches = [self.run(pixels[start : start + BATCH])[0] for start in range(0, len(pixels), BATCH)]
        return np.concatenate(batches)


def fuse(content: bytes) -> onnx.ModelProto:
    """Fold constants and batch normalization into the weights; all operators stay standard ones."""
    before = onnx.ModelProto.FromString(content)
    fused = _optimize(content, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    # onnxruntime lists every domain that it knows, and its own IR version.
    fused.ir_version = before.ir_version
    del fused.opset_import[:]
    fused.opset_import.extend(before.opset_import)
    del fused.metadata_props[:]
    for index, node in enumerate(fused.graph.node):
        node.name = f"{node.op_type}_{index}"
    return fused


def optimize(content: bytes) -> onnx.ModelProto:
    """Return the graph that onnxruntime runs: integer operators where it computes in integers, and its own operators.

    Raises ONNXRUNTIME_ERRORS where it cannot open the graph.
    """
    return _optimize(content, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)


def _optimize(content: bytes, level: Any) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        options = _session_options(0)
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        onnxruntime.InferenceSession(content, options, providers=[CPU])
        return onnx.load(options.optimized_model_filepath)


def nodes_outside_network(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes that prepare the pixels, and of those behind the logits."""
    prepared = {INPUT}
    names = []
    for node in graph.node:
        if node.op_type in _PREPARING and any(name in prepared for name in node.input):
            names.append(node.name)
            prepared.update(node.output)
    behind = {OUTPUTS[0]}
    for node in graph.node:
        if any(name in behind for name in node.input):
            names.append(node.name)
            behind.update(node.output)
    return names


def nodes_with(graph: onnx.GraphProto, operators: frozenset[str]) -> Iterator[onnx.NodeProto]:
    """Iterate over the nodes of these operators, in graph order."""
    return (node for node in graph.node if node.op_type in operators)


def weights_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the float32 constants of a graph by name."""
    return {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}


def constants_of(graph: onnx.GraphProto) -> dict[str, npt.NDArray[Any]]:
    """Return the values of all constants of a graph by name."""
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


def output_axis(node: onnx.NodeProto, axes: int) -> int:
    """Return which of the `axes` axes of a layer's weights runs over its outputs."""
    if node.op_type == "Conv":
        return 0
    is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if is_transposed else axes - 1


def measure_largest_values(model: onnx.ModelProto, pixels: UInt8Array) -> dict[str, float]:
    """Return the largest |value| of each float tensor inside the graph over images, uint8 (N, H, W, C)."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    outputs = [value.name for value in inferred.output]
    floats = [
        value
        for value in inferred.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and value.name not in outputs
    ]
    largest = dict.fromkeys([*outputs, *(value.name for value in floats)], 0.0)
    for _, values in _run_for(model, floats, list(largest), pixels):
        for name, value in values.items():
            largest[name] = max(largest[name], float(np.abs(value).max(initial=0.0)))
    return largest


def measure_channel_means(
    model: onnx.ModelProto, names: Iterable[str], pixels: UInt8Array
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the mean of each channel, float64 (C,), of tensors (N, C, ...) over images, uint8 (N, H, W, C)."""
    names = sorted(names)
    sums: dict[str, npt.NDArray[np.float64]] = {}
    if not names:
        return sums  # onnxruntime takes an empty list of outputs for all of them
    added = [onnx.ValueInfoProto(name=name) for name in names]
    for images, values in _run_for(model, added, names, pixels):
        for name, value in values.items():
            mean = value.reshape(*value.shape[:2], -1).mean(axis=(0, 2), dtype=np.float64)
            sums[name] = mean * images + sums.get(name, 0.0)
    return {name: total / len(pixels) for name, total in sums.items()}


def run_for_inner_values(
    model: onnx.ModelProto, names: list[str], pixels: UInt8Array
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Run a graph; yield the values of these tensors, by name, of each batch of images, uint8 (N, H, W, C)."""
    outputs = {output.name for output in model.graph.output}
    added = [onnx.ValueInfoProto(name=name) for name in names if name not in outputs and name != INPUT]
    for _, values in _run_for(model, added, names, pixels):
        yield values


def _run_for(
    model: onnx.ModelProto, added: Iterable[onnx.ValueInfoProto], names: list[str], pixels: UInt8Array
) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
    """Run a graph with inner values added to its outputs; yield the size and the values `names` of each batch."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    extended.graph.output.extend(added)
    session = onnxruntime.InferenceSession(extended.SerializeToString(), _session_options(0), providers=[CPU])
    for start in range(0, len(pixels), _MEASURE_BATCH):
        batch = pixels[start : start + _MEASURE_BATCH]
        yield len(batch), dict(zip(names, session.run(names, {INPUT: batch}), strict=True))


def prepend_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Insert nodes before all others."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (*nodes, *graph.node)]
    del graph.node[:]
    graph.node.extend(copies)


def topological_sort(model: onnx.ModelProto) -> onnx.ModelProto:
    """Sort the nodes so that each follows the nodes it needs, as ONNX demands; converters append theirs at the end.

    Duplicates, of which float16's converter makes some, are dropped.
    """
    waiting = list({tuple(node.output): node for node in model.graph.node}.values())
    computed = {name for node in waiting for name in node.output}
    available: set[str] = set()
    ordered: list[onnx.NodeProto] = []
    while waiting:
        ready = [node for node in waiting if all(name in available or name not in computed for name in node.input)]
        ordered += ready
        available.update(name for node in ready for name in node.output)
        ready_ids = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in ready_ids]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


def _session_options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _LOG_FATAL_ONLY
    # As in clf_runtime.session.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
