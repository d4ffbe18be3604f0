"""Formats and precisions: what each file is, what it is refused for, and how INT8 and FP16 are made."""

from __future__ import annotations

import json
import textwrap

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from clf_export.exporters.module import INPUT, ExportModule
from clf_export.exporters.onnx import highest_opset, onnx_from_program
from clf_export.exporters.trace import program_from_model
from clf_export.formats import TARGETS, targets_of
from clf_export.quantize.fp16 import fp16_from_onnx
from clf_export.quantize.graph import Graph
from clf_export.test_split import find_test_split
from clf_runtime.classifier import Classifier
from clf_runtime.errors import InvalidModelError, UsageError
from clf_train.models.saved import load_saved_model

NETWORKS = """
import torch
from torch import nn

class Attentive(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        rows = images.reshape(-1, 1, 8, 8)
        return self.fc(torch.onnx.ops.attention(rows, rows, rows)[0].mean((1, 2)))

class Bessel(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, images):
        return self.fc(torch.special.bessel_j0(images.flatten(1)))

class Branching(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, images):
        return self.fc(images.flatten(1)) * (1 if images.sum() > 0 else 2)
"""


def test_every_combination_that_exists_is_a_file_and_no_other_is_accepted():
    assert targets_of(["onnx", "pt2", "torchscript"], ["fp32", "fp16", "int8"]) == TARGETS
    assert [each.file for each in targets_of(["onnx", "pt2"], ["fp32", "int8"])] == [
        "model.onnx",
        "model.int8.onnx",
        "model.pt2",
    ]
    with pytest.raises(UsageError, match="--format pt2 is made in fp32 only; add --precision fp32"):
        targets_of(["onnx", "pt2"], ["int8"])
    with pytest.raises(UsageError, match="--precision int8 is made as ONNX only; add --format onnx"):
        targets_of(["pt2"], ["fp32", "int8"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("-f", "torchscript", "-p", "int8"), 2, "--format torchscript is made in fp32 only"),
        (("-f", "onnx", "-f", "tflite"), 2, "'tflite' is not one of"),
        (("--max-drop", -1), 2, "-1"),
        (("--min-runtime", "new"), 2, "--min-runtime new: expected a version of onnxruntime, as in 1.15"),
        (("--min-runtime", "1.14"), 2, "--min-runtime 1.14: clf-run needs onnxruntime 1.15 or later"),
    ],
)
def test_what_is_not_made_is_told_before_anything_is_done(command, home, arguments, code, said):
    done = command("clf-export", *arguments, "-a", home / "artifacts")
    assert done.code == code
    assert said in done.err
    assert "Traceback" not in done.err


def test_the_highest_opset_is_that_of_the_release_before_where_one_is_not_listed():
    assert [highest_opset(version) for version in ("1.15", "1.15.1", "1.19", "1.20.1", "1.22", "2.0")] == [
        *(19, 19, 21, 21, 22, 27),
    ]


@pytest.fixture
def custom(command, tmp_path):
    """A finished model of a network of one's own."""
    (tmp_path / "networks.py").write_text(textwrap.dedent(NETWORKS))
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number + ord(label)).integers(0, 256, (8, 8), dtype=np.uint8)
            from PIL import Image

            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")

    def imported(name):
        weights = {"fc.weight": torch.randn(2, 8 if name == "Attentive" else 64), "fc.bias": torch.zeros(2)}
        torch.save(weights, tmp_path / "weights.pt")
        done = command(
            *("clf-import", "--weights", "weights.pt", "--model", f"networks:{name}", "--labels", "a,b"),
            *("--size", "8x8", "--color", "L", "--data", "data"),
            PYTHONPATH=str(tmp_path),
        )
        assert done.code == 0, done.err
        return f"networks:{name}"

    return imported


@pytest.mark.parametrize(
    ("network", "arguments", "said"),
    [
        ("Attentive", (), "Attention: needs opset 23, which onnxruntime 1.23 is the first to read; say --min-runtime"),
        ("Bessel", (), "bessel_j0: no opset has it"),
        ("Branching", (), "torch.export cannot trace it for any number of images: Could not guard"),
    ],
)
def test_a_network_that_no_file_can_hold_is_refused_by_what_it_needs(
    command, custom, tmp_path, network, arguments, said
):
    name = custom(network)
    done = command("clf-export", "--trust-factory", name, *arguments, PYTHONPATH=str(tmp_path))
    assert done.code == 3
    assert said in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert not (tmp_path / "artifacts/model.onnx").exists()


