"""INT8: one quantization config applied to a graph. `search` compares several of them.

Activations are uint8 and weights int8 within 7 bits: the sum of two such products fits the 16 bits in which processors
with AVX2 but without VNNI accumulate. No sum saturates, and every processor computes the same integers. Source:
onnxruntime's page "Quantize ONNX Models", on U8S8 and reduce_range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry

from clf_export.quantize.bias_correction import Float64Array, correct_biases
from clf_export.quantize.graph import (
    ONNXRUNTIME_ERRORS,
    nodes_outside_network,
    nodes_with,
    optimize,
    output_axis,
    prepend_nodes,
    topological_sort,
    weights_of,
)
from clf_export.quantize.rounding import keep_sums_from_ties
from clf_export.quiet import quiet

_LAYERS = frozenset(("Conv", "Gemm", "MatMul"))
# The registry lacks GlobalAveragePool; the quantizer's default treatment of an operator is right for it.
QUANTIZED_OPERATORS = frozenset((*QDQRegistry, "GlobalAveragePool"))
_MAX_WEIGHT = 64  # of 7 bits
# For a smaller constant two more nodes cost more than its bytes.
_MIN_WEIGHT_ELEMENTS = 256


class QuantizationError(Exception):
    """This network cannot be quantized with this config; the message says why."""


@dataclass(frozen=True)
class QuantizationConfig:
    """How a network is quantized, apart from the calibration of its activation ranges."""

    scales: str  # per channel, per tensor
    operators: str  # all, layers (Conv, Gemm, MatMul), no depthwise (layers but grouped Conv), weights (storage only)
    ends: str  # int8, or float: the first and the last layer stay in float32

    def __str__(self) -> str:
        return f"{self.operators}, {self.scales}, ends {self.ends}"


QUANTIZATION_CONFIGS = (
    *(
        QuantizationConfig(scales, operators, ends)
        for operators in ("all", "layers", "no depthwise")
        for scales in ("per channel", "per tensor")
        for ends in ("int8", "float")
    ),
    # Never slower than float32: onnxruntime converts the weights to float32 once, when it opens the file.
    QuantizationConfig("per channel", "weights", "int8"),
)


@contextmanager
def onnxruntime_errors_as_quantization_errors() -> Iterator[None]:
    """Raise QuantizationError where onnxruntime cannot open or run a quantized graph."""
    try:
        yield
    except ONNXRUNTIME_ERRORS as error:
        raise QuantizationError(f"onnxruntime cannot run it: {' '.join(str(error).split())}") from error


def int8_from_onnx(
    model: onnx.ModelProto, config: QuantizationConfig, ranges: Any, means: Mapping[str, Float64Array]
) -> bytes:
    """Quantize a float32 graph and return the ONNX file, without metadata.

    Args:
        model: the graph, which is not changed. It comes from `rewrite_for_quantization`, unless the config stores the
            weights only.
        config: what is quantized, and how.
        ranges: of its activations, by `calibration`.
        means: of its layers' inputs, by `measure_input_means`.

    Raises:
        QuantizationError: the network has no form of this kind, or onnxruntime would not run it as described.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    if config.operators == "weights":
        return _store_weights_as_int8(copied)
    quantized = topological_sort(_quantize(copied, config, ranges))
    keep_sums_from_ties(quantized.graph)
    correct_biases(quantized.graph, model.graph, means)
    del quantized.graph.value_info[:]
    del quantized.metadata_props[:]
    content: bytes = quantized.SerializeToString(deterministic=True)
    _raise_if_saturating(content)
    return content


def _quantize(model: onnx.ModelProto, config: QuantizationConfig, ranges: Any) -> onnx.ModelProto:
    """Insert QuantizeLinear and DequantizeLinear, and store weights as integers, by onnxruntime's quantizer."""
    excluded = _nodes_to_exclude(model.graph, config)
    operators = QUANTIZED_OPERATORS if config.operators == "all" else _LAYERS
    scales = _scales_per_channel(model.graph) if config.scales == "per channel" else {}
    with quiet():
        try:
            quantizer = QDQQuantizer(
                model,
                config.scales == "per channel",
                True,  # reduce_range, see the module's docstring
                QuantType.QInt8,
                QuantType.QUInt8,
                ranges,
                [],
                excluded,
                sorted(operators),
                {"ActivationSymmetric": False, "WeightSymmetric": True, "TensorQuantOverrides": scales},
            )
            quantizer.quantize_model()
        except (ValueError, IndexError) as error:
            # What it raises for networks that it cannot quantize: for a tensor without a scale, or a Gemm whose bias is
            # broadcast, per channel. Its other exceptions (TypeError, RuntimeError) are about types that we choose.
            raise QuantizationError(f"onnxruntime's quantizer: {' '.join(map(str, error.args))}") from error
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


