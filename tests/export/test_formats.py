"""Formats and precisions: what each file contains, and what cannot be exported."""

from __future__ import annotations

import json
import textwrap

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from clf_export.exporters.module import INPUT, ExportModule
from clf_export.exporters.onnx import highest_opset, onnx_from_program
from clf_export.exporters.pt2 import Pt2Exporter
from clf_export.exporters.trace import program_from_model
from clf_export.exporting import EXPORTERS
from clf_export.formats import TARGETS, select_targets
from clf_export.quantize.fp16 import fp16_from_onnx
from clf_export.quantize.graph import Graph
from clf_export.reference_split import find_test_split
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


def test_every_existing_combination_of_format_and_precision_is_a_target_and_others_are_an_error():
    assert select_targets(["onnx", "pt2", "torchscript"], ["fp32", "fp16", "int8"]) == TARGETS
    assert [target.file for target in select_targets(["onnx", "pt2"], ["fp32", "int8"])] == [
        "model.onnx",
        "model.int8.onnx",
        "model.pt2",
    ]
    with pytest.raises(UsageError, match="--format pt2 is available in fp32 only; add --precision fp32"):
        select_targets(["onnx", "pt2"], ["int8"])
    with pytest.raises(UsageError, match="--precision int8 is available as ONNX only; add --format onnx"):
        select_targets(["pt2"], ["fp32", "int8"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("-f", "torchscript", "-p", "int8"), 2, "--format torchscript is available in fp32 only"),
        (("-f", "onnx", "-f", "tflite"), 2, "'tflite' is not one of"),
        (("--max-drop", -1), 2, "-1"),
        (("--min-runtime", "new"), 2, "--min-runtime new: expected a version of onnxruntime, as in 1.15"),
        (("--min-runtime", "1.14"), 2, "--min-runtime 1.14: clf-run needs onnxruntime 1.15 or later"),
    ],
)
def test_options_that_cannot_be_met_are_an_error_before_any_work(command, home, arguments, code, message):
    done = command("clf-export", *arguments, "-a", home / "artifacts")
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_release_that_is_not_listed_has_the_highest_opset_of_the_one_before():
    assert [highest_opset(version) for version in ("1.15", "1.15.1", "1.19", "1.20.1", "1.22", "2.0")] == [
        *(19, 19, 21, 21, 22, 27),
    ]


@pytest.fixture
def import_network(command, tmp_path):
    """Import a network of NETWORKS as a finished model; returns its factory."""
    (tmp_path / "networks.py").write_text(textwrap.dedent(NETWORKS))
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number + ord(label)).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")

    def import_(name):
        weights = {"fc.weight": torch.randn(2, 8 if name == "Attentive" else 64), "fc.bias": torch.zeros(2)}
        torch.save(weights, tmp_path / "weights.pt")
        done = command(
            *("clf-import", "--weights", "weights.pt", "--model", f"networks:{name}", "--labels", "a,b"),
            *("--size", "8x8", "--color", "L", "--data", "data"),
            PYTHONPATH=str(tmp_path),
        )
        assert done.code == 0, done.err
        return f"networks:{name}"

    return import_


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            "Attentive",
            "Attention: needs opset 23, and onnxruntime 1.23 is the first to read it; use --min-runtime 1.23",
        ),
        pytest.param("Bessel", "bessel_j0: torch ", marks=pytest.mark.slow),
        ("Branching", "torch.export cannot trace it for a dynamic batch size: Could not guard"),
    ],
)
def test_a_network_that_onnx_cannot_hold_is_an_error_that_names_the_operator(
    command, import_network, tmp_path, network, message
):
    factory = import_network(network)
    done = command("clf-export", "--trust-factory", factory, PYTHONPATH=str(tmp_path))
    assert done.code == 3
    assert message in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert not (tmp_path / "artifacts/model.onnx").exists()


def test_a_foreign_factory_runs_only_where_the_user_trusts_it(command, import_network, tmp_path):
    factory = import_network("Bessel")
    for options in ((), ("--trust-factory", "networks:Attentive")):
        done = command("clf-export", *options, PYTHONPATH=str(tmp_path))
        assert done.code == 3
        assert done.error.endswith(f"add --trust-factory {factory}")


