"""A float32 graph as integers can compute it: said in operators of which onnxruntime has an integer form.

Each operator without one is a turn to float32 and back, which costs a light network more than its convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from clf_export.exporters.module import INPUT
from clf_export.quantize.graph import constants_of

# A quantised convolution pads with one number, not with one for each channel. So much of a standard deviation may that
# be beside the mean: ImageNet's channels are up to 0.22 apart, which moves the logits of a ResNet-18 by a sixteenth of
# what INT8 moves them.
_OFF_THE_MEAN = 0.25
_BEGINNING = ["Cast", "Transpose", "Sub", "Mul", "Conv"]


def rewrite_for_quantization(model: onnx.ModelProto, takes_pixels: bool = True) -> onnx.ModelProto:
    """Give a fused float32 graph rewritten, with nearly the same answers; `model` stays as it is.

    A first layer that is to stay float32 must not take the pixels, or onnxruntime makes integers of it all the same.
    """
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    images = _images(model)
    del rewritten.graph.value_info[:]
    _pool_globally(rewritten.graph, images)
    if takes_pixels:
        _take_pixels(rewritten.graph)
    return rewritten


def _images(model: onnx.ModelProto) -> set[str]:
    """Name the tensors of four axes."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {each.name for each in inferred.value_info if len(each.type.tensor_type.shape.dim) == 4}


def _pool_globally(graph: onnx.GraphProto, images: set[str]) -> None:
    """Say a mean over all places of an image as GlobalAveragePool."""
    constants = constants_of(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        axes = constants.get(node.input[1]) if node.op_type == "ReduceMean" and len(node.input) > 1 else None
        if axes is not None and node.input[0] in images and {int(axis) % 4 for axis in axes.ravel()} == {2, 3}:
            nodes += _pooled(node)
        else:
            nodes.append(node)
    _replace(graph, nodes)


def _pooled(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    if all(each.i for each in node.attribute if each.name == "keepdims"):
        return [helper.make_node("GlobalAveragePool", [node.input[0]], [node.output[0]], node.name)]
    pooled = f"{node.output[0]}_pooled"
    return [
        helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], node.name),
        helper.make_node("Flatten", [pooled], [node.output[0]], f"{node.name}_flat", axis=1),
    ]


def _take_pixels(graph: onnx.GraphProto) -> None:
    """Put the normalisation into the first convolution, which then takes the pixels, the integers that they are.

    In (x - offset) * factor, the factor goes into the weights and the offset into the bias, but for a whole number near
    it: x - zero is what DequantizeLinear makes of pixels. Where the first layer is another one, or pads with what is
    too far from the mean, the graph stays as it is.
    """
    constants = constants_of(graph)
    chain = _first_nodes(graph)
    if [node.op_type for node in chain] != _BEGINNING or not _is_plain(chain[-1], constants):
        return
    cast, transpose, sub, mul, conv = chain
    offset, factor = (constants[node.input[1]].astype(np.float64).reshape(1, -1, 1, 1) for node in (sub, mul))
    zero = np.clip(np.rint(offset.mean()), 0, 255)
    if _pads(conv) and np.abs((zero - offset) * factor).max() > _OFF_THE_MEAN:
        return
    weights = constants[conv.input[1]] * factor
    bias = (weights * (zero - offset)).sum(axis=(1, 2, 3))
    if len(conv.input) > 2:
        bias += constants[conv.input[2]]
    made = {
        f"{conv.name}_weight": weights.astype(np.float32),
        f"{conv.name}_bias": bias.astype(np.float32),
        f"{cast.name}_scale": np.array(1, np.float32),
        f"{cast.name}_zero": np.array(zero, np.uint8),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in made.items())
    weight, bias_, scale, point = made
    del conv.input[1:]
    conv.input.extend([weight, bias_])
    transpose.input[0] = INPUT
    pixels = helper.make_node("DequantizeLinear", [transpose.output[0], scale, point], [conv.input[0]], cast.name)
    instead = {cast.name: [], sub.name: [pixels], mul.name: []}
    _replace(graph, [each for node in graph.node for each in instead.get(node.name, [node])])


def _first_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Give the nodes from the input to the first convolution, if each feeds the next one alone."""
    chain: list[onnx.NodeProto] = []
    name = INPUT
    while not chain or chain[-1].op_type != "Conv":
        fed = [node for node in graph.node if name in node.input]
        if len(fed) != 1:
            return []
        chain += fed
        name = fed[0].output[0]
    return chain


def _is_plain(conv: onnx.NodeProto, constants: dict[str, np.ndarray]) -> bool:
    grouped = any(each.name == "group" and each.i > 1 for each in conv.attribute)
    return not grouped and all(name in constants for name in conv.input[1:])


def _pads(conv: onnx.NodeProto) -> bool:
    return any(each.name == "pads" and any(each.ints) for each in conv.attribute)


def _replace(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Put these nodes into the graph, without the constants that none of them takes."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    used = {name for node in copies for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
