"""FP16, for GPUs: weights and arithmetic in half precision; inputs and outputs keep their types.

Operators that would overflow stay in float32, and so do those that prepare the pixels and those behind the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from clf_export.quantize.graph import fuse, measure_largest_values, nodes_outside_network, topological_sort, weights_of
from clf_runtime.preprocess import UInt8Array

_MAX_FLOAT16 = float(np.finfo(np.float16).max)
# Images that were not measured may have values larger than those of the training images.
_HEADROOM = 4.0


@dataclass(frozen=True)
class Fp16Graph:
    """A graph in half precision."""

    content: bytes  # an ONNX file without metadata
    float32_operators: tuple[str, ...]  # of the network: those whose values, with headroom, float16 cannot hold


def fp16_from_onnx(content: bytes, pixels: UInt8Array) -> Fp16Graph:
    """Convert a float32 graph.

    Args:
        content: the ONNX file without metadata.
        pixels: real images, uint8 (N, H, W, C), which show the operators that overflow.
    """
    model = fuse(content)
    overflowing = _find_overflowing_nodes(model, pixels)
    float32_nodes = [*nodes_outside_network(model.graph), *(node.name for node in overflowing)]
    converted = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=DEFAULT_OP_BLOCK_LIST, node_block_list=float32_nodes
    )
    del converted.graph.value_info[:]
    _remove_casts_between_float32(converted.graph)
    serialized = topological_sort(converted).SerializeToString(deterministic=True)
    return Fp16Graph(serialized, tuple(node.op_type for node in overflowing))


def _find_overflowing_nodes(model: onnx.ModelProto, pixels: UInt8Array) -> list[onnx.NodeProto]:
    """Return the nodes of the network with an input or an output that float16 might not hold."""
    largest = measure_largest_values(model, pixels)
    # Written so that a NaN, which compares as false, counts as too large.
    too_large = {name for name, value in largest.items() if not value * _HEADROOM <= _MAX_FLOAT16}
    too_large |= {
        name for name, tensor in weights_of(model.graph).items() if not _largest_value(tensor) <= _MAX_FLOAT16
    }
    outside = set(nodes_outside_network(model.graph))
    return [
        node
        for node in model.graph.node
        if node.name not in outside and not too_large.isdisjoint((*node.input, *node.output))
    ]


def _largest_value(tensor: onnx.TensorProto) -> float:
    return float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0.0))


def _remove_casts_between_float32(graph: onnx.GraphProto) -> None:
    """Connect float32 operators directly; the converter puts a cast to float16 and one back between any two."""
    halved = {node.output[0]: node.input[0] for node in graph.node if _is_cast(node, onnx.TensorProto.FLOAT16)}
    restored = {
        node.output[0]: halved[node.input[0]]
        for node in graph.node
        if _is_cast(node, onnx.TensorProto.FLOAT) and node.input[0] in halved
    }
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = restored.get(name, name)
    for node in [node for node in graph.node if node.output[0] in restored]:
        if node.output[0] in outputs:
            source = restored[node.output[0]]
            node.CopyFrom(onnx.helper.make_node("Identity", [source], [node.output[0]], node.name))
        else:
            graph.node.remove(node)
    used = {name for node in graph.node for name in node.input} | outputs
    for node in [node for node in graph.node if node.output[0] in halved and node.output[0] not in used]:
        graph.node.remove(node)


def _is_cast(node: onnx.NodeProto, to: int) -> bool:
    return node.op_type == "Cast" and any(attribute.name == "to" and attribute.i == to for attribute in node.attribute)
