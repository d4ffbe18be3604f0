"""INT8: its integers, the answers they keep, and the choice among the quantization configs."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator
from quantizing import IMAGENET, PIXELS, Pooling, export_onnx, quantize
from torch import nn

from clf_export.callbacks import IgnoreCallbacks
from clf_export.exporters.module import ExportModule
from clf_export.exporters.onnx import onnx_from_program
from clf_export.exporters.trace import program_from_model
from clf_export.formats import TARGETS
from clf_export.quantize import int8 as int8_module
from clf_export.quantize import search as search_module
from clf_export.quantize.bias_correction import measure_input_means
from clf_export.quantize.calibration import CALIBRATIONS, Calibration
from clf_export.quantize.graph import Graph, fuse, optimize
from clf_export.quantize.int8 import (
    QUANTIZATION_CONFIGS,
    QUANTIZED_OPERATORS,
    QuantizationConfig,
    QuantizationError,
    int8_from_onnx,
)
from clf_export.quantize.rewrite import rewrite_for_quantization
from clf_export.quantize.search import QuantizationSearch
from clf_export.quantize.trial import format_trials
from clf_export.reference_split import SearchImages, find_test_split
from clf_runtime.errors import InvalidModelError
from clf_runtime.spec import Normalize
from clf_train.models.saved import load_saved_model


@pytest.fixture(scope="module")
def saved(artifacts):
    return load_saved_model(artifacts)


@pytest.fixture(scope="module")
def graph(saved):
    """The float32 graph of the digits' network, as the bytes of an ONNX file without metadata."""
    return onnx_from_program(program_from_model(ExportModule(saved.model, saved.spec).eval(), saved.spec))


@pytest.fixture(scope="module")
def split(artifacts, saved):
    return find_test_split(artifacts, saved.spec, None, None)


class Depthwise(nn.Sequential):
    """A layer of each kind, connected by operators that have an integer form."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU6(), nn.Conv2d(16, 32, 1)),
            *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)),
        )


def integers_of(proto: onnx.ModelProto) -> list[np.ndarray]:
    return [
        onnx.numpy_helper.to_array(tensor).astype(int)
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]


@pytest.fixture(scope="module")
def depthwise():
    torch.manual_seed(0)
    return fuse(export_onnx(Depthwise(), IMAGENET))


@pytest.mark.parametrize("config", QUANTIZATION_CONFIGS, ids=str)
def test_integer_sums_saturate_on_no_processor(config, graph, split, depthwise):
    """Weights have 7 bits and activations are unsigned: two products fit the 16 bits in which AVX2 adds them."""
    for fused, pixels in ((fuse(graph), split.calibration), (depthwise, PIXELS)):
        if (config.operators, config.ends) == ("no depthwise", "int8") and fused is depthwise:
            # Between quantized layers, onnxruntime would quantize the depthwise layer too, with 8 bits.
            with pytest.raises(QuantizationError, match=r"onnxruntime would quantize the weights Conv_.* with 8 bits"):
                quantize(fused, config, pixels)
            continue
        proto = quantize(fused, config, pixels)
        assert integers_of(proto)
        assert proto.opset_import[0].version == 18
        assert {opset.domain for opset in proto.opset_import} == {""}
        optimized = optimize(proto.SerializeToString())
        operators = {node.op_type for node in optimized.graph.node}
        if config.operators == "weights":
            assert "QLinearConv" not in operators  # there are no integer sums
            continue
        assert "QLinearConv" in operators
        assert ("Conv" in operators) == (config.ends == "float")
        assert max(np.abs(weights).max() for weights in integers_of(optimized)) <= 64
        assert np.iinfo(np.int16).max >= 2 * 64 * 255


@pytest.mark.parametrize("scales", ["per channel", "per tensor"])
def test_every_quantized_layer_has_an_integer_bias(scales, depthwise):
    """onnxruntime before 1.21 computes a layer with a float32 bias in float32."""
    proto = quantize(depthwise, QuantizationConfig(scales, "all", "int8"))
    dequantized = {node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 4
    assert all(len(node.input) == 3 and {*node.input} <= dequantized for node in layers)
    used = {name for node in proto.graph.node for name in node.input}
    assert {tensor.name for tensor in proto.graph.initializer} <= used
    onnx.checker.check_model(proto, full_check=True)


class Transposed(nn.Module):
    """A Gemm with transposed weights, (inputs, outputs)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, rows):
        return torch.addmm(self.bias, rows, self.weight)