def test_a_newer_min_runtime_allows_newer_operators(command, import_network, tmp_path):
    factory = import_network("Attentive")
    done = command("clf-export", "--trust-factory", factory, "--min-runtime", "1.23", PYTHONPATH=str(tmp_path))
    assert done.code == 0, done.err
    assert done.out.splitlines()[1].endswith("1.23+")
    assert Classifier.load(tmp_path / "artifacts/model.onnx").file.opset == 23
    assert command("clf-run", "--self-test").code == 0


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.file)
def test_every_file_contains_its_spec_its_self_test_and_its_parity_record(artifacts, target):
    opened = EXPORTERS[target.format].open(artifacts / target.file)
    assert opened.spec == Classifier.load(artifacts / "model.onnx").spec
    parity = json.loads(opened.metadata["clf.parity"])
    assert parity["precision"] == target.precision
    assert parity["runtime"] == opened.runtime
    self_test = json.loads(opened.metadata["clf.selftest"])
    assert 8 <= len(self_test["cases"]) <= 16
    assert len(opened.metadata["clf.selftest"]) <= 300_000
    record = json.loads((artifacts / "export.json").read_text())[target.file]
    assert self_test["tolerance"] == record["tolerance"]
    assert record["oldest_onnxruntime"] == opened.oldest_onnxruntime
    assert record["latency_ms"] > 0 < record["eager_latency_ms"]
    assert record["difference_from_float64"] <= record["max_difference"] + record["rounding"]
    assert record["rounding"] < 1e-4
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    logits, probabilities = opened.run(pixels)
    assert logits.dtype == probabilities.dtype == np.float32
    assert logits.shape == (3, 10)


def test_a_changed_pt2_file_is_not_opened(artifacts, tmp_path):
    content = bytearray((artifacts / "model.pt2").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model.pt2").write_bytes(content)
    with pytest.raises(InvalidModelError, match="digest does not match its content"):
        Pt2Exporter.open(tmp_path / "model.pt2")


def test_a_pt2_file_opens_with_torch_alone(artifacts):
    extra = dict.fromkeys(("clf.spec", "clf.selftest", "clf.parity"), "")
    program = torch.export.load(artifacts / "model.pt2", extra_files=extra)
    pixels = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    with torch.inference_mode():
        logits = program.module()(torch.from_numpy(pixels))[0].numpy()
    classifier = Classifier.load(artifacts / "model.onnx")
    np.testing.assert_allclose(logits, classifier.run(pixels)[0], atol=1e-4)
    assert extra["clf.spec"] == classifier.file.metadata["clf.spec"]


def test_lower_precisions_give_smaller_files_with_the_same_inputs_and_outputs(artifacts):
    sizes = [(artifacts / target.file).stat().st_size for target in TARGETS[:3]]
    assert sizes[0] > 1.9 * sizes[1]
    assert sizes[0] > 3.5 * sizes[2]
    for target in TARGETS[:3]:
        onnx.checker.check_model(artifacts / target.file, full_check=True)
        graph = onnx.load(artifacts / target.file).graph
        assert [(value.name, value.type.tensor_type.elem_type) for value in (*graph.input, *graph.output)] == [
            ("image", onnx.TensorProto.UINT8),
            ("logits", onnx.TensorProto.FLOAT),
            ("probabilities", onnx.TensorProto.FLOAT),
        ]


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx"])
def test_only_a_cast_takes_the_pixels_as_tensorrt_requires(artifacts, name):
    nodes = onnx.load(artifacts / name).graph.node
    assert [node.op_type for node in nodes if INPUT in node.input] == ["Cast"]


def test_the_weights_of_an_fp16_file_are_float16(artifacts):
    model = onnx.load(artifacts / "model.fp16.onnx")
    types = {tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) > 100}
    assert types == {onnx.TensorProto.FLOAT16}


class Overflowing(nn.Module):
    """Squares large features, as a badly scaled network does, and scales them down again."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        large = self.model(images) * 300
        return (large * large) / 90_000


def test_an_operator_that_overflows_float16_stays_in_float32(artifacts):
    saved = load_saved_model(artifacts)
    split = find_test_split(artifacts, saved.spec, None, None)
    module = ExportModule(Overflowing(saved.model).eval(), saved.spec).eval()
    content = onnx_from_program(program_from_model(module, saved.spec))
    pixels = split.search_images.pixels
    expected = Graph(content).run(pixels)[0]
    assert expected.max() * 90_000 > np.finfo(np.float16).max
    fp16 = fp16_from_onnx(content, split.calibration)
    assert set(fp16.float32_operators) == {"Mul", "Div"}
    logits = Graph(fp16.content).run(pixels)[0]
    np.testing.assert_allclose(logits, expected, atol=0.01 * np.abs(expected).max())
    assert "Cast" in {node.op_type for node in onnx.ModelProto.FromString(fp16.content).graph.node}
