"""The same rounding on every processor.

An integer layer computes the same everywhere. Two kinds of values are rounded to integers after arithmetic in float32,
though, and there processors differ: in the order of additions, in fused multiplications, and in which way a value goes
that is halfway between two integers. One step of one activation then moves everything behind it. With the numbers that
are chosen here, sums in float32 are exact or stay away from such values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from clf_export.quantize.graph import constants_of, nodes_with

Float64Array = npt.NDArray[np.float64]

_MAX_PIXEL = 255
_FLOAT32_INTEGERS = 2**24  # all integers up to it are float32 numbers
# Odd, so that no a * p / 511 + b * q / 511 with integers is halfway between two others: the nearest is 1/1022 away, and
# float32 errs by 1/10000 at most.
_DENOMINATOR = 511


def round_for_exact_sums(weights: Float64Array, bias: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Round the weights, (C, ...), and the bias, (C,), of a layer that takes pixels, so that float32 sums are exact.

    Each channel is rounded to multiples of a power of two of which the sum of any image needs fewer than 2**24. For
    27 weights, as of a first layer, this leaves 11 bits.
    """
    others = tuple(range(1, weights.ndim))
    # Rounding adds half a step to each of them at most.
    terms = _MAX_PIXEL * weights[0].size + 1
    largest = _MAX_PIXEL * np.abs(weights).sum(axis=others) + np.abs(bias)
    with np.errstate(divide="ignore"):
        step = np.exp2(np.ceil(np.log2(largest / (_FLOAT32_INTEGERS - terms))))
    step = np.where(step > 0, step, 1.0)
    steps = step.reshape(-1, *(1 for _ in others))
    return np.rint(weights / steps) * steps, np.rint(bias / step) * step


def keep_sums_from_ties(quantized: onnx.GraphProto) -> None:
    """Widen the scales of what is added, by less than a step of 1/511 of the sum's scale, so that no sum is a tie.

    Args:
        quantized: The graph with QuantizeLinear and DequantizeLinear, which is changed.
    """
    constants = constants_of(quantized)
    dequantizers = {node.output[0]: node for node in nodes_with(quantized, frozenset(("DequantizeLinear",)))}
    quantizers = {node.input[0]: node for node in nodes_with(quantized, frozenset(("QuantizeLinear",)))}
    scales: dict[str, npt.NDArray[Any]] = {}
    # A sum is often added to the next one: the last one comes first.
    for node in reversed(list(nodes_with(quantized, frozenset(("Add",))))):
        if node.output[0] not in quantizers or not {*node.input} <= dequantizers.keys():
            continue
        of_sum = quantizers[node.output[0]].input[1]
        scale = scales.setdefault(of_sum, constants[of_sum])
        for name in (dequantizers[term].input[1] for term in node.input):
            if name not in scales and constants[name].ndim == 0:
                ratio = np.ceil(constants[name].astype(np.float64) / scale * _DENOMINATOR) / _DENOMINATOR
                scales[name] = np.array(ratio * scale, np.float32)
    for tensor in quantized.initializer:
        if tensor.name in scales:
            tensor.CopyFrom(onnx.numpy_helper.from_array(scales[tensor.name], tensor.name))
