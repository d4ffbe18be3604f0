"""Bias correction: biases of quantized layers, chosen so that the mean of each layer's output stays that of float32.

A rounded weight has a fixed error, and after a ReLU the mean of a layer's input is not zero. Their product shifts every
image's output the same way, and the bias can absorb that shift at no cost in time. Source: Nagel et al., "Data-Free
Quantization through Weight Equalization and Bias Correction", 2019; here with the means of real images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from clf_export.quantize.graph import constants_of, measure_channel_means, nodes_with, output_axis, prepend_nodes
from clf_runtime.preprocess import UInt8Array

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
Int8Array = npt.NDArray[np.int8]

_LAYERS = frozenset(("Conv", "Gemm"))  # those with a bias of their own
# A bias is an int32. Where it would need more than _MAX_STEPS steps, the scale grows until it needs _STEPS.
_MAX_STEPS, _STEPS = 2**30, 2**20


@dataclass(frozen=True)
class _QuantizedLayer:
    """A node of the quantized graph with the nodes that it belongs to."""

    node: onnx.NodeProto
    original: onnx.NodeProto  # the node of the float32 graph
    weights: onnx.NodeProto  # the DequantizeLinear of its weights
    input_scale: Float64Array  # ()


@dataclass(frozen=True)
class _CorrectedValues:
    """What a layer computes with after its correction."""

    weights: Int8Array  # (C, ...)
    weight_scale: Float64Array  # () or (C,)
    bias: Float64Array  # (C,), in float


def measure_input_means(model: onnx.ModelProto, pixels: UInt8Array) -> dict[str, Float64Array]:
    """Return the mean of each channel, (C,), of every layer's input, by tensor name, over uint8 (N, H, W, C)."""
    return measure_channel_means(model, {node.input[0] for node in nodes_with(model.graph, _LAYERS)}, pixels)


def correct_biases(quantized: onnx.GraphProto, graph: onnx.GraphProto, means: Mapping[str, Float64Array]) -> None:
    """Replace the bias of each quantized layer by an int32 one that keeps the mean of the layer's output.

    A layer whose bias the quantizer left in float32 gets an int32 one too: onnxruntime before 1.21 would compute the
    layer in float32.

    Args:
        quantized: the quantized graph, which is changed.
        graph: the float32 graph; its nodes have the same names.
        means: of its layers' inputs, by `measure_input_means`.
    """
    floats, constants = constants_of(graph), constants_of(quantized)
    values: dict[str, Array] = {}
    bias_nodes: list[onnx.NodeProto] = []
    replaced: set[str] = set()
    for layer in _quantized_layers(quantized, graph):
        axis = output_axis(layer.original, constants[layer.weights.input[0]].ndim)
        corrected = _correct(layer, axis, floats, constants, means)
        bias, scale = f"{layer.node.name}_bias_int32", f"{layer.node.name}_bias_scale"
        values[layer.weights.input[0]] = np.moveaxis(corrected.weights, 0, axis)
        values[layer.weights.input[1]] = corrected.weight_scale.astype(np.float32)
        bias_scale = layer.input_scale * corrected.weight_scale
        values[bias] = np.rint(corrected.bias / bias_scale).astype(np.int32)
        values[scale] = bias_scale.astype(np.float32)
        output = f"{layer.node.name}_bias_float"
        bias_nodes.append(helper.make_node("DequantizeLinear", [bias, scale], [output], bias, axis=0))
        replaced.update(layer.node.input[2:])
        del layer.node.input[2:]
        layer.node.input.append(output)
    _remove_unused(quantized, replaced)
    prepend_nodes(quantized, bias_nodes)
    _replace_constants(quantized, values)


