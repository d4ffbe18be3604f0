"""The last lines of clf-train: the accuracy with its interval, the latency to expect, and a command that works."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace

import pytest
import torch
from conftest import BIN
from odd_images import drawing
from torch import nn

from clf_runtime.spec import Metrics, ModelSpec, Normalize, Preprocess, Provenance
from clf_train.engine.latency import estimate_latency
from clf_train.models.factory import build_model
from clf_train.models.folding import fold_batch_norm
from clf_train.summary import format_accuracy, format_export_command, format_latency

PREPROCESS = Preprocess("RGB", 32, 32, "crop", 1.0, "bilinear", (255, 255, 255))
PROVENANCE = Provenance("photos", None, "0" * 64, 0.2, 0, 1, "0" * 64, "", "", {})
SPEC = ModelSpec("small-resnet", ("a", "b"), PREPROCESS, Normalize((0.5,) * 3, (0.5,) * 3), 1.0, None, PROVENANCE)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    monkeypatch.delenv("CLF_ARTIFACTS", raising=False)
    monkeypatch.delenv("CLF_DATA_ROOT", raising=False)


@pytest.mark.parametrize(
    ("correct", "images", "text"),
    [
        (346, 372, "accuracy 93.0 % (95 % interval 90.0 to 95.2 %) on 372 test images"),
        (9941, 10000, "accuracy 99.41 % (95 % interval 99.24 to 99.54 %) on 10,000 test images"),
        (3, 3, "accuracy 100.0 % (95 % interval 43.9 to 100.0 %) on 3 test images"),
    ],
)
def test_the_accuracy_has_its_interval_and_no_more_digits_than_it_deserves(correct, images, text):
    assert format_accuracy(Metrics("test", images, correct / images, 0.1, 0.1)) == text


@pytest.mark.parametrize(("latency_ms", "text"), [(0.2345, "0.2 ms"), (6.4, "6 ms"), (9.6, "10 ms"), (231, "231 ms")])
def test_an_estimate_has_one_digit_or_whole_milliseconds(latency_ms, text):
    assert format_latency(latency_ms) == text


def test_the_next_command_has_every_option_that_it_needs(monkeypatch):
    assert format_export_command(SPEC, "artifacts") == "clf-export --format onnx"
    own = replace(SPEC, architecture="own.nets:build")
    assert format_export_command(own, "my models") == (
        "clf-export -a 'my models' --trust-factory own.nets:build --format onnx"
    )
    downloaded = replace(SPEC, provenance=replace(PROVENANCE, data="mnist", data_root="sets"))
    assert format_export_command(downloaded, "artifacts") == "clf-export --format onnx"
    monkeypatch.setenv("CLF_DATA_ROOT", "elsewhere")
    monkeypatch.setenv("CLF_ARTIFACTS", "other")
    assert format_export_command(downloaded, "artifacts") == ("clf-export -a artifacts --data-root sets --format onnx")


def test_the_printed_next_command_works_as_printed(command, tmp_path):
    """With everything that has to be in it: a factory, a relative data folder, and spaces in names."""
    for label in ("red one", "b"):
        (tmp_path / "my photos" / label).mkdir(parents=True)
        for number in range(6):
            drawing(20 + number, 24).save(tmp_path / "my photos" / label / f"{number}.png")
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n"
        "def build(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 20, num_classes))\n"
    )
    arguments = ("--data", "my photos", "-a", "my models", "--model", "own_net:build", "--epochs", 1)
    too_large = command("clf-train", *arguments)
    assert too_large.code == 3
    assert "own_net:build: fails on 23x23 RGB images (" in too_large.err.splitlines()[-1]
    done = command("clf-train", *arguments, "--size", 20)
    assert done.code == 0, done.err
    next_command = re.search(r"; next: (.*)\n\Z", done.out).group(1)
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    exported = subprocess.run(
        next_command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "my models/model.onnx").exists()


@pytest.mark.parametrize("name", ["efficientnet_lite0", "small-resnet", "mobilenet_v3_small", "resnet18"])
def test_folded_batch_normalization_changes_no_output_and_leaves_the_network(name):
    torch.manual_seed(0)
    model = build_model(name, PREPROCESS.shape, 3).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    images = torch.rand(2, *PREPROCESS.shape).permute(0, 3, 1, 2)
    with torch.inference_mode():
        before = model(images)
        folded = fold_batch_norm(model)
        torch.testing.assert_close(folded(images), before, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(model(images), before, rtol=0, atol=0)
    assert not [node for node in folded.graph.nodes if "bn" in str(node.target)]


class Branching(nn.Module):
    """A network that torch.fx cannot trace."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Look at the values."""
        return images.mean((2, 3)) if images.sum() >= 0 else images.amax((2, 3))


class Failing(nn.Module):
    """A network that fails."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Fail."""
        raise RuntimeError("only on a GPU")


def test_every_network_that_runs_has_a_latency_and_training_mode_and_weights_stay():
    model = build_model("tiny-convnet", PREPROCESS.shape, 3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert estimate_latency(model, PREPROCESS) > 0
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert estimate_latency(Branching(), PREPROCESS) > 0
    assert estimate_latency(Failing(), PREPROCESS) is None
