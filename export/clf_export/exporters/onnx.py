"""ONNX: the graph by torch's exporter, then our metadata and the digest. Always one file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from clf_export.exporters.module import INPUT, OUTPUTS
from clf_export.quiet import quiet
from clf_runtime.classifier import Classifier, load_own
from clf_runtime.diagnostics.selftest import SelfTestResult, run_self_test
from clf_runtime.errors import InvalidModelError, UsageError
from clf_runtime.onnx_file import RUNTIMES, footer, metadata_entry, parse_version
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import Float32Array, runtime_version
from clf_runtime.spec import ModelSpec

OLDEST_RUNTIME = RUNTIMES[0][0]

# torch's exporter starts at opset 18, which has all that a classifier needs and which every supported onnxruntime
# reads. No tensor type of ours needs a newer IR.
OPSET = 18
IR_VERSION = 8

# A protobuf message has at most 2 GiB; some of it is for the graph and the metadata.
_MAX_BYTES = 2**31 - 2**24
_MAX_REASON = 300  # characters


class OnnxExporter:
    """Writes and opens ONNX files; the metadata follow the graph. See docs/artifact-format.md."""

    def __init__(self, graph: bytes, quantization: str = "") -> None:
        """Store an ONNX file without metadata, and how it was quantized."""
        self.quantization = quantization
        self._graph = graph

    def build(self, metadata: Mapping[str, str]) -> bytes:
        """Return the file's bytes: the network, the metadata and the digest of both."""
        content = self._graph + b"".join(metadata_entry(key, value) for key, value in metadata.items())
        return content + footer(hashlib.sha256(content).hexdigest())

    @staticmethod
    def open(path: Path) -> OnnxModel:
        """Open a file of clf-export by the runtime, as a device does. Raises InvalidModelError, OSError."""
        return OnnxModel(load_own(path))