def _scales_per_channel(graph: onnx.GraphProto) -> dict[str, list[dict[str, Any]]]:
    """Return the scales of each layer's weights; the quantizer finds the same ones, in a loop over the channels."""
    weights = weights_of(graph)
    scales: dict[str, list[dict[str, Any]]] = {}
    for node in nodes_with(graph, _LAYERS):
        values = onnx.numpy_helper.to_array(weights[node.input[1]]) if node.input[1] in weights else np.empty(0)
        if node.op_type != "Conv" and values.ndim != 2:
            continue
        axis = output_axis(node, values.ndim)
        largest = np.abs(values).max(axis=tuple(other for other in range(values.ndim) if other != axis), initial=0.0)
        for_channels = np.where(largest < np.finfo(np.float32).tiny * _MAX_WEIGHT, np.float32(1), largest / _MAX_WEIGHT)
        scales[node.input[1]] = [{"axis": axis, "scale": scale, "zero_point": 0} for scale in for_channels]
    return scales


def _raise_if_saturating(content: bytes) -> None:
    """Raise QuantizationError where onnxruntime would quantize a layer that the config leaves in float32.

    Since 1.21 it does so between quantized layers (WeightBiasQuantization), with 8 bits, which saturate.
    """
    with onnxruntime_errors_as_quantization_errors():
        optimized = optimize(content)
    for tensor in optimized.graph.initializer:
        is_weight = tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
        if is_weight and np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max(initial=0) > _MAX_WEIGHT:
            raise QuantizationError(f"onnxruntime would quantize the weights {tensor.name} too, with 8 bits")


def _nodes_to_exclude(graph: onnx.GraphProto, config: QuantizationConfig) -> list[str]:
    """Return the names of the nodes that stay in float32. Raises QuantizationError where no layer is left."""
    layers = list(nodes_with(graph, _LAYERS))
    excluded = nodes_outside_network(graph)
    if config.ends == "float":
        excluded += [node.name for node in (*layers[:1], *layers[-1:])]
    if config.operators == "no depthwise":
        excluded += [node.name for node in layers if _is_grouped(node)]
    if {node.name for node in layers} <= set(excluded):
        raise QuantizationError("no layer is left to quantize")
    return excluded


def _is_grouped(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)


def _store_weights_as_int8(model: onnx.ModelProto) -> bytes:
    """Store each layer's weights as int8 with a float32 scale per output channel; computation stays in float32."""
    weights = weights_of(model.graph)
    nodes = []
    for node in nodes_with(model.graph, _LAYERS):
        name = node.input[1]
        if name not in weights or np.prod(weights[name].dims) < _MIN_WEIGHT_ELEMENTS:
            continue
        values = onnx.numpy_helper.to_array(weights.pop(name))
        integers, scales = _quantize_symmetric(values, output_axis(node, values.ndim))
        model.graph.initializer.remove(next(tensor for tensor in model.graph.initializer if tensor.name == name))
        model.graph.initializer.append(onnx.numpy_helper.from_array(integers, f"{name}_int8"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(scales, f"{name}_scale"))
        # onnxruntime folds these two when it opens the file; a DequantizeLinear would run for each batch.
        nodes.append(onnx.helper.make_node("Cast", [f"{name}_int8"], [f"{name}_float"], to=onnx.TensorProto.FLOAT))
        nodes.append(onnx.helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [name]))
    if not nodes:
        raise QuantizationError(f"no layer has {_MIN_WEIGHT_ELEMENTS} weights or more")
    prepend_nodes(model.graph, nodes)
    del model.graph.value_info[:]
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _quantize_symmetric(values: Any, axis: int) -> tuple[Any, Any]:
    """Return int8 values, and the float32 scale of each index along `axis`, with the same number of axes."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    scales = np.maximum(np.abs(values).max(axis=others, keepdims=True), np.float32(1e-12)) / np.float32(127)
    return np.round(values / scales).astype(np.int8), scales.astype(np.float32)