class Unbiased(nn.Sequential):
    """Convolutions without a bias, also grouped ones, and a Gemm with weights in either layout."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(3, 12, 5, 2, bias=False), nn.ReLU(), nn.Conv2d(12, 24, 3, groups=3, bias=False), nn.ReLU()),
            *(nn.Conv2d(24, 24, 3, groups=24, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            *(nn.Linear(24, 64), nn.ReLU(), Transposed(64, 48), nn.ReLU(), nn.Linear(48, 2)),
        )


@pytest.mark.parametrize("network", [Depthwise, Unbiased])
def test_bias_correction_keeps_the_mean_of_the_logits(network):
    """On the images that the means were measured on, only rounded activations are left as a source of error."""
    shift = {scales: np.zeros(2) for scales in ("per channel", "per tensor")}
    for seed in range(4):
        torch.manual_seed(seed)
        graph = rewrite_for_quantization(fuse(export_onnx(network(), IMAGENET)))
        ranges, means = Calibration(graph, PIXELS).ranges("minmax"), measure_input_means(graph, PIXELS)
        none = {name: np.zeros_like(mean) for name, mean in means.items()}
        expected = Graph(graph.SerializeToString()).compute_logits(PIXELS)
        for scales, shifts in shift.items():
            for index, measured in enumerate((means, none)):
                content = int8_from_onnx(graph, QuantizationConfig(scales, "all", "int8"), ranges, measured)
                shifts[index] += np.abs((Graph(content).compute_logits(PIXELS) - expected).mean(axis=0)).mean()
    assert all(corrected < 0.5 * uncorrected for corrected, uncorrected in shift.values()), shift


@pytest.mark.parametrize("weight", [0.0, 1e-12])
@pytest.mark.parametrize("channels", [slice(0, 3), slice(None)])
def test_a_channel_that_training_switched_off_keeps_its_bias(weight, channels):
    """In steps of weights near zero, a bias is larger than 32 bits can count."""
    torch.manual_seed(0)
    network = Depthwise()
    with torch.no_grad():
        for layer in (network[0], network[3]):
            layer.weight[channels] = weight
            layer.bias[channels] = 0.7
    content = export_onnx(network, IMAGENET)
    expected = Graph(content).compute_logits(PIXELS)
    for scales in ("per channel", "per tensor"):
        quantized = quantize(fuse(content), QuantizationConfig(scales, "all", "int8"))
        logits = Graph(quantized.SerializeToString()).compute_logits(PIXELS)
        assert np.abs(logits - expected).max() <= 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("weight", [None, 0.0, 1e-40])
def test_the_scales_of_channels_are_those_of_onnxruntimes_quantizer(graph, split, weight, monkeypatch):
    network = Depthwise()
    if weight is not None:
        with torch.no_grad():
            network[3].weight[2:5] = weight
    for fused, pixels in ((fuse(graph), split.calibration), (fuse(export_onnx(network, IMAGENET)), PIXELS)):
        config = QuantizationConfig("per channel", "all", "int8")
        quantized = quantize(fused, config, pixels)
        with monkeypatch.context() as patch:
            patch.setattr(int8_module, "_scales_per_channel", lambda graph: {})
            assert quantize(fused, config, pixels) == quantized


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize(
    ("pads", "normalize", "operators", "tolerance"),
    [
        (0, IMAGENET, ["Transpose", "DequantizeLinear", "Conv", "Relu", "GlobalAveragePool"], 1e-4),
        (1, IMAGENET, ["Transpose", "DequantizeLinear", "Conv", "Relu", "GlobalAveragePool"], 0.05),
        # One pixel value for the padding of all channels would be far from the mean color.
        (1, Normalize((0.2, 0.5, 0.8), (0.2, 0.2, 0.2)), ["Cast", "Transpose", "Sub", "Mul", "Conv"], 1e-4),
        (0, Normalize((0.2, 0.5, 0.8), (0.2, 0.2, 0.2)), ["Transpose", "DequantizeLinear", "Conv"], 1e-4),
    ],
)
def test_the_first_layer_takes_pixels_and_means_become_pools(pads, normalize, operators, tolerance, keepdim):
    torch.manual_seed(0)
    content = export_onnx(Pooling(pads, keepdim), normalize)
    before = fuse(content)
    after = rewrite_for_quantization(before)
    assert [node.op_type for node in after.graph.node][: len(operators)] == operators
    assert "ReduceMean" not in {node.op_type for node in after.graph.node}
    onnx.checker.check_model(after, full_check=True)
    expected = Graph(content).run(PIXELS)[0]
    logits = Graph(after.SerializeToString()).run(PIXELS)[0]
    assert np.abs(logits - expected).max() <= tolerance * np.abs(expected).max()
    assert before.SerializeToString(deterministic=True) == fuse(content).SerializeToString(deterministic=True)
    quantized = quantize(before, QUANTIZATION_CONFIGS[0])
    logits = Graph(quantized.SerializeToString()).run(PIXELS)[0]
    assert np.abs(logits - expected).max() <= 0.05 * np.abs(expected).max()
    rounded = [node.output[0] for node in quantized.graph.node if node.op_type == "QuantizeLinear"]
    # Pixels that the first layer takes are not quantized again.
    assert ("DequantizeLinear" in operators) == (not any("mul" in name for name in rounded))


def is_accepted(trial, baseline, max_drop=0.5):
    return (
        trial.accuracy is not None
        and 100 * (baseline.accuracy - trial.accuracy) <= max_drop + 1e-9
        and trial.agreement >= 0.95
    )


def test_the_fastest_config_that_keeps_the_answers_is_chosen(graph, split):
    result = QuantizationSearch(graph, split, max_drop=0.5).run()
    assert {trial.config for trial in result.trials} == set(QUANTIZATION_CONFIGS)
    assert all(trial.latency_ms > 0 for trial in result.trials)
    chosen, baseline = result.chosen.trial, result.baseline
    assert result.chosen is result.accepted[0]
    assert chosen in result.trials
    accepted = [trial for trial in result.trials if is_accepted(trial, baseline)]
    assert accepted == sorted((candidate.trial for candidate in result.accepted), key=accepted.index)
    fastest_ms = min(trial.latency_ms for trial in accepted)
    assert all(trial.latency_ms <= 1.05 * fastest_ms for trial in accepted)  # no slower config was evaluated
    highest = max(trial.agreement for trial in accepted)
    assert chosen.size_bytes == min(t.size_bytes for t in accepted if t.agreement >= highest - 0.005)
    assert Graph(result.chosen.content).run(split.search_images.pixels[:3])[0].shape == (3, 10)


def test_slower_configs_are_evaluated_until_one_is_verified_and_the_result_has_all_trials(graph, split):
    offered = []

    def verify(accepted, baseline):
        offered.append(accepted)
        return accepted.trial.config.operators == "weights"

    result = QuantizationSearch(graph, split, max_drop=0.5).run(verify)
    assert result.chosen is offered[-1]
    assert result.chosen.trial.config.operators == "weights"
    assert len(offered) > 1
    assert tuple(offered) == result.accepted[: len(offered)]
    assert {trial.config for trial in result.trials} == set(QUANTIZATION_CONFIGS)

    rejected = QuantizationSearch(graph, split, max_drop=0.5).run(lambda accepted, baseline: False)
    assert rejected.chosen is None
    assert {candidate.trial.config for candidate in rejected.accepted} == set(QUANTIZATION_CONFIGS)
    assert all(trial.accuracy is not None for trial in rejected.trials)


def test_every_calibration_is_tried_where_one_loses_too_much(graph, split, monkeypatch, capfd):
    # No config can keep more than all labels.
    monkeypatch.setattr(search_module, "MIN_AGREEMENT", 1.01)
    result = QuantizationSearch(graph, split, max_drop=0.5).run()
    assert result.accepted == ()
    assert result.chosen is None
    expected = {
        (config, calibration)
        for config in QUANTIZATION_CONFIGS
        for calibration in (CALIBRATIONS[:1] if config.operators == "weights" else CALIBRATIONS)
    }
    assert {(trial.config, trial.calibration) for trial in result.trials} == expected
    assert len(result.trials) == len(expected)
    table = format_trials(result)
    assert table[0].split() == ["configuration", "calibration", "size", "latency", "accuracy", "agreement"]
    assert table[1].startswith("float32 ")
    assert len(table) == 2 + len(expected)
    # Each trial ended as soon as it could no longer be accepted.
    assert all(trial.accuracy is None for trial in result.trials)
    assert sum("≤ " in line for line in table) == len(expected)
    assert capfd.readouterr() == ("", "")  # onnxruntime's calibrators print what they do


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_the_ranges_are_those_of_onnxruntimes_own_calibrator(graph, split, tmp_path, method, capfd):
    model = rewrite_for_quantization(fuse(graph))
    onnx.save(model, tmp_path / "model.onnx")
    calibrator = create_calibrator(
        tmp_path / "model.onnx",
        sorted(QUANTIZED_OPERATORS),
        augmented_model_path=str(tmp_path / "augmented.onnx"),
        calibrate_method=CalibrationMethod[method.capitalize()],
        extra_options={"symmetric": False},
    )
    batch = iter([{"image": split.calibration}])
    calibrator.collect_data(type("Reader", (CalibrationDataReader,), {"get_next": lambda self: next(batch, None)})())
    expected = calibrator.compute_data()
    capfd.readouterr()
    ranges = Calibration(model, split.calibration).ranges(method)
    assert capfd.readouterr() == ("", "")
    assert set(ranges.keys()) == set(expected.keys())
    for name in expected.keys():  # noqa: SIM118 (onnxruntime's type cannot be iterated)
        limits, others = ([float(limit) for limit in data[name].range_value] for data in (ranges, expected))
        assert limits == pytest.approx(others, rel=1e-5, abs=2e-3 * (others[1] - others[0]))


class Messages(IgnoreCallbacks):
    """Collects messages, and the latest list of finished files."""

    def __init__(self):
        self.lines = []
        self.exported = ()

    def on_message(self, message):
        self.lines.append(message)

    def on_exported(self, exported):
        self.exported = exported


def test_where_no_config_keeps_the_answers_the_table_is_printed_and_the_earlier_file_keeps_its_record(
    artifacts, tmp_path, monkeypatch
):
    from clf_export import exporting

    folder = tmp_path / "artifacts"
    folder.mkdir()
    for name in ("model.pt", "model.json"):
        shutil.copy(artifacts / name, folder)
    monkeypatch.setattr(search_module, "MIN_AGREEMENT", 1.01)
    callbacks = Messages()
    with pytest.raises(
        InvalidModelError, match=r"no INT8 configuration keeps the accuracy drop within 0\.5 percentage points"
    ):
        exporting.export(folder, (TARGETS[0], TARGETS[2]), callbacks=callbacks)
    assert sum("ends" in line for line in callbacks.lines) >= len(QUANTIZATION_CONFIGS)
    written = {"model.onnx", "export.json", "report.html"}
    assert {path.name for path in folder.iterdir()} == {"model.json", "model.pt", *written}
    assert [file.path.name for file in callbacks.exported] == ["model.onnx"]
    record = json.loads((folder / "export.json").read_text())
    assert record["model.onnx"]["latency_ms"] > 0
    assert [*record] == ["model.onnx"]


class BroadcastBias(nn.Module):
    """A Gemm with one bias for all outputs, for which onnxruntime's quantizer has no form per channel."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, 3)
        self.weight = nn.Parameter(torch.randn(8, 2))
        self.bias = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return torch.addmm(self.bias, torch.relu(self.conv(images)).mean((2, 3)), self.weight)