class OnnxModel:
    """An ONNX file, opened by the runtime on the CPU."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    @property
    def spec(self) -> ModelSpec:
        """The spec in the file's metadata."""
        return self._classifier.spec

    @property
    def metadata(self) -> Mapping[str, str]:
        """The texts that the file carries, by key."""
        return self._classifier.file.metadata

    @property
    def runtime(self) -> str:
        """What runs the file here, with its version."""
        return f"onnxruntime {runtime_version()}"

    @property
    def oldest_onnxruntime(self) -> str | None:
        """The oldest onnxruntime that reads the file; None for a newer file than clf_runtime knows."""
        return self._classifier.file.oldest_runtime

    def run(self, pixels: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Return logits and probabilities, float32 (N, classes), of pixels, uint8 (N, height, width, channels)."""
        return self._classifier.run(pixels)

    def run_self_test(self) -> SelfTestResult:
        """Run the self-test in the file, as `clf-run --self-test` does. Raises InvalidModelError."""
        return run_self_test(self._classifier)


def onnx_from_program(program: ExportedProgram, min_runtime: str = OLDEST_RUNTIME) -> bytes:
    """Return the graph as an ONNX file without metadata, for onnxruntime `min_runtime` and later.

    The notes that torch adds to each node (the call stack, with paths of this machine) are removed, so the same weights
    give the same bytes on every machine.

    Raises:
        UsageError: min_runtime is not a version.
        InvalidModelError: an operator needs a newer onnxruntime or has no ONNX form, or the weights are too large.
    """
    highest = highest_opset(min_runtime)
    _raise_if_too_large(program)
    proto = _convert_at_lowest_opset(program)
    opset = opset_of(proto)
    if opset > highest:
        operators = ", ".join(sorted(_operators_newer_than(proto, highest))) or "this network"
        runtime = next((version for version, readable, _ in RUNTIMES if opset <= readable), "a later version")
        raise InvalidModelError(
            f"{operators}: needs opset {opset}, and onnxruntime {runtime} is the first to read it; "
            f"use --min-runtime {runtime}, or change the network"
        )
    proto.ir_version = IR_VERSION
    _remove_notes(proto.graph)
    for function in proto.functions:
        _remove_notes(function)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def highest_opset(min_runtime: str) -> int:
    """Return the highest opset that this version of onnxruntime reads; 1.15 and 1.17.3 are such. Raises UsageError."""
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?", min_runtime):
        raise UsageError(f"--min-runtime {min_runtime}: expected a version of onnxruntime, as in {OLDEST_RUNTIME}")
    opsets = [opset for version, opset, _ in RUNTIMES if parse_version(version) <= parse_version(min_runtime)]
    if not opsets:
        raise UsageError(f"--min-runtime {min_runtime}: clf-run needs onnxruntime {OLDEST_RUNTIME} or later")
    return opsets[-1]


def opset_of(proto: Any) -> int:
    """Return the version of the standard operators that a model uses."""
    return int(next(opset.version for opset in proto.opset_import if opset.domain in ("", "ai.onnx")))


def _raise_if_too_large(program: ExportedProgram) -> None:
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size_bytes > _MAX_BYTES:
        raise InvalidModelError(
            f"the weights take {size_bytes / 1e9:.1f} GB, and one ONNX file holds at most {_MAX_BYTES / 1e9:.1f} GB; "
            "--format pt2 has no such limit"
        )


def _convert_at_lowest_opset(program: ExportedProgram) -> Any:
    """Convert at opset 18, or at the lowest newer opset that has the operators that the network needs."""
    opsets = [OPSET, *dict.fromkeys(opset for _, opset, _ in RUNTIMES if opset > OPSET)]
    first_error: Exception | None = None
    for opset in opsets:
        try:
            proto = _convert(program, opset)
        except Exception as error:  # torch's exporter raises many classes, without a common base
            first_error = first_error or error
            continue
        # torch leaves a graph that it cannot convert to a newer opset at the opset where it began.
        if opset_of(proto) >= max([OPSET, *_introducing_opsets(proto).values()]):
            return proto
    raise InvalidModelError(
        f"{_unsupported_operators(first_error)}: torch {torch.__version__} cannot write it in any opset; "
        "change the network"
    )


def _convert(program: ExportedProgram, opset: int) -> Any:
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


def _unsupported_operators(error: Exception | None) -> str:
    """Return the operators that torch's exporter has no ONNX for, or else the beginning of its message."""
    seen: set[int] = set()
    texts = []
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        texts.append(str(error))
        error = error.__cause__ if isinstance(error.__cause__, Exception) else None
    text = " ".join(" ".join(texts).split())
    operators = dict.fromkeys(re.findall(r"OpOverload\(op='([^']+)'", text))
    return ", ".join(operators) or text[:_MAX_REASON] or "this network"


def _iterate_nodes(graph: Any) -> Iterator[Any]:
    """Iterate over the nodes of a graph and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                yield from _iterate_nodes(inner)


def _introducing_opsets(proto: Any) -> dict[str, int]:
    """Return the standard operators of a model, each with the opset that introduced it under its present name."""
    import onnx

    introduced: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            introduced[schema.name] = min(schema.since_version, introduced.get(schema.name, schema.since_version))
    operators = {node.op_type for node in _iterate_nodes(proto.graph) if node.domain in ("", "ai.onnx")}
    return {operator: introduced.get(operator, OPSET) for operator in operators}


def _operators_newer_than(proto: Any, highest: int) -> set[str]:
    return {operator for operator, opset in _introducing_opsets(proto).items() if opset > highest}


def _remove_notes(graph: Any) -> None:
    """Clear notes that no runtime reads; shapes inside the graph follow from its input."""
    graph.doc_string = ""
    for field in ("metadata_props", "value_info"):
        graph.ClearField(field)
    values = [value for field in ("input", "output") for value in getattr(graph, field) if not isinstance(value, str)]
    for item in [*graph.node, *values, *getattr(graph, "initializer", ())]:
        item.doc_string = ""
        item.ClearField("metadata_props")