def _quantized_layers(quantized: onnx.GraphProto, graph: onnx.GraphProto) -> Iterator[_QuantizedLayer]:
    """Yield the layers with integer input and constant integer weights, in graph order."""
    constants = constants_of(quantized)
    originals = {node.name: node for node in nodes_with(graph, _LAYERS)}
    floats = {tensor.name for tensor in graph.initializer}
    dequantizers = {node.output[0]: node for node in quantized.node if node.op_type == "DequantizeLinear"}
    for node in nodes_with(quantized, _LAYERS):
        original = originals[node.name]
        if not {*node.input[:2]} <= dequantizers.keys() or not _has_plain_bias(original, floats):
            continue
        source, weights = (dequantizers[name] for name in node.input[:2])
        if weights.input[0] in constants:
            yield _QuantizedLayer(node, original, weights, constants[source.input[1]].astype(np.float64))


def _has_plain_bias(layer: onnx.NodeProto, constants: set[str]) -> bool:
    """Return whether weights and bias are used unscaled, and the bias is a constant or missing."""
    is_unscaled = all(attribute.f == 1 for attribute in layer.attribute if attribute.name in ("alpha", "beta"))
    return is_unscaled and constants.issuperset(layer.input[2:])


def _correct(
    layer: _QuantizedLayer,
    axis: int,
    floats: Mapping[str, Array],
    constants: Mapping[str, Array],
    means: Mapping[str, Float64Array],
) -> _CorrectedValues:
    """Compute a layer's new values; `axis` of its weights runs over its outputs."""
    integers: Int8Array = np.moveaxis(constants[layer.weights.input[0]], axis, 0)
    scale = constants[layer.weights.input[1]].astype(np.float64)
    original = layer.original
    bias = np.zeros(len(integers)) + (floats[original.input[2]].ravel() if len(original.input) > 2 else 0)
    integers, scale = _make_room(integers, scale, bias / layer.input_scale)
    error = (integers.T * scale).T - np.moveaxis(floats[original.input[1]], axis, 0)
    shift = _output_shift(error, means[original.input[0]], _groups(original))
    return _CorrectedValues(integers, scale, bias - shift)


def _output_shift(error: Float64Array, mean: Float64Array, groups: int) -> Float64Array:
    """Return how far errors of the weights, (C, ...), shift the outputs, (C,), for inputs with these channel means.

    Padding counts as more of the same input.
    """
    by_input = error.reshape(*error.shape[:2], -1).sum(axis=2)
    of_group = mean.reshape(groups, -1).repeat(len(error) // groups, axis=0)
    shift: Float64Array = (by_input * of_group).sum(axis=1)
    return shift


def _make_room(integers: Int8Array, scale: Float64Array, bias: Float64Array) -> tuple[Int8Array, Float64Array]:
    """Return weights (C, ...) and their scale, () or (C,), changed where an int32 bias (C,) would have too many steps.

    A channel that batch normalization has switched off has weights near zero, and a bias. Its weights become zero.
    """
    rows = integers.reshape(len(integers), -1)
    largest, is_used = (np.abs(bias), rows.any(axis=1)) if scale.ndim else (np.abs(bias).max(), rows.any())
    is_off = (largest > 0) & (~is_used | (largest > _MAX_STEPS * scale))
    zeroed = np.where(np.broadcast_to(is_off, len(rows))[:, None], np.int8(0), rows).reshape(integers.shape)
    return zeroed, np.where(is_off, largest / _STEPS, scale)


def _groups(layer: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in layer.attribute if attribute.name == "group"), 1)


def _remove_unused(graph: onnx.GraphProto, outputs: set[str]) -> None:
    """Remove the nodes that compute `outputs`, unless another node needs them."""
    unused = outputs - {name for node in graph.node for name in node.input}
    for node in [node for node in graph.node if unused.intersection(node.output)]:
        graph.node.remove(node)


def _replace_constants(graph: onnx.GraphProto, values: Mapping[str, Array]) -> None:
    """Set constants by name, and drop those that no node needs."""
    used = {name for node in graph.node for name in node.input}
    others = [tensor for tensor in graph.initializer if tensor.name in used - values.keys()]
    del graph.initializer[:]
    graph.initializer.extend([*others, *(numpy_helper.from_array(value, name) for name, value in values.items())])
