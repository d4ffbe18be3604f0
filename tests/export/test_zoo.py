"""Networks of torchvision, each of another kind, have the same logits as ONNX; all of them: benchmarks/zoo.py."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import ROOT
from torch import nn

from clf_export.exporters.module import ExportModule
from clf_export.exporters.onnx import onnx_from_program
from clf_export.exporters.trace import program_from_model
from clf_runtime.errors import InvalidModelError
from clf_runtime.spec import ModelSpec, Normalize, Preprocess

sys.path.append(str(ROOT / "benchmarks"))
import zoo

# A light network with depthwise convolutions.
QUICK_NETWORK = "shufflenet_v2_x0_5"
# Convolutions of every kind, transformers with and without windows, auxiliary heads, fixed input sizes.
SLOW_NETWORKS = (
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "regnet_y_400mf",
    "resnet18",
    "squeezenet1_1",
    "swin_t",
    "vit_b_32",
)


@pytest.mark.parametrize(
    "name", [QUICK_NETWORK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_NETWORKS)]
)
def test_a_network_of_torchvision_has_the_same_logits_as_onnx(name):
    row = zoo.measure(name)
    assert "reason" not in row
    assert row["reached"], row
    assert row["difference / scale"] < zoo.TOLERANCE == 1e-4


def test_a_network_that_is_too_large_for_one_file_is_an_error():
    with torch.device("meta"):  # shapes without memory
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 25_000), nn.Linear(25_000, 25_000), nn.Linear(25_000, 2))
        preprocess = Preprocess("L", 8, 8, "crop", 1.0, "bilinear", (255,))
        normalize = Normalize((0.5,), (0.5,))
        spec = ModelSpec("large", ("a", "b"), preprocess, normalize, temperature=1.0, metrics=None, provenance=None)
        program = program_from_model(ExportModule(network, spec).eval(), spec)
    with pytest.raises(
        InvalidModelError, match=r"the weights take 2\.5 GB, and one ONNX file holds at most 2\.1 GB; --format pt2"
    ):
        onnx_from_program(program)
