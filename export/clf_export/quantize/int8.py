"""INT8: one way of making it, of the several that are measured against each other in `choosing`.

Activations are uint8 and weights int8 within 7 bits: a product of two such pairs fits the 16 bits in which
processors with AVX2 but without VNNI add them up, so no sum saturates anywhere, and every processor gives the same
integers. Source: onnxruntime's page "Quantize ONNX Models", on U8S8 and reduce_range.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry

from clf_export.exporters.module import INPUT
from clf_export.quantize.bias_correction import Float64Array, correct_biases
from clf_export.quantize.graph import (
    nodes_outside_network,
    nodes_with,
    optimize,
    output_axis,
    prepend_nodes,
    topological_sort,
    weights_of,
)
from clf_export.quiet import quiet
from clf_runtime.preprocess import UInt8Array

CALIBRATIONS = ("minmax", "percentile", "entropy")

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
_LAYERS = frozenset(("Conv", "Gemm", "MatMul"))
# The library's table lacks it, but what it does with any operator is what this one needs.
_OPERATORS = frozenset((*QDQRegistry, "GlobalAveragePool"))
_BATCH = 8
_LARGEST_WEIGHT = 64  # of 7 bits
# Smaller constants are not worth two more nodes.
_SMALLEST_WEIGHT = 256


@dataclass(frozen=True)
class QuantizationConfig:
    """How a network is quantised, apart from how its ranges are found."""

    scales: str  # per channel, per tensor
    operators: str  # all, layers (Conv, Gemm, MatMul), dense (those without the depthwise ones), weights (stored only)
    ends: str  # int8, or float: the first and the last layer stay as they are

    def __str__(self) -> str:
        return f"{self.operators}, {self.scales}, ends {self.ends}"


QUANTIZATION_CONFIGS = (
    *(
        QuantizationConfig(scales, operators, ends)
        for operators in ("all", "layers", "dense")
        for scales in ("per channel", "per tensor")
        for ends in ("int8", "float")
    ),
    # Not slower than float32 anywhere: the weights become floats when the file is opened.
    QuantizationConfig("per channel", "weights", "int8"),
)


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, pixels: UInt8Array) -> None:
        self._batches = iter([pixels[at : at + _BATCH] for at in range(0, len(pixels), _BATCH)])

    def get_next(self) -> dict[str, UInt8Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def calibrate(model: onnx.ModelProto, pixels: UInt8Array, calibration: str) -> Any:
    """Run images, uint8 (N, H, W, C), and give the range of each activation, as onnxruntime keeps it."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder, "model.onnx")
        onnx.save(model, path)
        calibrator = create_calibrator(
            path,
            sorted(_OPERATORS),
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            calibrate_method=_METHODS[calibration],
            # One-sided ranges, as after a ReLU, must not waste a bit on the other side.
            extra_options={"symmetric": False},
        )
        # Some at a time: the histograms' collector holds every activation until it has counted.
        for at in range(0, len(pixels), 4 * _BATCH):
            calibrator.collect_data(_Images(pixels[at : at + 4 * _BATCH]))
        return calibrator.compute_data()


def int8_from_onnx(
    model: onnx.ModelProto, config: QuantizationConfig, ranges: Any, means: Mapping[str, Float64Array]
) -> bytes:
    """Quantise a float32 graph.

    Args:
        model: stays as it is; for every way but the one that stores weights only, a quantizable graph.
        way: preprocess.
        ranges: of its activations, by `calibrate`.
        means: of its layers' inputs, by `clf_export.quantize.bias_correction.measure_input_means`.

    Returns:
        The ONNX file, without metadata.

    Raises:
        ValueError: newer releases of onnxruntime would run another network than the one described.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    if config.operators == "weights":
        return _with_small_weights(copied)
    with quiet():
        quantizer = QDQQuantizer(
            copied,
            config.scales == "per channel",
            True,  # reduce_range: see above
            QuantType.QInt8,
            QuantType.QUInt8,
            ranges,
            [],
            _left_out(copied.graph, config),
            sorted(_OPERATORS if config.operators == "all" else _LAYERS),
            {"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        quantizer.quantize_model()
    quantized = topological_sort(quantizer.model.model)
    correct_biases(quantized.graph, model.graph, means)
    del quantized.graph.value_info[:]
    del quantized.metadata_props[:]
    content: bytes = quantized.SerializeToString(deterministic=True)
    _refuse_others(content)
    return content


def _refuse_others(content: bytes) -> None:
    """Raise ValueError where onnxruntime itself would make integers of a layer that was to stay float32.

    Since 1.21 it does so between integers (WeightBiasQuantization): of 8 bits, which saturate.
    """
    for each in optimize(content).graph.initializer:
        weights = each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1
        if weights and np.abs(onnx.numpy_helper.to_array(each).astype(int)).max(initial=0) > _LARGEST_WEIGHT:
            raise ValueError(f"{each.name}: onnxruntime would make integers of these weights")


def _left_out(graph: onnx.GraphProto, config: QuantizationConfig) -> list[str]:
    names = nodes_outside_network(graph)
    layers = list(nodes_with(graph, _LAYERS))
    if config.ends == "float":
        names += [layers[0].name, layers[-1].name]
    if config.operators == "dense":
        names += [node.name for node in layers if _is_grouped(node)]
    return names


def _is_grouped(node: onnx.NodeProto) -> bool:
    return any(each.name == "group" and each.i > 1 for each in node.attribute)


def _with_small_weights(model: onnx.ModelProto) -> bytes:
    """Keep each layer's weights as int8 with a scale per output channel, made float32 again before they are used."""
    weights = weights_of(model.graph)
    nodes = []
    for node in nodes_with(model.graph, _LAYERS):
        name = node.input[1]
        if name not in weights or np.prod(weights[name].dims) < _SMALLEST_WEIGHT:
            continue
        values = onnx.numpy_helper.to_array(weights.pop(name))
        integers, scales = _symmetric(values, output_axis(node, values.ndim))
        model.graph.initializer.remove(next(each for each in model.graph.initializer if each.name == name))
        model.graph.initializer.append(onnx.numpy_helper.from_array(integers, f"{name}_int8"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(scales, f"{name}_scale"))
        # Not DequantizeLinear: onnxruntime keeps that for each run, and folds these two when it opens the file.
        nodes.append(onnx.helper.make_node("Cast", [f"{name}_int8"], [f"{name}_float"], to=onnx.TensorProto.FLOAT))
        nodes.append(onnx.helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [name]))
    prepend_nodes(model.graph, nodes)
    del model.graph.value_info[:]
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _symmetric(values: Any, axis: int) -> tuple[Any, Any]:
    """Give int8 values and the float32 scale of each place along `axis`, which multiplies them back."""
    others = tuple(each for each in range(values.ndim) if each != axis)
    scales = np.maximum(np.abs(values).max(axis=others, keepdims=True), np.float32(1e-12)) / np.float32(127)
    return np.round(values / scales).astype(np.int8), scales.astype(np.float32)