def test_a_newer_runtime_may_have_a_newer_operator_and_an_older_one_refuses_it(command, custom, tmp_path):
    name = custom("Attentive")
    done = command("clf-export", "--trust-factory", name, "--min-runtime", "1.23", PYTHONPATH=str(tmp_path))
    assert done.code == 0, done.err
    assert done.out.splitlines()[1].endswith("1.23+")
    assert Classifier.load(tmp_path / "artifacts/model.onnx").file.opset == 23
    assert command("clf-run", "--self-test").code == 0


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.file)
def test_every_file_carries_its_spec_its_self_test_and_its_proof(artifacts, target):
    from clf_export.exporting import OPENERS

    candidate, spec = OPENERS[target.format](artifacts / target.file)
    metadata = candidate.file.metadata if target.format == "onnx" else candidate.metadata
    assert spec == Classifier.load(artifacts / "model.onnx").spec
    assert json.loads(metadata["clf.parity"])["precision"] == target.precision
    test = json.loads(metadata["clf.selftest"])
    assert 8 <= len(test["cases"]) <= 16
    assert len(metadata["clf.selftest"]) <= 300_000
    record = json.loads((artifacts / "export.json").read_text())[target.file]
    assert test["tolerance"] == record["tolerance"]
    assert record["latency_ms"] > 0 < record["eager_latency_ms"]
    assert record["difference_from_float64"] <= record["max_difference"] + record["rounding"]
    assert record["rounding"] < 1e-4
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    logits, probabilities = candidate.run(pixels)
    assert logits.dtype == probabilities.dtype == np.float32
    assert logits.shape == (3, 10)


def test_a_changed_pt2_file_is_not_opened(artifacts, tmp_path):
    from clf_export.exporters.pt2 import Pt2Model

    content = bytearray((artifacts / "model.pt2").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model.pt2").write_bytes(content)
    with pytest.raises(InvalidModelError, match="its digest does not match its content"):
        Pt2Model(tmp_path / "model.pt2", ())


def test_a_pt2_file_opens_with_torch_alone(artifacts):
    extra = dict.fromkeys(("clf.spec", "clf.selftest", "clf.parity"), "")
    program = torch.export.load(artifacts / "model.pt2", extra_files=extra)
    pixels = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    with torch.inference_mode():
        logits = program.module()(torch.from_numpy(pixels))[0].numpy()
    onnx_file = Classifier.load(artifacts / "model.onnx")
    np.testing.assert_allclose(logits, onnx_file.run(pixels)[0], atol=1e-4)
    assert extra["clf.spec"] == onnx_file.file.metadata["clf.spec"]


def test_the_files_of_less_precision_are_smaller_and_their_interface_is_the_same(artifacts):
    sizes = [(artifacts / target.file).stat().st_size for target in TARGETS[:3]]
    assert sizes[0] > 1.9 * sizes[1]
    assert sizes[0] > 3.5 * sizes[2]
    for target in TARGETS[:3]:
        onnx.checker.check_model(artifacts / target.file, full_check=True)
        graph = onnx.load(artifacts / target.file).graph
        assert [(each.name, each.type.tensor_type.elem_type) for each in (*graph.input, *graph.output)] == [
            ("image", onnx.TensorProto.UINT8),
            ("logits", onnx.TensorProto.FLOAT),
            ("probabilities", onnx.TensorProto.FLOAT),
        ]


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx"])
def test_pixels_go_into_nothing_but_a_cast_as_tensorrt_wants_it(artifacts, name):
    nodes = onnx.load(artifacts / name).graph.node
    assert [node.op_type for node in nodes if INPUT in node.input] == ["Cast"]


def test_half_precision_computes_in_half_precision(artifacts):
    model = onnx.load(artifacts / "model.fp16.onnx")
    kinds = {each.data_type for each in model.graph.initializer if np.prod(each.dims) > 100}
    assert kinds == {onnx.TensorProto.FLOAT16}
    onnx.checker.check_model(model, full_check=True)


class Overflowing(nn.Module):
    """Squares features that are large, as a badly scaled network does, and scales them down again."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        large = self.model(images) * 300
        return (large * large) / 90_000


def test_an_operator_that_overflows_float16_stays_in_float32(artifacts):
    model = load_saved_model(artifacts)
    images = find_test_split(artifacts, model.spec, None, None)
    module = ExportModule(Overflowing(model.model).eval(), model.spec).eval()
    content = onnx_from_program(program_from_model(module, model.spec))
    pixels = images.search_images.pixels
    wanted = Graph(content).run(pixels)[0]
    assert wanted.max() * 90_000 > np.finfo(np.float16).max
    half, kept = fp16_from_onnx(content, images.calibration)
    assert set(kept) == {"Mul", "Div"}
    given = Graph(half).run(pixels)[0]
    np.testing.assert_allclose(given, wanted, atol=0.01 * np.abs(wanted).max())
    inside = {node.op_type for node in onnx.ModelProto.FromString(half).graph.node}
    assert "Cast" in inside
