"""A dozen of torchvision's networks, each of another kind, give the same as ONNX; all of them: benchmarks/zoo.py."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT

from clf_export.exporters.onnx import onnx_from_program
from clf_export.exporters.trace import program_from_model
from clf_runtime.errors import InvalidModelError

sys.path.append(str(ROOT / "benchmarks"))
import zoo

# Convolutions of every kind, transformers with windows and without, auxiliary heads, sizes that are fixed.
NETWORKS = (
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vit_b_32",
)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_torchvision_exports_to_what_it_is(name):
    row = zoo.row(name)
    assert row["reached"], row
    assert row["difference / scale"] < zoo.WITHIN == 1e-4


def test_a_network_that_is_too_large_for_one_file_is_told_so():
    with pytest.raises(
        InvalidModelError, match=r"its weights take 2\.5 GB, and one ONNX file holds 2\.1 GB at most; --format pt2"
    ):
        onnx_from_program(program_from_model(*zoo.deployable("vit_h_14")))
