"""Networks by name: the state_dicts of tutorials load unchanged, and torchvision's networks have a suitable head."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from clf_runtime.errors import InvalidModelError, MachineError, UsageError
from clf_train.config import DataSource, InputOptions, TrainConfig, load_dataset
from clf_train.data.dataset import Dataset
from clf_train.models.factory import build_model, build_pretrained, replace_head
from clf_train.models.weights import create_model, load_weights
from clf_train.plan import make_plan, resolve_input
from clf_train.registry import MODELS, TORCHVISION

RGB_32, L_28 = (32, 32, 3), (28, 28, 1)

# The state_dicts of the tutorials' own scripts: key → shape, for 10 classes.
TUTORIALS = {
    "plain-conv3": {
        "model.0.weight": (32, 1, 3, 3),
        "model.2.weight": (64, 32, 3, 3),
        "model.4.weight": (64, 64, 3, 3),
        "model.7.weight": (10, 64 * 22 * 22),
    },
    "pooled-conv2": {"conv1.weight": (16, 3, 3, 3), "conv2.weight": (32, 16, 3, 3), "fc.weight": (10, 8 * 8 * 32)},
    "pooled-conv2-mlp": {
        "conv1.weight": (32, 1, 3, 3),
        "conv2.weight": (64, 32, 3, 3),
        "fc1.weight": (128, 64 * 6 * 6),
        "fc2.weight": (10, 128),
    },
    "plain-conv2-mlp": {
        "0.weight": (32, 1, 3, 3),
        "2.weight": (16, 32, 5, 5),
        "5.weight": (128, 7744),
        "7.weight": (10, 128),
    },
    "lenet": {
        "conv1.weight": (6, 3, 5, 5),
        "conv2.weight": (16, 6, 5, 5),
        "fc1.weight": (120, 400),
        "fc2.weight": (84, 120),
        "fc3.weight": (10, 84),
    },
}


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorials_network_has_the_keys_of_the_tutorials_script(name):
    row = next(row for row in MODELS if row.name == name)
    model = build_model(name, (row.size or 28, row.size or 28, 1 if row.color == "L" else 3), 10)
    weights = {key: tuple(value.shape) for key, value in model.state_dict().items() if key.endswith("weight")}
    assert weights == TUTORIALS[name]
    assert set(model.state_dict()) == {*weights, *(key.replace("weight", "bias") for key in weights)}
    assert model(torch.rand(2, 1 if row.color == "L" else 3, row.size, row.size)).shape == (2, 10)


@pytest.mark.parametrize("name", ["small-resnet", "resnet9"])
@pytest.mark.parametrize("size", [8, 9, 28, 64])
def test_the_residual_networks_take_every_size_from_8_to_64_pixels(name, size):
    assert build_model(name, RGB_32, 7).eval()(torch.rand(2, 3, size, size)).shape == (2, 7)


def test_every_classifier_of_torchvision_is_known_by_name():
    assert list(TORCHVISION) == torchvision.models.list_models(module=torchvision.models)


@pytest.mark.parametrize(
    "name",
    [
        "alexnet",
        "squeezenet1_1",
        "googlenet",
        "inception_v3",
        "mobilenet_v3_small",
        "densenet121",
        "vit_b_32",
        "swin_t",
    ],
)
def test_a_classifier_of_torchvision_has_a_head_for_the_labels(name):
    side = 299 if name == "inception_v3" else 64 if name == "vit_b_32" else 224
    model = build_model(name, (side, side, 3), 5).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, 3, side, side)).shape == (1, 5)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in replace_head(model, 5).state_dict().items()} == shapes
    with torch.inference_mode():
        assert replace_head(model, 3)(torch.rand(1, 3, side, side)).shape == (1, 3)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder where torchvision's loader looks for downloaded weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_default_weights_are_loaded_by_torchvisions_own_loader(hub):
    weights = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT
    torch.manual_seed(5)
    source = torchvision.models.get_model("squeezenet1_1")
    torch.save(source.state_dict(), hub / weights.url.rpartition("/")[2])
    model = build_pretrained("squeezenet1_1", 4)
    assert torch.equal(model.features[0].weight, source.features[0].weight)
    assert model.classifier[1].weight.shape == (4, 512, 1, 1)


def test_default_weights_that_contain_code_are_rejected(hub, tmp_path):
    weights = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT
    torch.save(
        {"classifier.1.weight": make_hostile(Path.touch, tmp_path / "owned")}, hub / weights.url.rpartition("/")[2]
    )
    with pytest.raises(InvalidModelError, match=r"its weights contain more than tensors .* so they were not loaded"):
        build_pretrained("squeezenet1_1", 4)
    assert not (tmp_path / "owned").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_network_with_its_own_normalisation_returns_the_logits_of_torchvision(name, digits):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, transform_input=True, init_weights=False).eval()
    ours = build_model(name, RGB_32, 1000).eval()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    image = torch.rand(1, 3, 299, 299)
    plan = make_plan(TrainConfig(model=name), digits)
    imagenet = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.inference_mode():
        expected = theirs(imagenet(image))
        logits = ours(torchvision.transforms.Normalize(plan.normalize.mean, plan.normalize.std)(image))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


def test_the_error_for_a_failed_download_of_weights_says_what_to_do(hub, monkeypatch):
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(
        MachineError, match=r"resnet18: its weights could not be downloaded .*name the file with --weights"
    ):
        build_pretrained("resnet18", 4)
    with pytest.raises(InvalidModelError, match="has no pretrained weights; expected one of efficientnet_lite0, "):
        build_pretrained("small-resnet", 4)


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_weights_load_from_every_kind_of_wrapper(tmp_path):
    source = build_model("lenet", RGB_32, 10)
    state = source.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    files = [
        tmp_path / "a.safetensors",
        save(tmp_path / "plain.pt", state),
        save(tmp_path / "parallel.pt", {f"module.{key}": value for key, value in state.items()}),
        save(tmp_path / "compiled.pt", {f"_orig_mod.{key}": value for key, value in state.items()}),
        save(tmp_path / "both.pt", {f"_orig_mod.module.{key}": value for key, value in state.items()}),
        save(tmp_path / "member.pt", {f"net.{key}": value for key, value in state.items()}),
        save(tmp_path / "checkpoint.pt", {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}),
        save(tmp_path / "other.pt", {"model_state_dict": {f"module.{key}": value for key, value in state.items()}}),
    ]
    for path in files:
        model = build_model("lenet", RGB_32, 10)
        load_weights(model, path)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items()), path


def test_the_weights_of_a_bare_sequential_load_into_the_tutorials_network(tmp_path):
    source = build_model("plain-conv3", L_28, 10).model
    model = build_model("plain-conv3", L_28, 10)
    load_weights(model, save(tmp_path / "a.pt", source.state_dict()))
    assert torch.equal(model.model[7].weight, source[7].weight)


def test_a_missing_batch_counter_is_not_an_error(tmp_path):
    state = {
        key: value
        for key, value in build_model("small-resnet", L_28, 10).state_dict().items()
        if "num_batches" not in key
    }
    model = build_model("small-resnet", L_28, 10)
    load_weights(model, save(tmp_path / "a.pt", state))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_the_error_for_weights_that_do_not_fit_is_a_short_list(tmp_path):
    state = dict(build_model("lenet", RGB_32, 10).state_dict())
    del state["fc1.bias"]
    state["conv1.weight"] = torch.zeros(6, 1, 5, 5)
    state |= {f"more.{number}": torch.zeros(1) for number in range(5)}
    with pytest.raises(InvalidModelError) as raised:
        load_weights(build_model("lenet", RGB_32, 10), save(tmp_path / "a.pt", state))
    assert str(raised.value) == (
        f"{tmp_path / 'a.pt'}: the weights do not fit this model: missing: fc1.bias; "
        "unexpected: more.0, more.1, more.2 and 2 more; "
        "wrong shape: conv1.weight (found 6x1x5x5, expected 6x3x5x5); use another --model"
    )


def test_a_head_of_other_classes_is_replaced_for_training_and_an_error_for_an_import(tmp_path):
    source = build_model("lenet", RGB_32, 10)
    path = save(tmp_path / "a.pt", source.state_dict())
    model = create_model("lenet", str(path), RGB_32, 4)
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    assert model.fc3.weight.shape == (4, 84)
    with pytest.raises(InvalidModelError, match=r"wrong shape: fc3\.weight \(found 10x84, expected 4x84\)"):
        load_weights(build_model("lenet", RGB_32, 4), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a file of torch.save"),
        (b"PK\x03\x04 not an archive", "not a file of torch.save"),
        (b"hello", "not a file of torch.save"),
        ([1, 2], "not a state_dict (found a list)"),
        ({}, "not a state_dict (found a dict)"),
        ({"epoch": 3, "best": 0.5}, "not a state_dict (not tensors: epoch is a int, best is a float)"),
        (torch.zeros(3), "not a state_dict (found a Tensor)"),
    ],
)
def test_the_error_for_a_file_without_a_state_dict_says_what_it_contains(tmp_path, content, message):
    path = tmp_path / "a.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InvalidModelError) as raised:
        load_weights(build_model("lenet", RGB_32, 10), path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_a_damaged_safetensors_file_are_errors(tmp_path):
    with pytest.raises(InvalidModelError, match="no such file"):
        load_weights(build_model("lenet", RGB_32, 10), tmp_path / "none.pt")
    (tmp_path / "a.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}}}}}}}")
    with pytest.raises(InvalidModelError, match="not a safetensors file"):
        load_weights(build_model("lenet", RGB_32, 10), tmp_path / "a.safetensors")


def make_hostile(function, *arguments):
    class Hostile:
        def __reduce__(self):
            return function, arguments

    return Hostile()


def make_hostile_files(owned: Path) -> dict[str, bytes]:
    """Return twenty pickles that create a file if they run, with different callables, positions and containers."""
    touch = f"open({str(owned)!r}, 'w').close()"
    calls = {
        "os.system": make_hostile(os.system, f"touch {owned}"),
        "os.popen": make_hostile(os.popen, f"touch {owned}"),
        "exec": make_hostile(exec, touch),
        "eval": make_hostile(eval, touch),
        "subprocess": make_hostile(subprocess.check_call, ["touch", str(owned)]),
        "Popen": make_hostile(subprocess.Popen, ["touch", str(owned)]),
        "Path.touch": make_hostile(Path.touch, owned),
        "open": make_hostile(open, str(owned), "w"),
        "mkdir": make_hostile(os.mkdir, str(owned)),
        "getattr": make_hostile(getattr, make_hostile(open, str(owned), "w"), "close"),
    }
    files = {}
    for name, call in calls.items():
        file = io.BytesIO()
        torch.save({"conv1.weight": call}, file)
        files[f"zip with {name}"] = file.getvalue()
    for name in ("os.system", "exec", "Path.touch"):
        file = io.BytesIO()
        torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "extra": calls[name]}, file)
        files[f"beside tensors, {name}"] = file.getvalue()
    for protocol in (0, 2, 4):
        files[f"bare pickle of protocol {protocol}"] = pickle.dumps(calls["os.system"], protocol=protocol)
    file = io.BytesIO()
    torch.save(calls["exec"], file, _use_new_zipfile_serialization=False)
    files["the old format of torch.save"] = file.getvalue()
    file = io.BytesIO()
    torch.save([calls["eval"]], file)
    files["in a list"] = file.getvalue()
    files["two pickles"] = pickle.dumps({}) + pickle.dumps(calls["os.system"])
    files["global by name"] = f"cos\nsystem\n(S'touch {owned}'\ntR.".encode()
    return files


def test_none_of_twenty_hostile_files_runs(tmp_path):
    files = make_hostile_files(tmp_path / "owned")
    (tmp_path / "owned").unlink(missing_ok=True)  # making one of them opens it
    assert len(files) == 20
    for name, content in files.items():
        path = tmp_path / "a.pt"
        path.write_bytes(content)
        with pytest.raises(InvalidModelError, match=r"a\.pt: (contains more|not a )"):
            load_weights(build_model("lenet", RGB_32, 10), path)
        assert not (tmp_path / "owned").exists(), name


def test_a_users_factory_is_called_with_the_number_of_classes_or_without_arguments(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def sized(num_classes): return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))\n"
        "class Fixed(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(4, 2)\n"
        "def wrong(): return 5\n"
        "def broken(): raise RuntimeError('two\\nlines')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert build_model("my_networks:sized", L_28, 3)[1].out_features == 3
    assert isinstance(build_model("my_networks:Fixed", L_28, 2), nn.Module)
    with pytest.raises(InvalidModelError, match=r"returns a int; expected a torch\.nn\.Module"):
        build_model("my_networks:wrong", L_28, 2)
    with pytest.raises(InvalidModelError, match=r"cannot be built \(RuntimeError: two lines\)"):
        build_model("my_networks:broken", L_28, 2)
    with pytest.raises(InvalidModelError, match=r"cannot be built \(ModuleNotFoundError"):
        build_model("no_such_module:net", L_28, 2)


def test_a_users_factory_leaves_the_import_path_unchanged(tmp_path, monkeypatch):
    (tmp_path / "lazy_network.py").write_text(
        "def build(num_classes):\n"
        "    from lazy_layers import make_head\n"
        "    return make_head(num_classes)\n"
        "def broken(): raise RuntimeError\n"
    )
    (tmp_path / "lazy_layers.py").write_text(
        "from torch import nn\ndef make_head(classes): return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    before = [*sys.path]
    assert build_model("lazy_network:build", L_28, 3)[1].out_features == 3  # imports a second module while it builds
    assert sys.path == before
    with pytest.raises(InvalidModelError, match="cannot be built"):
        build_model("lazy_network:broken", L_28, 3)
    assert sys.path == before
    monkeypatch.syspath_prepend(tmp_path)
    before = [*sys.path]
    build_model("lazy_network:build", L_28, 3)
    assert sys.path == before  # a path that was there before stays


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DataSource("digits"))


def test_a_torchvision_network_has_the_input_that_its_weights_were_trained_with(digits):
    plan = make_plan(TrainConfig(model="resnet18"), digits)
    preprocess = plan.preprocess
    assert (preprocess.color, preprocess.shape, preprocess.crop_ratio, preprocess.resample) == (
        "RGB",
        (224, 224, 3),
        224 / 256,
        "bilinear",
    )
    assert plan.normalize.mean == (0.485, 0.456, 0.406)
    assert make_plan(TrainConfig(model="swin_t"), digits).preprocess.resample == "bicubic"
    assert make_plan(TrainConfig(model="inception_v3"), digits).preprocess.height == 299
    assert make_plan(TrainConfig(model="resnet18", input=InputOptions(size=(96, 128))), digits).preprocess.shape == (
        96,
        128,
        3,
    )


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("lenet", InputOptions(size=(28, 28)), "lenet: takes only --size 32 (found 28); leave --size out"),
        ("plain-conv3", InputOptions(color="RGB"), "plain-conv3: takes only --color L (found RGB); leave --color out"),
        ("vit_b_16", InputOptions(size=(96, 48)), "vit_b_16: takes only --size 224 (found 96x48); leave --size out"),
        ("resnet18", InputOptions(color="L"), "resnet18: takes only --color RGB (found L); leave --color out"),
    ],
)
def test_an_input_that_the_network_does_not_take_is_a_usage_error(digits, model, options, message):
    with pytest.raises(UsageError) as raised:
        make_plan(TrainConfig(model=model, input=options), digits)
    assert str(raised.value) == message


def test_a_network_with_a_fixed_size_takes_images_of_any_size(digits):
    assert make_plan(TrainConfig(model="plain-conv3"), digits).preprocess.shape == (28, 28, 1)
    assert make_plan(TrainConfig(model="lenet"), digits).preprocess.shape == (32, 32, 3)


def test_auto_chooses_a_network_and_says_why(digits):
    plan = make_plan(TrainConfig(), digits)
    assert plan.architecture == "small-resnet"
    assert plan.reason == "chosen for 8-pixel images"


def test_without_images_a_network_of_any_size_needs_size_and_color():
    with pytest.raises(UsageError, match="set them with --size HxW and --color L or RGB"):
        resolve_input("small-resnet", InputOptions())
