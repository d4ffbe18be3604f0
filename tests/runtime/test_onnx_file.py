"""The container: what is damaged, foreign or cut short is refused before onnxruntime sees a byte."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from rewriting import rewritten

from clf_runtime import onnx_file
from clf_runtime.errors import InvalidModelError
from clf_runtime.onnx_file import FOOTER_BYTES, OnnxFile, footer, metadata_entry
from clf_runtime.protobuf import tagged


def signed(content: bytes) -> bytes:
    return content + footer(hashlib.sha256(content).hexdigest())


def refusal(path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(InvalidModelError) as refused:
        onnx_file.read(path)
    assert str(refused.value).startswith(f"{path}: refused: ")
    assert "\n" not in str(refused.value)
    return str(refused.value)


def foreign_model(domain: str = "", tensor: TensorProto | None = None, inside: str = "initializer") -> bytes:
    """Give an ONNX file made with the onnx package, with a spec's name but nothing of ours."""
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


def external_tensor() -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def test_an_exported_file_says_what_it_is(model):
    file = onnx_file.read(model)
    content = model.read_bytes()
    assert isinstance(file, OnnxFile)
    assert file.size_bytes == len(content)
    assert file.sha256 == hashlib.sha256(content[:-FOOTER_BYTES]).hexdigest()
    assert (file.opset, file.ir_version, file.oldest_runtime) == (18, 8, "1.15")
    assert {"clf.spec", "clf.selftest", "clf.parity", "clf.sha256"} <= set(file.metadata)


def test_it_stays_a_valid_onnx_file_for_every_other_tool(model):
    loaded = onnx.load(model)
    onnx.checker.check_model(loaded, full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert dict(onnx_file.read(model).metadata) == {entry.key: entry.value for entry in loaded.metadata_props}
    assert session.get_modelmeta().custom_metadata_map["clf.sha256"] == onnx_file.read(model).sha256
    for size in (1, 5):
        logits, probabilities = session.run(None, {"image": np.zeros((size, 8, 8, 1), np.uint8)})
        assert logits.shape == probabilities.shape == (size, 10)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_it_carries_no_path_and_no_call_stack_of_the_machine_that_made_it(model):
    content = model.read_bytes()
    for trace in (b"site-packages", b"pkg.torch", b".py", os.fsencode(Path.cwd())):
        assert trace not in content


def test_a_changed_byte_anywhere_is_refused(model, tmp_path):
    content = model.read_bytes()
    positions = [*range(0, len(content), len(content) // 60), *range(len(content) - FOOTER_BYTES, len(content))]
    for position in positions:
        broken = bytearray(content)
        broken[position] ^= 0x10
        assert "digest" in refusal(tmp_path / "model.onnx", bytes(broken)) or position >= len(content) - FOOTER_BYTES


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.9999])
def test_a_file_that_was_cut_short_is_refused(model, tmp_path, share):
    content = model.read_bytes()
    refusal(tmp_path / "model.onnx", content[: int(len(content) * share)])


def test_a_file_written_again_by_another_tool_is_refused(model, tmp_path):
    loaded = onnx.load(model)
    loaded.doc_string = "simplified"
    assert "digest" in refusal(tmp_path / "model.onnx", loaded.SerializeToString())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"no model at all", "it is no ONNX file"),
        (b"PK\x03\x04" + bytes(100), "looks like a file of PyTorch"),
        (b"\x08\x08", "it is no ONNX file"),
        (metadata_entry("clf.spec", "{}"), "it is no ONNX file"),
        (foreign_model(), "without clf.spec in its metadata"),
        (foreign_model() + metadata_entry("clf.spec", "{}"), "its digest is not where it belongs"),
        (foreign_model() + b"\x72\x04\x0a\x02\xff\xff", "it is no ONNX file"),
        (
            signed(foreign_model() + metadata_entry("clf.spec", "{}") + metadata_entry("ort_config", "{}")),
            "session options",
        ),
        (signed(foreign_model("com.evil") + metadata_entry("clf.spec", "{}")), "operators of 'com.evil'"),
    ],
)
def test_what_is_no_file_of_ours_is_refused_with_the_reason(tmp_path, content, said):
    assert said in refusal(tmp_path / "model.onnx", content)


@pytest.mark.parametrize(
    "inside", ["initializer", "attribute", "subgraph", "sparse", "function", "default of a function", "training"]
)
def test_weights_in_other_files_are_refused_wherever_they_hide(tmp_path, inside):
    content = foreign_model(tensor=external_tensor(), inside=inside) + metadata_entry("clf.spec", "{}")
    assert "weights in other files" in refusal(tmp_path / "model.onnx", signed(content))


def test_graphs_nested_without_end_are_refused_and_do_not_crash(tmp_path):
    graph = b""
    for _ in range(2000):
        graph = tagged(1, tagged(5, tagged(6, graph)))
    content = b"\x08\x08" + tagged(7, graph) + metadata_entry("clf.spec", "{}")
    assert "it is no ONNX file" in refusal(tmp_path / "model.onnx", signed(content))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InvalidModelError, match="no such model; clf-export makes one"):
        onnx_file.read(tmp_path / "none.onnx")
    with pytest.raises(InvalidModelError, match="it is no file"):
        onnx_file.read(tmp_path)


def test_the_two_names_of_the_standard_domain_are_one(tmp_path):
    content = foreign_model("ai.onnx") + metadata_entry("clf.spec", "{}")
    (tmp_path / "model.onnx").write_bytes(signed(content))
    assert onnx_file.read(tmp_path / "model.onnx").opset == 18


def test_what_a_later_format_adds_to_an_opset_is_passed_over(tmp_path):
    opset = tagged(8, b"\x10\x13" + tagged(3, b"more"))
    content = foreign_model() + opset + metadata_entry("clf.spec", "{}")
    (tmp_path / "model.onnx").write_bytes(signed(content))
    assert onnx_file.read(tmp_path / "model.onnx").opset == 19


def test_the_footer_has_the_80_bytes_that_the_format_gives_it():
    assert FOOTER_BYTES == 80
    assert footer("ab" * 32) == b"\x72\x4e\x0a\x0aclf.sha256\x12\x40" + b"ab" * 32


@pytest.mark.parametrize(
    ("opset", "ir_version", "version"),
    [(18, 8, "1.15"), (19, 9, "1.16"), (20, 8, "1.17"), (22, 10, "1.21"), (99, 8, None)],
)
def test_the_oldest_runtime_follows_from_opset_and_ir(tmp_path, opset, ir_version, version):
    assert OnnxFile(tmp_path, 1, "", ir_version, opset, {}).oldest_runtime == version


def test_a_large_file_is_checked_as_a_small_one_is(model, tmp_path):
    path = rewritten(model, tmp_path / "large.onnx", **{"clf.note": "large " * 300_000})
    content = path.read_bytes()
    assert onnx_file.read(path).sha256 == hashlib.sha256(content[:-FOOTER_BYTES]).hexdigest()
    assert "digest" in refusal(tmp_path / "model.onnx", content[:500_000] + b"?" + content[500_001:])
