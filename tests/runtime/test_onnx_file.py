"""The container: a damaged, foreign or truncated file is an error before onnxruntime reads a byte of it."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from rewriting import rewritten

from clf_runtime import onnx_file
from clf_runtime.errors import InvalidModelError
from clf_runtime.onnx_file import FOOTER_BYTES, OnnxFile, footer, metadata_entry, parse_version
from clf_runtime.protobuf import encode_field
from clf_runtime.spec import ModelSpec


def with_footer(content: bytes) -> bytes:
    return content + footer(hashlib.sha256(content).hexdigest())


def error_of(path: Path, content: bytes) -> str:
    """Return the message of the error for a file with this content."""
    path.write_bytes(content)
    with pytest.raises(InvalidModelError) as error:
        onnx_file.read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    return str(error.value)


def foreign_model(domain: str = "", tensor: TensorProto | None = None, inside: str = "initializer") -> bytes:
    """Return an ONNX file made with the onnx package, without our metadata."""
    node = helper.make_node("Identity", ["image"], ["logits"], domain=domain)
    graph = helper.make_graph(
        [node],
        "foreign",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1])],
    )
    if tensor is not None and inside == "initializer":
        graph.initializer.append(tensor)
    elif tensor is not None and inside == "attribute":
        graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    elif tensor is not None and inside == "subgraph":
        branch = helper.make_graph([], "branch", [], [], [tensor])
        graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch))
    elif tensor is not None and inside == "sparse":
        sparse = onnx.SparseTensorProto(values=tensor)
        graph.sparse_initializer.append(sparse)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, 18)], ir_version=8)
    if tensor is not None and inside == "function":
        constant = helper.make_node("Constant", [], ["y"], value=tensor)
        model.functions.append(helper.make_function("", "F", [], ["y"], [constant], [helper.make_opsetid("", 18)]))
    elif tensor is not None and inside == "default of a function":
        function = helper.make_function("", "F", [], ["y"], [node], [helper.make_opsetid("", 18)])
        function.attribute_proto.append(helper.make_attribute("value", tensor))
        model.functions.append(function)
    elif tensor is not None and inside == "training":
        model.training_info.add().algorithm.initializer.append(tensor)
    return model.SerializeToString()


@pytest.fixture
def spec(model) -> ModelSpec:
    """A valid spec."""
    return onnx_file.read(model).spec


def external_tensor() -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def test_an_exported_file_is_read_with_its_digest_versions_metadata_and_spec(model):
    file = onnx_file.read(model)
    content = model.read_bytes()
    assert isinstance(file, OnnxFile)
    assert file.size_bytes == len(content)
    assert file.sha256 == hashlib.sha256(content[:-FOOTER_BYTES]).hexdigest()
    assert (file.opset, file.ir_version, file.oldest_runtime) == (18, 8, "1.15")
    assert {"clf.spec", "clf.selftest", "clf.parity", "clf.sha256"} <= set(file.metadata)
    assert file.spec == ModelSpec.from_json(file.metadata["clf.spec"], "model.onnx")


def test_an_exported_file_is_valid_for_other_onnx_tools(model):
    loaded = onnx.load(model)
    onnx.checker.check_model(loaded, full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert dict(onnx_file.read(model).metadata) == {entry.key: entry.value for entry in loaded.metadata_props}
    assert session.get_modelmeta().custom_metadata_map["clf.sha256"] == onnx_file.read(model).sha256
    for size in (1, 5):
        logits, probabilities = session.run(None, {"image": np.zeros((size, 8, 8, 1), np.uint8)})
        assert logits.shape == probabilities.shape == (size, 10)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_an_exported_file_contains_no_path_and_no_call_stack_of_the_machine(model):
    content = model.read_bytes()
    for trace in (b"site-packages", b"pkg.torch", b".py", os.fsencode(Path.cwd())):
        assert trace not in content


def test_a_changed_byte_anywhere_is_an_error(model, tmp_path):
    content = model.read_bytes()
    positions = [*range(0, len(content), len(content) // 60), *range(len(content) - FOOTER_BYTES, len(content))]
    for position in positions:
        broken = bytearray(content)
        broken[position] ^= 0x10
        assert "digest" in error_of(tmp_path / "model.onnx", bytes(broken)) or position >= len(content) - FOOTER_BYTES


@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_an_error(model, tmp_path, fraction):
    content = model.read_bytes()
    error_of(tmp_path / "model.onnx", content[: int(len(content) * fraction)])


def test_a_file_rewritten_by_another_tool_is_an_error(model, tmp_path):
    loaded = onnx.load(model)
    loaded.doc_string = "simplified"
    assert "digest" in error_of(tmp_path / "model.onnx", loaded.SerializeToString())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"no model at all", "not an ONNX file"),
        (b"PK\x03\x04" + bytes(100), "looks like a PyTorch file"),
        (b"\x08\x08", "not an ONNX file"),
        (metadata_entry("clf.spec", "{}"), "not an ONNX file"),
        (foreign_model(), "no clf.spec in its metadata"),
        (foreign_model() + metadata_entry("clf.spec", "{}"), "its last 80 bytes are not the expected digest"),
        (foreign_model() + b"\x72\x04\x0a\x02\xff\xff", "not an ONNX file"),
        (
            with_footer(foreign_model() + metadata_entry("clf.spec", "{}") + metadata_entry("ort_config", "{}")),
            "session options",
        ),
        (with_footer(foreign_model("com.evil") + metadata_entry("clf.spec", "{}")), "operators of 'com.evil'"),
    ],
)
def test_a_file_that_clf_export_did_not_write_is_an_error_with_the_reason(tmp_path, content, message):
    assert message in error_of(tmp_path / "model.onnx", content)


@pytest.mark.parametrize(
    "inside", ["initializer", "attribute", "subgraph", "sparse", "function", "default of a function", "training"]
)
def test_weights_in_other_files_are_an_error_wherever_they_are_referenced(tmp_path, inside):
    content = foreign_model(tensor=external_tensor(), inside=inside) + metadata_entry("clf.spec", "{}")
    assert "its weights are in other files" in error_of(tmp_path / "model.onnx", with_footer(content))


def test_extremely_nested_graphs_are_an_error_and_not_a_crash(tmp_path):
    graph = b""
    for _ in range(2000):
        graph = encode_field(1, encode_field(5, encode_field(6, graph)))
    content = b"\x08\x08" + encode_field(7, graph) + metadata_entry("clf.spec", "{}")
    assert "not an ONNX file" in error_of(tmp_path / "model.onnx", with_footer(content))


def long_key(message: bytes, tag: int) -> bytes:
    """Return the message with a tag of five bytes: the protobuf in onnxruntime 1.15 to 1.23 ignores bit 32."""
    assert message.count(bytes([tag])) >= 1
    return message.replace(bytes([tag]), bytes([tag | 0x80]) + b"\x80\x80\x80\x10", 1)


@pytest.mark.parametrize("attack", ["external data", "session options", "operators"])
def test_a_field_cannot_be_hidden_behind_an_over_long_tag(tmp_path, attack):
    spec = metadata_entry("clf.spec", "{}")
    content = foreign_model() + spec
    if attack == "external data":
        tensor = external_tensor()
        hidden = tensor.external_data[0].SerializeToString()
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        long_tag = b"\xea\x80\x80\x80\x10" + bytes([len(hidden)]) + hidden
        initializer = encode_field(5, tensor.SerializeToString() + long_tag)
        content += encode_field(7, initializer)
    elif attack == "session options":
        content += long_key(metadata_entry("ort_config", "{}"), 0x72)
    else:
        opset = helper.make_opsetid("com.evil", 1).SerializeToString()
        content += long_key(encode_field(8, opset), 0x42)
    assert "not an ONNX file (the field number is" in error_of(tmp_path / "model.onnx", with_footer(content))


def test_metadata_that_is_there_twice_is_an_error(tmp_path):
    content = foreign_model() + metadata_entry("clf.spec", "{}") + metadata_entry("clf.spec", "[]")
    assert "its metadata has 'clf.spec' twice" in error_of(tmp_path / "model.onnx", with_footer(content))


def test_foreign_operators_of_a_function_are_an_error(tmp_path):
    model = onnx.ModelProto.FromString(foreign_model())
    opsets = [helper.make_opsetid("com.evil", 1)]
    model.functions.append(helper.make_function("", "F", [], ["y"], [helper.make_node("G", [], ["y"])], opsets))
    content = model.SerializeToString() + metadata_entry("clf.spec", "{}")
    assert "operators of 'com.evil'" in error_of(tmp_path / "model.onnx", with_footer(content))


def test_a_tensor_marked_as_external_without_a_location_is_an_error(tmp_path):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    content = foreign_model(tensor=tensor) + metadata_entry("clf.spec", "{}")
    assert "its weights are in other files" in error_of(tmp_path / "model.onnx", with_footer(content))


@pytest.mark.parametrize("kind", ["zeros", "sparse", "a million entries", "a million unknown fields", "a long varint"])
def test_a_large_file_that_is_no_model_is_an_error_without_its_size_in_memory(tmp_path, kind):
    path = tmp_path / "model.onnx"
    if kind == "sparse":
        with path.open("wb") as file:
            file.truncate(2_200_000_000)
    else:
        path.write_bytes(
            {
                "zeros": bytes(40_000_000),
                "a million entries": with_footer(metadata_entry("a", "b") * 1_000_000),
                "a million unknown fields": b"\x10\x00" * 20_000_000,
                "a long varint": b"\x80" * 40_000_000,
            }[kind]
        )
    tracemalloc.start()
    try:
        with pytest.raises(InvalidModelError, match="not an ONNX file") as error:
            onnx_file.read(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 400


def test_a_million_fields_inside_the_graph_take_no_memory(tmp_path, spec):
    nodes = encode_field(1, encode_field(5, b"")) * 100_000
    content = foreign_model() + encode_field(7, nodes) + metadata_entry("clf.spec", spec.to_json())
    (tmp_path / "model.onnx").write_bytes(with_footer(content))
    tracemalloc.start()
    try:
        assert onnx_file.read(tmp_path / "model.onnx").opset == 18
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    with pytest.raises(InvalidModelError, match="model not found; create it with clf-export"):
        onnx_file.read(tmp_path / "none.onnx")
    with pytest.raises(InvalidModelError, match="not a file; expected an ONNX file"):
        onnx_file.read(tmp_path)


def test_both_names_of_the_standard_domain_are_accepted(tmp_path, spec):
    content = foreign_model("ai.onnx") + metadata_entry("clf.spec", spec.to_json())
    (tmp_path / "model.onnx").write_bytes(with_footer(content))
    assert onnx_file.read(tmp_path / "model.onnx").opset == 18


def test_an_unknown_field_of_an_opset_is_ignored(tmp_path, spec):
    opset = encode_field(8, b"\x10\x13" + encode_field(3, b"more"))
    content = foreign_model() + opset + metadata_entry("clf.spec", spec.to_json())
    (tmp_path / "model.onnx").write_bytes(with_footer(content))
    assert onnx_file.read(tmp_path / "model.onnx").opset == 19


def test_the_footer_has_the_80_bytes_of_the_format():
    assert FOOTER_BYTES == 80
    assert footer("ab" * 32) == b"\x72\x4e\x0a\x0aclf.sha256\x12\x40" + b"ab" * 32


@pytest.mark.parametrize(
    ("opset", "ir_version", "version"),
    [(18, 8, "1.15"), (19, 9, "1.16"), (20, 8, "1.17"), (22, 10, "1.21"), (99, 8, None)],
)
def test_the_oldest_runtime_follows_from_opset_and_ir(tmp_path, spec, opset, ir_version, version):
    assert OnnxFile(tmp_path, 1, "", "", ir_version, opset, {}, spec, ()).oldest_runtime == version


def test_the_digest_of_a_large_file_is_verified_too(model, tmp_path):
    path = rewritten(model, tmp_path / "large.onnx", **{"clf.note": "large " * 300_000})
    content = path.read_bytes()
    assert onnx_file.read(path).sha256 == hashlib.sha256(content[:-FOOTER_BYTES]).hexdigest()
    assert "digest" in error_of(tmp_path / "model.onnx", content[:500_000] + b"?" + content[500_001:])


def test_an_invalid_spec_is_an_error_that_names_the_file(model, tmp_path):
    path = rewritten(model, tmp_path / "model.onnx", **{"clf.spec": "{}"})
    with pytest.raises(InvalidModelError, match=f"^{path}: format is missing"):
        onnx_file.read(path)


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("1.15", (1, 15)), ("1.9.2", (1, 9)), ("1.24.0.dev20251104", (1, 24)), ("2.0rc1", (2, 0))],
)
def test_versions_are_compared_by_major_and_minor_number(version, numbers):
    assert parse_version(version) == numbers


@pytest.mark.parametrize("text", ["", "1", "latest", "v1.15"])
def test_a_text_that_is_not_a_version_is_an_error(text):
    with pytest.raises(ValueError, match="expected MAJOR"):
        parse_version(text)
