"""INT8: what its integers are, that they keep the answers, and which way of making them is taken."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from clf_export.exporters.module import ExportModule
from clf_export.exporters.onnx import onnx_from_program
from clf_export.exporters.trace import program_from_model
from clf_export.formats import TARGETS
from clf_export.quantize import search as search_module
from clf_export.quantize.bias_correction import measure_input_means
from clf_export.quantize.graph import Graph, fuse, optimize
from clf_export.quantize.int8 import QUANTIZATION_CONFIGS, QuantizationConfig, calibrate, int8_from_onnx
from clf_export.quantize.rewrite import rewrite_for_quantization
from clf_export.quantize.search import QuantizationSearch, lines
from clf_export.test_split import find_test_split
from clf_runtime.errors import InvalidModelError
from clf_runtime.spec import ModelSpec, Normalize, Preprocess
from clf_train.models.saved import load_saved_model

IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(artifacts):
    return load_saved_model(artifacts)


@pytest.fixture(scope="module")
def graph(model):
    return onnx_from_program(program_from_model(ExportModule(model.model, model.spec).eval(), model.spec))


@pytest.fixture(scope="module")
def images(artifacts, model):
    return find_test_split(artifacts, model.spec, None, None)


class Depthwise(nn.Sequential):
    """A layer of each kind, with nothing between them but what onnxruntime sees through."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU6(), nn.Conv2d(16, 32, 1)),
            *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)),
        )


def exported(network: nn.Module, normalize: Normalize) -> bytes:
    preprocess = Preprocess("RGB", 24, 32, "crop", 1.0, "bilinear", (255, 255, 255))
    spec = ModelSpec("network", ("a", "b"), preprocess, normalize, temperature=1.0, metrics=None, provenance=None)
    return onnx_from_program(program_from_model(ExportModule(network.eval(), spec).eval(), spec))


def quantization(floats: onnx.ModelProto, config: QuantizationConfig, pixels=PIXELS) -> onnx.ModelProto:
    graph = (
        floats
        if config.operators == "weights"
        else rewrite_for_quantization(floats, takes_pixels=config.ends == "int8")
    )
    content = int8_from_onnx(
        graph, config, calibrate(rewrite_for_quantization(floats), pixels, "minmax"), measure_input_means(graph, pixels)
    )
    return onnx.ModelProto.FromString(content)


def integers_of(proto: onnx.ModelProto) -> list[np.ndarray]:
    return [
        onnx.numpy_helper.to_array(each).astype(int)
        for each in proto.graph.initializer
        if each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1
    ]


@pytest.fixture(scope="module")
def depthwise():
    torch.manual_seed(0)
    return fuse(exported(Depthwise(), IMAGENET))


@pytest.mark.parametrize("way", QUANTIZATION_CONFIGS, ids=str)
def test_integers_saturate_on_no_processor(config, graph, images, depthwise):
    """Weights of 7 bits and unsigned activations: two products fit the 16 bits that AVX2 adds them in."""
    for floats, pixels in ((fuse(graph), images.calibration), (depthwise, PIXELS)):
        if (config.operators, config.ends) == ("dense", "int8") and floats is depthwise:
            # onnxruntime would make integers of the depthwise layer's weights, and these have 8 bits.
            with pytest.raises(ValueError, match="onnxruntime would make integers of these weights"):
                quantization(floats, config, pixels)
            continue
        proto = quantization(floats, config, pixels)
        assert integers_of(proto)
        assert proto.opset_import[0].version == 18
        assert {each.domain for each in proto.opset_import} == {""}
        run = optimize(proto.SerializeToString())
        kinds = {node.op_type for node in run.graph.node}
        if config.operators == "weights":
            assert "QLinearConv" not in kinds  # nothing is added up in integers
            continue
        assert "QLinearConv" in kinds
        assert ("Conv" in kinds) == (config.ends == "float")
        assert max(np.abs(each).max() for each in integers_of(run)) <= 64
        assert np.iinfo(np.int16).max >= 2 * 64 * 255


