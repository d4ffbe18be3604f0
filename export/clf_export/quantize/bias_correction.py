"""Biases of quantised layers, chosen so that the mean of what each layer gives stays what it was in float32.

A rounded weight is wrong by a fixed amount, and what a layer takes has a mean that is not zero after a ReLU: their
product moves every image's answer the same way, and a bias takes it back without costing any time. Source: Nagel et
al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019, with means of real images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from clf_export.quantize.graph import constants_of, measure_channel_means, nodes_with, output_axis, prepend_nodes
from clf_runtime.preprocess import UInt8Array

Float64Array = npt.NDArray[np.float64]
Int8Array = npt.NDArray[np.int8]

_LAYERS = frozenset(("Conv", "Gemm"))  # those with a bias of their own
# A bias has 32 bits; where they are too few, so many steps are enough.
_MOST_STEPS, _STEPS = 2**30, 2**20


def measure_input_means(model: onnx.ModelProto, pixels: UInt8Array) -> dict[str, Float64Array]:
    """Run images, uint8 (N, H, W, C), and give the mean of each channel (C,) of what each layer takes, by name."""
    return measure_channel_means(model, {node.input[0] for node in nodes_with(model.graph, _LAYERS)}, pixels)


def correct_biases(quantized: onnx.GraphProto, graph: onnx.GraphProto, means: Mapping[str, Float64Array]) -> None:
    """Give each quantised layer a bias of int32 that keeps the mean of what it gives.

    A layer whose bias the quantiser left in float32 gets one too: onnxruntime before 1.21 would compute it in float32.

    Args:
        quantized: the quantised graph, which is changed.
        graph: the same in float32; nodes have the same names.
        means: of what its layers take, by `measure_input_means`.
    """
    floats, constants = constants_of(graph), constants_of(quantized)
    originals = {node.name: node for node in nodes_with(graph, _LAYERS)}
    dequantized = {node.output[0]: node for node in quantized.node if node.op_type == "DequantizeLinear"}
    values: dict[str, npt.NDArray[Any]] = {}
    made: list[onnx.NodeProto] = []
    dropped: set[str] = set()
    for node in nodes_with(quantized, _LAYERS):
        original = originals[node.name]
        if not {*node.input[:2]} <= dequantized.keys() or not _is_plain(original):
            continue
        taken, weight = (dequantized[name] for name in node.input[:2])
        step, scale = (constants[each.input[1]].astype(np.float64) for each in (taken, weight))
        axis = output_axis(original, constants[weight.input[0]].ndim)
        integers = np.moveaxis(constants[weight.input[0]], axis, 0)
        bias = np.zeros(len(integers)) + (floats[original.input[2]].ravel() if len(original.input) > 2 else 0)
        integers, scale = _with_room(integers, scale, bias / step)
        error = (integers.T * scale).T - np.moveaxis(floats[original.input[1]], axis, 0)
        bias -= _moved(error, means[original.input[0]], _groups(original))
        names = [f"{node.name}_bias_int32", f"{node.name}_bias_scale"]
        values[weight.input[0]] = np.moveaxis(integers, 0, axis)
        values[weight.input[1]] = scale.astype(np.float32)
        values[names[0]] = np.rint(bias / (step * scale)).astype(np.int32)
        values[names[1]] = (step * scale).astype(np.float32)
        made.append(helper.make_node("DequantizeLinear", names, [f"{node.name}_bias_float"], names[0], axis=0))
        dropped.update(node.input[2:])
        del node.input[2:]
        node.input.append(made[-1].output[0])
    for name in dropped & dequantized.keys():
        quantized.node.remove(dequantized[name])
    prepend_nodes(quantized, made)
    used = {name for node in quantized.node for name in node.input}
    kept = [each for each in quantized.initializer if each.name in used - values.keys()]
    del quantized.initializer[:]
    quantized.initializer.extend([*kept, *(numpy_helper.from_array(value, name) for name, value in values.items())])


def _moved(error: Float64Array, mean: Float64Array, groups: int) -> Float64Array:
    """Give how far outputs (C,) are moved by errors of the weights (C, ...), of inputs with this mean in each channel.

    Padding is taken for more of the same.
    """
    by_input = error.reshape(*error.shape[:2], -1).sum(axis=2)
    of_group = mean.reshape(groups, -1).repeat(len(error) // groups, axis=0)
    moved: Float64Array = (by_input * of_group).sum(axis=1)
    return moved


def _with_room(integers: Int8Array, scale: Float64Array, bias: Float64Array) -> tuple[Int8Array, Float64Array]:
    """Give weights (C, ...) and their scale, one or (C,), in whose steps the bias (C,) can be told.

    What batch normalisation has switched off has weights of nearly nothing, and a bias. Its weights become nothing.
    """
    rows = integers.reshape(len(integers), -1)
    most, some = (np.abs(bias), rows.any(axis=1)) if scale.ndim else (np.abs(bias).max(), rows.any())
    off = (most > 0) & (~some | (most > _MOST_STEPS * scale))
    kept = np.where(np.broadcast_to(off, len(rows))[:, None], np.int8(0), rows).reshape(integers.shape)
    return kept, np.where(off, most / _STEPS, scale)


def _is_plain(node: onnx.NodeProto) -> bool:
    """Tell whether its weights and its bias are taken as they are."""
    return all(each.f == 1 for each in node.attribute if each.name in ("alpha", "beta"))


def _groups(node: onnx.NodeProto) -> int:
    return next((each.i for each in node.attribute if each.name == "group"), 1)
