"""ONNX graphs on the way to a file: run, fused, and looked into. The one module here that imports onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from clf_export.exporters.module import INPUT, OUTPUTS
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import CPU, Float32Array

_BATCH = 32
_ERRORS_ONLY = 3
# Operators that only bring the pixels into shape: what comes before the network itself.
_BEFORE = frozenset(("Cast", "DequantizeLinear", "Transpose", "Sub", "Mul", "Div"))


class Graph:
    """An ONNX graph opened on the CPU, whether or not it is a file of ours."""

    def __init__(self, content: bytes, threads: int = 0) -> None:
        """Open the bytes of an ONNX file, with `threads` for one batch; 0 leaves it to onnxruntime."""
        self._session = onnxruntime.InferenceSession(content, _options(threads), providers=[CPU])

    def run(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Give logits and probabilities, float32 (N, classes), for uint8 (N, height, width, channels)."""
        logits, probabilities = self._session.run(list(OUTPUTS), {INPUT: pixels})
        return logits, probabilities

    def gather_logits(self, pixels: UInt8Array) -> Float32Array:
        """Give the logits of any number of images, a batch at a time."""
        parts = [self.run(pixels[at : at + _BATCH])[0] for at in range(0, len(pixels), _BATCH)]
        return np.concatenate(parts)


def fuse(content: bytes) -> onnx.ModelProto:
    """Give the graph with constants folded and batch normalisation in the weights, standard operators only."""
    before = onnx.ModelProto.FromString(content)
    after = _optimized(content, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    # onnxruntime notes down every domain that it knows, and the IR that it would write.
    after.ir_version = before.ir_version
    del after.opset_import[:]
    after.opset_import.extend(before.opset_import)
    del after.metadata_props[:]
    for index, node in enumerate(after.graph.node):
        node.name = f"{node.op_type}_{index}"
    return after


def optimize(content: bytes) -> onnx.ModelProto:
    """Give the graph with integer operators where onnxruntime computes in integers, and its own operators."""
    return _optimized(content, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)


def _optimized(content: bytes, level: Any) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        options = _options(0)
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        onnxruntime.InferenceSession(content, options, providers=[CPU])
        return onnx.load(options.optimized_model_filepath)


def nodes_outside_network(graph: onnx.GraphProto) -> list[str]:
    """Name the nodes that are not the network: those that prepare the pixels, and temperature and softmax."""
    inside = {INPUT}
    names = []
    for node in graph.node:
        fed = [name for name in node.input if name in inside]
        if fed and node.op_type in _BEFORE:
            names.append(node.name)
            inside.update(node.output)
    behind = {OUTPUTS[0]}
    for node in graph.node:
        if any(name in behind for name in node.input):
            names.append(node.name)
            behind.update(node.output)
    return names


def weights_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Give the float32 constants of a graph by name."""
    return {each.name: each for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT}


def constants_of(graph: onnx.GraphProto) -> dict[str, npt.NDArray[Any]]:
    """Give the values of all constants of a graph by name."""
    return {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}


def output_axis(node: onnx.NodeProto, axes: int) -> int:
    """Give which of the axes of a layer's weights is that of its outputs."""
    if node.op_type == "Conv":
        return 0
    transposed = any(each.name == "transB" and each.i for each in node.attribute)
    return 0 if transposed else axes - 1


def measure_largest_values(model: onnx.ModelProto, pixels: UInt8Array, batch: int = 4) -> dict[str, float]:
    """Run images through and give, for each float tensor between the nodes, the largest |value| that was seen."""
    typed = onnx.shape_inference.infer_shapes(model)
    known = {each.name for each in typed.graph.output}
    floats = [
        each
        for each in typed.graph.value_info
        if each.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and each.name not in known
    ]
    typed.graph.output.extend(floats)
    session = onnxruntime.InferenceSession(typed.SerializeToString(), _options(0), providers=[CPU])
    names = [each.name for each in session.get_outputs()]
    largest = dict.fromkeys(names, 0.0)
    for at in range(0, len(pixels), batch):
        for name, value in zip(names, session.run(names, {INPUT: pixels[at : at + batch]}), strict=True):
            largest[name] = max(largest[name], float(np.abs(value).max(initial=0.0)))
    return largest


def measure_channel_means(
    model: onnx.ModelProto, names: Iterable[str], pixels: UInt8Array, batch: int = 4
) -> dict[str, npt.NDArray[np.float64]]:
    """Run images through and give, for each of these tensors (N, C, ...), the mean of each channel, (C,)."""
    names = sorted(names)
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    seen.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(seen.SerializeToString(), _options(0), providers=[CPU])
    sums = dict.fromkeys(names, np.zeros(0))
    for at in range(0, len(pixels), batch):
        some = pixels[at : at + batch]
        for name, value in zip(names, session.run(names, {INPUT: some}), strict=True):
            mean = value.reshape(*value.shape[:2], -1).mean(axis=(0, 2), dtype=np.float64)
            sums[name] = mean * len(some) + (sums[name] if at else 0.0)
    return {name: total / len(pixels) for name, total in sums.items()}


def prepend_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Put nodes before all others."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (*nodes, *graph.node)]
    del graph.node[:]
    graph.node.extend(copies)


def topological_sort(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put each node behind those that it needs, as ONNX demands: converters append theirs at the end.

    A node that is there twice, under one name, is put in once: float16's converter makes such.
    """
    waiting = list({tuple(node.output): node for node in model.graph.node}.values())
    made = {name for node in waiting for name in node.output}
    known: set[str] = set()
    ordered: list[onnx.NodeProto] = []
    while waiting:
        ready = [node for node in waiting if all(name in known or name not in made for name in node.input)]
        ordered += ready
        known.update(name for node in ready for name in node.output)
        done = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in done]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


def nodes_with(graph: onnx.GraphProto, kinds: frozenset[str]) -> Iterator[onnx.NodeProto]:
    """Give the nodes of these operators, in order."""
    return (node for node in graph.node if node.op_type in kinds)


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    # As the runtime runs it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
