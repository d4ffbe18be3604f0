"""Model files with changed content and a matching digest, as someone who knows the format could write them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from clf_runtime.onnx_file import footer, read


def rewritten(model: Path, target: Path, **metadata: str) -> Path:
    """Copy a model with changed metadata and a matching digest."""
    loaded = onnx.load(model)
    kept = {entry.key: entry.value for entry in loaded.metadata_props if entry.key != "clf.sha256"} | metadata
    del loaded.metadata_props[:]
    for key, value in kept.items():
        loaded.metadata_props.add(key=key, value=value)
    content = loaded.SerializeToString()
    target.write_bytes(content + footer(hashlib.sha256(content).hexdigest()))
    return target


def with_serial(model: Path, target: Path, serial: int | None) -> Path:
    """Copy a model with another serial number."""
    spec = json.loads(read(model).metadata["clf.spec"])
    spec.pop("serial", None)
    if serial is not None:
        spec["serial"] = serial
    return rewritten(model, target, **{"clf.spec": json.dumps(spec)})


def failing_on_white(model: Path, target: Path) -> Path:
    """Copy a model that gives the same answers, but fails for a batch of white images."""
    loaded = onnx.load(model)
    graph = loaded.graph
    # A table with an entry for each value but 255, looked up with the darkest pixel.
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(255, np.float32), "table"))
    insert_before_logits(
        graph,
        helper.make_node("ReduceMin", [graph.input[0].name], ["darkest"], keepdims=0),
        helper.make_node("Cast", ["darkest"], ["index"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["zero"]),
    )
    onnx.save(loaded, target)
    return rewritten(target, target)


def insert_before_logits(graph: onnx.GraphProto, *nodes: onnx.NodeProto) -> None:
    """Add nodes to a graph, and the scalar 0 that they compute, called zero, to its logits."""
    (layer,) = (node for node in graph.node if "logits" in node.output)
    layer.output[0] = "logits_alone"
    at = list(graph.node).index(layer) + 1
    following = list(graph.node)[at:]
    del graph.node[at:]
    graph.node.extend([*nodes, helper.make_node("Add", ["logits_alone", "zero"], ["logits"]), *following])
    del graph.value_info[:]