@pytest.mark.parametrize("scales", ["per channel", "per tensor"])
def test_every_layer_of_integers_has_a_bias_of_integers(scales, depthwise):
    """onnxruntime before 1.21 computes a layer with a float32 bias in float32."""
    proto = quantization(depthwise, QuantizationConfig(scales, "all", "int8"))
    dequantized = {node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 4
    assert all(len(node.input) == 3 and {*node.input} <= dequantized for node in layers)
    used = {name for node in proto.graph.node for name in node.input}
    assert {each.name for each in proto.graph.initializer} <= used
    onnx.checker.check_model(proto, full_check=True)


class Turned(nn.Module):
    """A Gemm with its weights the other way round, as (inputs, outputs)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, rows):
        return torch.addmm(self.bias, rows, self.weight)


class Plain(nn.Sequential):
    """Convolutions without a bias, in groups too, and Gemm with its weights either way round."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(3, 12, 5, 2, bias=False), nn.ReLU(), nn.Conv2d(12, 24, 3, groups=3, bias=False), nn.ReLU()),
            *(nn.Conv2d(24, 24, 3, groups=24, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            *(nn.Linear(24, 64), nn.ReLU(), Turned(64, 48), nn.ReLU(), nn.Linear(48, 2)),
        )


@pytest.mark.parametrize("network", [Depthwise, Plain])
def test_biases_keep_the_mean_of_what_rounded_weights_give(network):
    """On the images that the means were taken of, what is left comes from rounded activations."""
    moved = {scales: np.zeros(2) for scales in ("per channel", "per tensor")}
    for seed in range(4):
        torch.manual_seed(seed)
        graph = rewrite_for_quantization(fuse(exported(network(), IMAGENET)))
        ranges, means = calibrate(graph, PIXELS, "minmax"), measure_input_means(graph, PIXELS)
        none = {name: np.zeros_like(mean) for name, mean in means.items()}
        wanted = Graph(graph.SerializeToString()).gather_logits(PIXELS)
        for scales, both in moved.items():
            for at, each in enumerate((means, none)):
                content = int8_from_onnx(graph, QuantizationConfig(scales, "all", "int8"), ranges, each)
                both[at] += np.abs((Graph(content).gather_logits(PIXELS) - wanted).mean(axis=0)).mean()
    assert all(corrected < 0.5 * uncorrected for corrected, uncorrected in moved.values()), moved


@pytest.mark.parametrize("weight", [0.0, 1e-12])
@pytest.mark.parametrize("channels", [slice(0, 3), slice(None)])
def test_what_training_switched_off_keeps_its_bias(weight, channels):
    """Beside weights of nearly nothing a bias has more steps than 32 bits count."""
    torch.manual_seed(0)
    network = Depthwise()
    with torch.no_grad():
        for layer in (network[0], network[3]):
            layer.weight[channels] = weight
            layer.bias[channels] = 0.7
    content = exported(network, IMAGENET)
    wanted = Graph(content).gather_logits(PIXELS)
    for scales in ("per channel", "per tensor"):
        given = Graph(
            quantization(fuse(content), QuantizationConfig(scales, "all", "int8")).SerializeToString()
        ).gather_logits(PIXELS)
        assert np.abs(given - wanted).max() <= 0.05 * np.abs(wanted).max()


class Pooling(nn.Module):
    """A convolution of colours, and a mean over all places that keeps its axes, or does not."""

    def __init__(self, pads, keepdim):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=pads)
        self.fc = nn.Linear(4, 2)
        self.keepdim = keepdim

    def forward(self, images):
        return self.fc(torch.relu(self.conv(images)).mean((2, 3), keepdim=self.keepdim).flatten(1))


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize(
    ("pads", "normalize", "kinds", "most"),
    [
        (0, IMAGENET, ["Transpose", "DequantizeLinear", "Conv", "Relu", "GlobalAveragePool"], 1e-4),
        (1, IMAGENET, ["Transpose", "DequantizeLinear", "Conv", "Relu", "GlobalAveragePool"], 0.05),
        # To pad with one number would be to pad with another colour than the mean.
        (1, Normalize((0.2, 0.5, 0.8), (0.2, 0.2, 0.2)), ["Cast", "Transpose", "Sub", "Mul", "Conv"], 1e-4),
        (0, Normalize((0.2, 0.5, 0.8), (0.2, 0.2, 0.2)), ["Transpose", "DequantizeLinear", "Conv"], 1e-4),
    ],
)
def test_for_integers_the_first_layer_takes_pixels_and_pools_have_one_name(pads, normalize, kinds, most, keepdim):
    torch.manual_seed(0)
    content = exported(Pooling(pads, keepdim), normalize)
    before = fuse(content)
    after = rewrite_for_quantization(before)
    assert [node.op_type for node in after.graph.node][: len(kinds)] == kinds
    assert "ReduceMean" not in {node.op_type for node in after.graph.node}
    onnx.checker.check_model(after, full_check=True)
    wanted = Graph(content).run(PIXELS)[0]
    given = Graph(after.SerializeToString()).run(PIXELS)[0]
    assert np.abs(given - wanted).max() <= most * np.abs(wanted).max()
    assert before.SerializeToString(deterministic=True) == fuse(content).SerializeToString(deterministic=True)
    integers = quantization(before, QUANTIZATION_CONFIGS[0])
    quantized = Graph(integers.SerializeToString()).run(PIXELS)[0]
    assert np.abs(quantized - wanted).max() <= 0.05 * np.abs(wanted).max()
    rounded = [node.output[0] for node in integers.graph.node if node.op_type == "QuantizeLinear"]
    assert ("DequantizeLinear" in kinds) == (not any("mul" in name for name in rounded))  # pixels are not rounded again


def test_the_fastest_way_that_is_good_enough_is_taken(graph, images):
    search = QuantizationSearch(graph, images)
    first = next(search.candidates(max_drop=0.5))
    timed = {each.config: each.latency_ms for each in search.table}
    assert len(timed) == len(QUANTIZATION_CONFIGS)
    assert search.float_accuracy - first.trial.accuracy <= 0.005
    assert first.trial.agreement >= 0.95
    good = [each for each in search.seen if search.float_accuracy - each.accuracy <= 0.005 and each.agreement >= 0.95]
    fastest_ms = min(each.latency_ms for each in good)
    assert all(each.latency_ms <= 1.05 * fastest_ms for each in good)  # no slower one was looked at
    as_much = [each for each in good if each.agreement >= max(one.agreement for one in good) - 0.005]
    assert first.trial.size_bytes == min(each.size_bytes for each in as_much)
    assert Graph(first.content).run(images.search_images.pixels[:3])[0].shape == (3, 10)
    table = list(lines(search))
    assert table[0].split()[0] == "way"
    assert len(table) >= 2 + len(QUANTIZATION_CONFIGS)


def test_where_no_way_is_good_enough_the_table_is_told_and_nothing_is_written(artifacts, tmp_path, monkeypatch, model):
    from clf_export import exporting

    folder = tmp_path / "artifacts"
    folder.mkdir()
    for name in ("model.pt", "model.json"):
        shutil.copy(artifacts / name, folder)
    # More than all of the labels cannot be kept: a floor that no way reaches.
    monkeypatch.setattr(search_module, "MIN_AGREEMENT", 1.01)
    said = []
    with pytest.raises(InvalidModelError, match=r"no way of making it keeps accuracy within 0\.5 percentage points"):
        exporting.export(folder, TARGETS[2:3], say=said.append)
    assert sum("ends" in line for line in said) >= len(QUANTIZATION_CONFIGS)
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.pt"]
