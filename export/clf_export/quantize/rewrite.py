"""Rewrites of a float32 graph into operators that onnxruntime has in integers.

Each operator without an integer form costs a conversion to float32 and back, which takes a light network longer than
its convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from clf_export.exporters.module import INPUT
from clf_export.quantize.graph import constants_of
from clf_export.quantize.rounding import round_for_exact_sums

# A quantized convolution pads all channels with the same pixel value. So far, in standard deviations, may that value be
# from a channel's mean: ImageNet's channels differ by up to 0.22, which moves the logits of a ResNet-18 by a sixteenth
# of what INT8 moves them.
_MAX_PADDING_OFFSET = 0.25
_FIRST_OPERATORS = ["Cast", "Transpose", "Sub", "Mul", "Conv"]


def rewrite_for_quantization(model: onnx.ModelProto, takes_pixels: bool = True) -> onnx.ModelProto:
    """Return a rewritten copy of a fused float32 graph, with nearly the same answers.

    Args:
        model: the graph, which is not changed.
        takes_pixels: whether the first convolution takes the pixels as integers. One that is to stay in float32 must
            not, or onnxruntime quantizes it all the same; it takes them as whole numbers in float32.
    """
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    images = _four_axis_tensors(model)
    del rewritten.graph.value_info[:]
    _use_global_average_pool(rewritten.graph, images)
    _take_pixels(rewritten.graph, as_integers=takes_pixels)
    return rewritten


def _four_axis_tensors(model: onnx.ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {value.name for value in inferred.value_info if len(value.type.tensor_type.shape.dim) == 4}


def _use_global_average_pool(graph: onnx.GraphProto, images: set[str]) -> None:
    """Replace each mean over height and width of `images`, tensors (N, C, H, W), by a GlobalAveragePool."""
    constants = constants_of(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        axes = constants.get(node.input[1]) if node.op_type == "ReduceMean" and len(node.input) > 1 else None
        if axes is not None and node.input[0] in images and {int(axis) % 4 for axis in axes.ravel()} == {2, 3}:
            nodes += _global_average_pool(node)
        else:
            nodes.append(node)
    _replace_nodes(graph, nodes)


def _global_average_pool(mean: onnx.NodeProto) -> list[onnx.NodeProto]:
    if all(attribute.i for attribute in mean.attribute if attribute.name == "keepdims"):
        return [helper.make_node("GlobalAveragePool", [mean.input[0]], [mean.output[0]], mean.name)]
    pooled = f"{mean.output[0]}_pooled"
    return [
        helper.make_node("GlobalAveragePool", [mean.input[0]], [pooled], mean.name),
        helper.make_node("Flatten", [pooled], [mean.output[0]], f"{mean.name}_flat", axis=1),
    ]


@dataclass(frozen=True)
class _FirstLayers:
    """The nodes from the input to the first convolution, each of which feeds only the next."""

    cast: onnx.NodeProto
    transpose: onnx.NodeProto
    sub: onnx.NodeProto
    mul: onnx.NodeProto
    conv: onnx.NodeProto


def _take_pixels(graph: onnx.GraphProto, *, as_integers: bool) -> None:
    """Fold the normalization into the first convolution, which then takes the pixels as the integers that they are.

    Of (x - offset) * factor, the factor goes into the weights and the offset into the bias, except for the integer
    nearest to the mean offset: DequantizeLinear computes x - zero from pixels anyway. Where the first layer is another
    one, or pads with what is too far from the mean, the graph stays as it is. In float32, the sums become exact.
    """
    constants = constants_of(graph)
    first = _find_first_layers(graph)
    if first is None or not _is_plain(first.conv, constants):
        return
    offset, factor = (
        constants[node.input[1]].astype(np.float64).reshape(1, -1, 1, 1) for node in (first.sub, first.mul)
    )
    zero = np.clip(np.rint(offset.mean()), 0, 255)
    if _has_padding(first.conv) and np.abs((zero - offset) * factor).max() > _MAX_PADDING_OFFSET:
        return
    weights = constants[first.conv.input[1]] * factor
    bias = (weights * (zero - offset)).sum(axis=(1, 2, 3))
    if len(first.conv.input) > 2:
        bias += constants[first.conv.input[2]]
    if not as_integers:
        weights, bias = round_for_exact_sums(weights, bias)
    values = {
        f"{first.conv.name}_weight": weights.astype(np.float32),
        f"{first.conv.name}_bias": bias.astype(np.float32),
        f"{first.cast.name}_scale": np.array(1, np.float32),
        f"{first.cast.name}_zero": np.array(zero, np.uint8 if as_integers else np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    if as_integers:
        _connect_integers(graph, first, list(values))
    else:
        _connect_floats(graph, first, list(values))


def _connect_floats(graph: onnx.GraphProto, first: _FirstLayers, names: list[str]) -> None:
    """Connect input, Cast, Transpose, Sub and Conv; `names` are those of weight, bias, scale and zero point."""
    weight, bias, _, zero = names
    del first.conv.input[1:]
    first.conv.input.extend([weight, bias])
    first.sub.input[1] = zero
    first.sub.output[0] = first.conv.input[0]
    _replace_nodes(graph, [node for node in graph.node if node.name != first.mul.name])


def _connect_integers(graph: onnx.GraphProto, first: _FirstLayers, names: list[str]) -> None:
    """Connect input, Transpose, DequantizeLinear and Conv; `names` are those of weight, bias, scale and zero point."""
    weight, bias, scale, zero = names
    del first.conv.input[1:]
    first.conv.input.extend([weight, bias])
    first.transpose.input[0] = INPUT
    dequantize = helper.make_node(
        "DequantizeLinear", [first.transpose.output[0], scale, zero], [first.conv.input[0]], first.cast.name
    )
    replacements = {first.cast.name: [], first.sub.name: [dequantize], first.mul.name: []}
    _replace_nodes(graph, [new for node in graph.node for new in replacements.get(node.name, [node])])


def _find_first_layers(graph: onnx.GraphProto) -> _FirstLayers | None:
    chain: list[onnx.NodeProto] = []
    name = INPUT
    for operator in _FIRST_OPERATORS:
        users = [node for node in graph.node if name in node.input]
        if len(users) != 1 or users[0].op_type != operator:
            return None
        chain += users
        name = users[0].output[0]
    return _FirstLayers(*chain)


def _is_plain(conv: onnx.NodeProto, constants: dict[str, npt.NDArray[Any]]) -> bool:
    is_grouped = any(attribute.name == "group" and attribute.i > 1 for attribute in conv.attribute)
    return not is_grouped and all(name in constants for name in conv.input[1:])


def _has_padding(conv: onnx.NodeProto) -> bool:
    return any(attribute.name == "pads" and any(attribute.ints) for attribute in conv.attribute)


def _replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Set the nodes of a graph, and drop the constants that none of them needs."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    used = {name for node in copies for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(constants)
