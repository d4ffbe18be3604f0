"""ONNX: the graph by torch's exporter, our metadata and the digest behind it. One file, always."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from clf_export.exporters.module import INPUT, OUTPUTS
from clf_export.quiet import quiet
from clf_runtime.errors import InvalidModelError, UsageError
from clf_runtime.onnx_file import RUNTIMES, footer, metadata_entry

OLDEST_RUNTIME = RUNTIMES[0][0]

# torch's exporter starts at opset 18. Nothing that a classifier needs is missing there, and every onnxruntime that
# we promise reads it. No type of ours needs a newer IR.
OPSET = 18
IR_VERSION = 8

# A protobuf message has 2 GiB at most; a part of it is for the graph, and for what travels with it.
_MOST_BYTES = 2**31 - 2**24


def onnx_from_program(program: ExportedProgram, min_runtime: str = OLDEST_RUNTIME) -> bytes:
    """Give the graph as an ONNX file without metadata, for onnxruntime `min_runtime` and later.

    What torch stamps on each node (the call stack, with the paths of this machine) is left out, so the same
    weights give the same bytes wherever they are exported.

    Raises InvalidModelError, naming the operators that no opset has which that version reads.
    """
    highest = highest_opset(min_runtime)
    _refuse_too_large(program)
    proto = _proto(program, min_runtime)
    opset = opset_of(proto)
    if opset > highest:
        raise InvalidModelError(
            f"{', '.join(sorted(_newer(proto, highest))) or 'this network'}: needs opset {opset}, which onnxruntime "
            f"{_first_to_read(opset)} is the first to read; say --min-runtime {_first_to_read(opset)}, or change the "
            "network"
        )
    proto.ir_version = IR_VERSION
    _strip(proto.graph)
    for function in proto.functions:
        _strip(function)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _refuse_too_large(program: ExportedProgram) -> None:
    size_bytes = sum(each.numel() * each.element_size() for each in program.state_dict.values())
    if size_bytes > _MOST_BYTES:
        raise InvalidModelError(
            f"its weights take {size_bytes / 1e9:.1f} GB, and one ONNX file holds {_MOST_BYTES / 1e9:.1f} GB at most; "
            "--format pt2 has no such limit"
        )


def highest_opset(min_runtime: str) -> int:
    """Give the highest opset that an onnxruntime of this version reads, as in 1.15 or 1.17.3. Raises UsageError."""
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?", min_runtime):
        raise UsageError(f"--min-runtime {min_runtime}: expected a version of onnxruntime, as in {OLDEST_RUNTIME}")
    known = [opset for version, opset, _ in RUNTIMES if _numbers(version) <= _numbers(min_runtime)]
    if not known:
        raise UsageError(f"--min-runtime {min_runtime}: clf-run needs onnxruntime {OLDEST_RUNTIME} or later")
    return known[-1]


def opset_of(proto: Any) -> int:
    """Give a model's version of the standard operators."""
    return int(next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")))


def with_metadata(graph: bytes, metadata: Mapping[str, str]) -> bytes:
    """Append metadata and the digest to a graph. See docs/artifact-format.md."""
    content = graph + b"".join(metadata_entry(key, value) for key, value in metadata.items())
    return content + footer(hashlib.sha256(content).hexdigest())


def _proto(program: ExportedProgram, min_runtime: str) -> Any:
    """Export at opset 18, or at the lowest one above it that has what the network needs."""
    opsets = [OPSET, *dict.fromkeys(opset for _, opset, _ in RUNTIMES if opset > OPSET)]
    first: Exception | None = None
    for opset in opsets:
        try:
            proto = _converted(program, opset)
        except Exception as error:  # torch's exporter has many classes, without a common base
            first = first or error
            continue
        # torch leaves what it cannot convert at the opset where it began.
        if opset_of(proto) >= max([OPSET, *_needed(proto)]):
            return proto
    raise InvalidModelError(
        f"{_unknown(first)}: no opset has it that torch {torch.__version__} can write; change the network"
    )


def _converted(program: ExportedProgram, opset: int) -> Any:
    with quiet():
        converted = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            external_data=False,
            verbose=False,
        )
    assert converted is not None
    return converted.model_proto


def _unknown(error: Exception | None) -> str:
    """Give the operators that torch's exporter has no ONNX for, or what else it said."""
    seen: set[int] = set()
    texts = []
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        texts.append(str(error))
        error = error.__cause__ if isinstance(error.__cause__, Exception) else None
    text = " ".join(" ".join(texts).split())
    named = dict.fromkeys(re.findall(r"OpOverload\(op='([^']+)'", text))
    return ", ".join(named) or text[:300] or "this network"


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                yield from _nodes(inner)


def _since(proto: Any) -> dict[str, int]:
    """Give the standard operators of a graph, each with the opset that it first came in, under its present name."""
    import onnx

    first: dict[str, int] = {}
    for each in onnx.defs.get_all_schemas_with_history():
        if each.domain == "":
            first[each.name] = min(each.since_version, first.get(each.name, each.since_version))
    kinds = {node.op_type for node in _nodes(proto.graph) if node.domain in ("", "ai.onnx")}
    return {kind: first.get(kind, OPSET) for kind in kinds}


def _needed(proto: Any) -> list[int]:
    return list(_since(proto).values())


def _newer(proto: Any, highest: int) -> set[str]:
    return {name for name, opset in _since(proto).items() if opset > highest}


def _first_to_read(opset: int) -> str:
    return next((version for version, highest, _ in RUNTIMES if opset <= highest), "a later version")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])


def _strip(graph: Any) -> None:
    """Clear notes that no runtime reads; shapes inside the graph follow from its input."""
    graph.doc_string = ""
    for named in ("metadata_props", "value_info"):
        graph.ClearField(named)
    values = [value for field in ("input", "output") for value in getattr(graph, field) if not isinstance(value, str)]
    for each in [*graph.node, *values, *getattr(graph, "initializer", ())]:
        each.doc_string = ""
        each.ClearField("metadata_props")
