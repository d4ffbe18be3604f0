"""Differential fuzzing: what our reader says about an ONNX file is what the onnx package's parser says."""

from __future__ import annotations

import random
from collections.abc import Iterator

import onnx
import pytest
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, helper

from clf_runtime.onnx_file import Header, metadata_entry, read_header
from clf_runtime.protobuf import ProtobufError, encode_field

# Keys and lengths at which the two could differ: over-long, with ignored bits, groups, of another wire type, repeated.
_PIECES = (
    *(
        b"\xea\x80\x80\x80\x10",
        b"\xea\x00",
        b"\x00",
        b"\x02\x00",
        b"\x0b\x0c",
        b"\x0c",
        b"\x0e\x00",
        b"\x0f",
        b"\x80\x00",
    ),
    *(
        b"\x08\x07",
        b"\x09" + bytes(8),
        b"\x0d" + bytes(4),
        b"\x0a\x01\x07",
        b"\x3a\x00",
        b"\x3b\x3c",
        b"\x6a\x00",
        b"\x70\x01",
    ),
    *(
        b"\x88\x80\x80\x80\x10\x05",
        b"\x38\x01",
        b"\x40\x01",
        b"\x42\x00",
        b"\x42\x02\x10\x09",
        b"\x42\x03\x0a\x01x",
        b"\x72\x00",
    ),
    *(b"\xf2\x80\x80\x80\x10\x00", b"\xff" * 10, b"\xff" * 9 + b"\x01", b"\x6a\x04\x0a\x00\x12\x00", b"\xca\x01\x00"),
)


def header_files() -> tuple[bytes, ...]:
    """Return small files with all that a header may have, whole ones and parts."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 2], float_data=[1.5, 2.5])
    external = TensorProto(name="e", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    external.external_data.add(key="location", value="x")
    branch = helper.make_graph([], "b", [], [], [tensor])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor),
        helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch),
        helper.make_node("Identity", ["c"], ["e"], axes=[1, 2, 3], scale=0.5),
    ]
    files = []
    for initializers in ([tensor], [tensor, external]):
        graph = helper.make_graph(nodes, "g", [], [], initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        function = helper.make_function("", "F", [], ["y"], nodes[:1], [helper.make_opsetid("com.microsoft", 1)])
        model.functions.append(function)
        model.training_info.add().algorithm.initializer.append(tensor)
        files.append(model.SerializeToString() + metadata_entry("clf.spec", "{}") + metadata_entry("k", "v"))
    return tuple(files)


def mutations(count: int, seed: int) -> Iterator[bytes]:
    """Yield mutated headers: flipped, removed, repeated and inserted bytes, and fields moved into each other."""
    source = random.Random(seed)
    files = header_files()
    for _ in range(count):
        content = bytearray(source.choice(files))
        for _ in range(source.randint(1, 2)):
            at = source.randrange(len(content) + 1)
            kind = source.randrange(6)
            if kind == 0 and at < len(content):
                content[at] ^= 1 << source.randrange(8)
            elif kind == 1:
                content[at:at] = source.choice(_PIECES)
            elif kind == 2:
                del content[at : at + source.randint(1, 3)]
            elif kind == 3:
                content += source.choice(_PIECES)
            elif kind == 4:
                content += encode_field(source.choice((7, 8, 14, 20, 25)), bytes(content[at : at + 40]))
            else:
                content[at:at] = content[at : at + source.randint(1, 20)]
        yield bytes(content)


def ours(content: bytes) -> Header | None:
    try:
        return read_header(content)
    except (ProtobufError, UnicodeDecodeError):
        return None


def theirs(content: bytes) -> onnx.ModelProto | None:
    try:
        return onnx.ModelProto.FromString(content)
    except DecodeError:
        return None


def find_external(message: Message) -> bool:
    """Return whether a tensor anywhere in the message, as protobuf read it, has its values elsewhere."""
    if isinstance(message, TensorProto):
        return bool(message.external_data) or message.data_location != TensorProto.DEFAULT
    messages = (
        value
        for field, values in message.ListFields()
        if field.message_type is not None
        for value in (values if field.is_repeated else [values])
    )
    return any(map(find_external, messages))


def check(content: bytes) -> str:
    """Fail if the two readers understand a file differently. Return which of them accept it."""
    header, model = ours(content), theirs(content)
    if header is None or model is None:
        return "neither" if header is model else "only onnx" if header is None else "only ours"
    assert header.ir_version == model.ir_version % 2**64
    assert dict(header.metadata) == {entry.key: entry.value for entry in model.metadata_props}
    opsets = [*model.opset_import, *(opset for function in model.functions for opset in function.opset_import)]
    assert set(header.opsets) == {"" if opset.domain == "ai.onnx" else opset.domain for opset in opsets}
    assert header.is_external or not find_external(model)
    return "both"


def check_all(count: int, seed: int) -> dict[str, int]:
    outcomes = dict.fromkeys(("both", "neither", "only onnx", "only ours"), 0)
    for content in mutations(count, seed):
        outcomes[check(content)] += 1
    return outcomes


def test_both_readers_understand_a_file_the_same_way():
    assert all(check(content) == "both" for content in header_files())
    outcomes = check_all(2_000, seed=0)
    assert outcomes["both"] > 100
    assert outcomes["neither"] > 100


@pytest.mark.slow
def test_both_readers_understand_100000_mutated_headers_the_same_way():
    print(check_all(100_000, seed=1))
