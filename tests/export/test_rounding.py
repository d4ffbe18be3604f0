"""INT8 gives the same integers on every processor: no value depends on how float32 sums are rounded."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from quantizing import IMAGENET, PIXELS, Pooling, export_onnx, quantize
from torch import nn

from clf_export.quantize import int8 as int8_module
from clf_export.quantize.graph import Graph, constants_of, fuse, optimize
from clf_export.quantize.int8 import QUANTIZATION_CONFIGS, QuantizationConfig
from clf_export.quantize.rewrite import rewrite_for_quantization
from clf_export.quantize.rounding import round_for_exact_sums

RANDOM = np.random.default_rng(0)


class Residual(nn.Module):
    """Two sums, of which the first is a term of the second."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)])
        self.fc = nn.Linear(8, 2)

    def forward(self, images):
        features = self.convs[0](images)
        for conv in self.convs[1:]:
            features = features + conv(features)
        return self.fc(features.mean((2, 3)))


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    return fuse(export_onnx(Residual(), IMAGENET))


def test_rounded_sums_are_exact_in_any_order():
    weights, bias = RANDOM.normal(size=(16, 3, 3, 3)), RANDOM.normal(size=16)
    weights[3] *= 1e-4
    weights[5], bias[5] = 0, 0
    rounded, rounded_bias = round_for_exact_sums(weights, bias)
    pixels = RANDOM.integers(-255, 256, (50, 27))
    pixels[0], pixels[1] = 255, -255
    exact = pixels @ rounded.reshape(16, 27).T + rounded_bias
    terms = np.concatenate(
        [pixels[:, None] * rounded.reshape(1, 16, 27), np.broadcast_to(rounded_bias[:, None], (50, 16, 1))], axis=2
    ).astype(np.float32)
    for _ in range(5):
        summed = np.add.accumulate(terms[..., RANDOM.permutation(28)], axis=2, dtype=np.float32)[..., -1]
        assert (summed == exact).all()
    largest = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(rounded - weights) <= largest / 2**10).all()
    unrounded = np.add.accumulate((pixels[:, None] * weights.reshape(1, 16, 27)).astype(np.float32), axis=2)[..., -1]
    assert (unrounded != pixels @ weights.reshape(16, 27).T).any()


@pytest.mark.parametrize("pads", [0, 1])
def test_a_first_layer_in_float32_takes_whole_numbers(pads):
    torch.manual_seed(0)
    content = export_onnx(Pooling(pads, True), IMAGENET)
    after = rewrite_for_quantization(fuse(content), takes_pixels=False)
    onnx.checker.check_model(after, full_check=True)
    assert [node.op_type for node in after.graph.node][:4] == ["Cast", "Transpose", "Sub", "Conv"]
    zero = constants_of(after.graph)[after.graph.node[2].input[1]]
    assert zero == np.rint(zero)
    expected = Graph(content).run(PIXELS)[0]
    difference = np.abs(Graph(after.SerializeToString()).run(PIXELS)[0] - expected).max()
    assert difference <= (0.05 if pads else 1e-3) * np.abs(expected).max()


@pytest.mark.parametrize("scales", ["per channel", "per tensor"])
@pytest.mark.parametrize("ends", ["int8", "float"])
def test_no_sum_of_integers_is_halfway_between_two_others(residual, scales, ends, monkeypatch):
    config = QuantizationConfig(scales, "all", ends)
    quantized = quantize(residual, config)
    optimized = optimize(quantized.SerializeToString()).graph
    constants = constants_of(optimized)
    sums = [node for node in optimized.node if node.op_type == "QLinearAdd"]
    assert len(sums) == 2
    a, b = (values.ravel().astype(np.float64) for values in np.meshgrid(np.arange(256), np.arange(256)))
    for node in sums:
        scale_a, zero_a, scale_b, zero_b, scale = (float(constants[node.input[at]]) for at in (1, 2, 4, 5, 6))
        exact = ((a - zero_a) * scale_a + (b - zero_b) * scale_b) / scale
        assert np.abs(exact - np.floor(exact) - 0.5).min() > 5e-4
    monkeypatch.setattr(int8_module, "keep_sums_from_ties", lambda graph: None)
    before, after = (scales_of(graph) for graph in (quantize(residual, config), quantized))
    ratios = [after[name] / before[name] for name in before]
    # Wider by a step at most, and the difference is one of rounding.
    assert all(1 - 1e-6 <= ratio < 1.03 for ratio in ratios)
    expected = Graph(residual.SerializeToString()).run(PIXELS)[0]
    assert np.abs(Graph(quantized.SerializeToString()).run(PIXELS)[0] - expected).max() < 0.05 * np.abs(expected).max()


def scales_of(proto: onnx.ModelProto) -> dict[str, float]:
    """Return the scale of each activation by the name of the tensor."""
    constants = constants_of(proto.graph)
    nodes = (node for node in proto.graph.node if node.op_type == "QuantizeLinear")
    return {node.input[0]: float(constants[node.input[1]]) for node in nodes}


def test_the_terms_of_a_sum_may_be_one_tensor():
    class Doubled(nn.Sequential):
        def forward(self, images):
            features = self[0](images)
            return self[1]((features + features).mean((2, 3)))

    torch.manual_seed(0)
    fused = fuse(export_onnx(Doubled(nn.Conv2d(3, 8, 3), nn.Linear(8, 2)), IMAGENET))
    expected = Graph(fused.SerializeToString()).run(PIXELS)[0]
    logits = Graph(quantize(fused, QUANTIZATION_CONFIGS[0]).SerializeToString()).run(PIXELS)[0]
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
