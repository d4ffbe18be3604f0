"""Small networks as float32 graphs, and their quantization as the search does it."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from torch import nn

from clf_export.exporters.module import ExportModule
from clf_export.exporters.onnx import onnx_from_program
from clf_export.exporters.trace import program_from_model
from clf_export.quantize.bias_correction import measure_input_means
from clf_export.quantize.calibration import Calibration
from clf_export.quantize.int8 import QuantizationConfig, int8_from_onnx
from clf_export.quantize.rewrite import rewrite_for_quantization
from clf_runtime.spec import ModelSpec, Normalize, Preprocess

IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 32, 3), dtype=np.uint8)


class Pooling(nn.Module):
    """A convolution of colors, and a mean over height and width that keeps these axes, or does not."""

    def __init__(self, pads, keepdim):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=pads)
        self.fc = nn.Linear(4, 2)
        self.keepdim = keepdim

    def forward(self, images):
        return self.fc(torch.relu(self.conv(images)).mean((2, 3), keepdim=self.keepdim).flatten(1))


def export_onnx(network: nn.Module, normalize: Normalize) -> bytes:
    preprocess = Preprocess("RGB", 24, 32, "crop", 1.0, "bilinear", (255, 255, 255))
    spec = ModelSpec("network", ("a", "b"), preprocess, normalize, temperature=1.0, metrics=None, provenance=None)
    return onnx_from_program(program_from_model(ExportModule(network.eval(), spec).eval(), spec))


def quantize(fused: onnx.ModelProto, config: QuantizationConfig, pixels=PIXELS) -> onnx.ModelProto:
    """Quantize a float32 graph as the search does, with the first calibration."""
    graph = fused
    if config.operators != "weights":
        graph = rewrite_for_quantization(fused, takes_pixels=config.ends == "int8")
    ranges = Calibration(rewrite_for_quantization(fused), pixels).ranges("minmax")
    return onnx.ModelProto.FromString(int8_from_onnx(graph, config, ranges, measure_input_means(graph, pixels)))
