"""FP16, for GPUs: weights and arithmetic in half precision, inputs and outputs as they are.

What overflows stays in float32, and so does what prepares the pixels and turns logits into probabilities.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from clf_export.quantize.graph import fuse, measure_largest_values, nodes_outside_network, topological_sort, weights_of
from clf_runtime.preprocess import UInt8Array

_HIGHEST = float(np.finfo(np.float16).max)
# Images that nobody has seen yet may reach further than those of the training did.
_HEADROOM = 4.0


def fp16_from_onnx(content: bytes, pixels: UInt8Array) -> tuple[bytes, tuple[str, ...]]:
    """Convert a float32 graph.

    Args:
        content: the ONNX file without metadata.
        pixels: real images, uint8 (N, H, W, C), to see which operators overflow.

    Returns:
        The converted file, and the operators of the network that stayed in float32 because their values, times the
        headroom, are beyond float16's.
    """
    model = fuse(content)
    overflowing = _overflowing(model, pixels)
    kept = [*nodes_outside_network(model.graph), *(name for name, _ in overflowing)]
    converted = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=DEFAULT_OP_BLOCK_LIST, node_block_list=kept
    )
    del converted.graph.value_info[:]
    _keep_between(converted.graph)
    return topological_sort(converted).SerializeToString(deterministic=True), tuple(kind for _, kind in overflowing)


def _overflowing(model: onnx.ModelProto, pixels: UInt8Array) -> list[tuple[str, str]]:
    """Give name and operator of each node that takes or gives values which float16 might not hold."""
    weights = {name: _largest(each) for name, each in weights_of(model.graph).items()}
    beyond = {
        name for name, value in measure_largest_values(model, pixels).items() if not value * _HEADROOM <= _HIGHEST
    }
    beyond |= {name for name, value in weights.items() if not value <= _HIGHEST}
    outside = set(nodes_outside_network(model.graph))
    return [
        (node.name, node.op_type)
        for node in model.graph.node
        if node.name not in outside and any(name in beyond for name in (*node.input, *node.output))
    ]


def _largest(tensor: onnx.TensorProto) -> float:
    return float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0.0))


def _keep_between(graph: onnx.GraphProto) -> None:
    """Let float32 go from one kept operator to the next as it is: the converter casts it to float16 and back."""
    halved = {node.output[0]: node.input[0] for node in graph.node if _is_cast(node, onnx.TensorProto.FLOAT16)}
    back = {
        node.output[0]: halved[node.input[0]]
        for node in graph.node
        if _is_cast(node, onnx.TensorProto.FLOAT) and node.input[0] in halved
    }
    outputs = {each.name for each in graph.output}
    for node in graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = back.get(name, name)
    for node in [node for node in graph.node if node.output[0] in back]:
        if node.output[0] in outputs:
            node.CopyFrom(onnx.helper.make_node("Identity", [back[node.output[0]]], [node.output[0]], node.name))
        else:
            graph.node.remove(node)
    used = {name for node in graph.node for name in node.input} | outputs
    for node in [node for node in graph.node if node.output[0] in halved and node.output[0] not in used]:
        graph.node.remove(node)


def _is_cast(node: onnx.NodeProto, to: int) -> bool:
    return node.op_type == "Cast" and any(each.name == "to" and each.i == to for each in node.attribute)