class ZeroMeans(nn.Sequential):
    """Means of normalized channels are zero, and onnxruntime does not run an integer pool with so small a scale."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(3, 8, 5, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
        )


class Images:
    """The images of a search."""

    calibration = PIXELS
    search_images = SearchImages(PIXELS, np.arange(len(PIXELS)) % 2)


@pytest.mark.parametrize(
    ("network", "is_impossible", "message"),
    [
        (Depthwise, lambda config: (config.operators, config.ends) == ("no depthwise", "int8"), "with 8 bits"),
        (
            BroadcastBias,
            lambda config: (
                (config.scales, config.ends, config.operators == "weights") == ("per channel", "int8", False)
            ),
            "onnxruntime's quantizer: index 1 is out of bounds",
        ),
        (
            ZeroMeans,
            lambda config: config.operators == "all",
            "onnxruntime cannot run it: .*QLinearGlobalAveragePool parameter out of computation range",
        ),
    ],
)
def test_a_config_that_the_network_does_not_have_is_a_trial_with_the_reason(network, is_impossible, message):
    torch.manual_seed(0)
    result = QuantizationSearch(export_onnx(network(), IMAGENET), Images(), max_drop=100).run(lambda *_: False)
    impossible = {config for config in QUANTIZATION_CONFIGS if is_impossible(config)}
    too_small = {trial.config for trial in result.trials if trial.error == "no layer is left to quantize"}
    assert 0 < len(impossible) < len(QUANTIZATION_CONFIGS)
    errors = {trial.config: trial.error for trial in result.trials if trial.error and trial.config not in too_small}
    assert errors.keys() == impossible
    assert all(re.search(message, error) for error in errors.values())
    assert {trial.config for trial in result.trials} == set(QUANTIZATION_CONFIGS)
    possible = set(QUANTIZATION_CONFIGS) - impossible - too_small
    assert {trial.config for trial in result.trials if trial.accuracy is not None} == possible
    lines = format_trials(result)
    assert sum("not possible: " in line and re.search(message, line) is not None for line in lines) == len(impossible)


class NoLayers(nn.Module):
    """The mean of each channel as its logit: nothing has weights."""

    def forward(self, images):
        return images.mean((2, 3))


def test_a_network_without_weights_has_no_int8_config():
    result = QuantizationSearch(export_onnx(NoLayers(), IMAGENET), Images(), max_drop=100).run(lambda *_: True)
    assert result.chosen is None
    assert {trial.config for trial in result.trials if trial.error} == set(QUANTIZATION_CONFIGS)
    assert result.trials[-1].error == "no layer has 256 weights or more"


@pytest.mark.parametrize("error", [ValueError, IndexError, KeyError, RuntimeError])
@pytest.mark.parametrize("function", ["correct_biases", "nodes_with"])
def test_an_error_in_our_own_code_is_not_mistaken_for_an_impossible_config(graph, split, monkeypatch, function, error):
    def fail(*arguments):
        raise error("a bug")

    monkeypatch.setattr(int8_module, function, fail)
    with pytest.raises(error, match="a bug"):
        QuantizationSearch(graph, split, max_drop=0.5).run()


def test_a_network_whose_layers_have_no_bias_of_their_own_is_quantized():
    """A MatMul has none, so there are no biases to correct."""

    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 3, 2) / 50)

        def forward(self, images):
            rows = images.unfold(2, 8, 8).unfold(3, 8, 8).mean((2, 3, 5))  # (N, 3, 8)
            return (rows.transpose(1, 2).unsqueeze(2) @ self.weight).sum((1, 2))

    torch.manual_seed(0)
    content = export_onnx(Product(), IMAGENET)
    assert {"Conv", "Gemm"}.isdisjoint(node.op_type for node in onnx.ModelProto.FromString(content).graph.node)
    result = QuantizationSearch(content, Images(), max_drop=100).run(lambda *_: False)
    assert {trial.config.ends for trial in result.trials if not trial.error} == {"int8"}
