"""`clf-import` as a process: a state_dict trained elsewhere becomes a model that is verified, exported and run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from odd_images import drawing
from torch import nn

from clf_runtime.spec import Metrics
from clf_train.engine.evaluate import normalize_images
from clf_train.models.factory import build_model
from clf_train.models.saved import load_saved_model
from clf_train.summary import format_accuracy

TEN = ",".join("0123456789")


@pytest.fixture
def checkpoint(tmp_path, artifacts):
    """The weights of our digits model, in a checkpoint as other training scripts save it."""
    state = torch.load(artifacts / "model.pt", weights_only=True)
    torch.save(
        {"epoch": 30, "state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "best.ckpt"
    )
    return tmp_path / "best.ckpt"


def test_an_imported_checkpoint_has_the_same_predictions(command, checkpoint, artifacts, samples, tmp_path):
    arguments = ("--weights", checkpoint, "--model", "small-resnet", "--labels", TEN, "--size", 8, "--color", "L")
    done = command("clf-import", *arguments, "--mean", 0.5, "--std", 0.5, "--data", "digits", "-a", "mine")
    assert done.code == 0, done.err
    spec = json.loads((tmp_path / "mine/model.json").read_text())
    expected = json.loads((artifacts / "model.json").read_text())
    for key in ("labels", "metrics", "temperature", "preprocess", "normalize"):
        assert spec[key] == expected[key]
    assert done.out == (
        f"{format_accuracy(Metrics(**spec['metrics']))}; "
        "wrote mine/model.pt with 10 labels; next: clf-export -a mine --format onnx\n"
    )
    exported = command("clf-export", "-a", "mine")
    assert exported.code == 0, exported.err
    predictions = command("clf-run", "-a", "mine", *samples).out
    assert predictions == command("clf-run", "-a", artifacts, *samples).out


def test_after_an_import_without_data_the_export_needs_some(command, checkpoint, tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join("0123456789") + "\n")
    arguments = (
        "--weights",
        checkpoint,
        "--model",
        "small-resnet",
        "--labels",
        "labels.txt",
        "--size",
        8,
        "--color",
        "L",
    )
    done = command("clf-import", *arguments, "--mean", "0.5", "--std", "0.5")
    assert done.code == 0, done.err
    assert done.out == "wrote artifacts/model.pt with 10 labels; next: clf-export --data FOLDER --format onnx\n"
    assert {path.name for path in (tmp_path / "artifacts").iterdir()} == {"model.pt", "model.json"}
    without_data = command("clf-export")
    assert without_data.code == 3
    assert "--data" in without_data.error
    assert command("clf-export", "--data", "digits").code == 0
    assert command("clf-run", "--self-test").code == 0
    assert "accuracy" not in command("clf-run", "--info").out


def test_a_network_of_a_users_factory_is_imported_exported_and_run(command, tmp_path):
    (tmp_path / "pets_net.py").write_text(
        "from torch import nn\n"
        "def build(num_classes):\n"
        "    layers = nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "    return nn.Sequential(*layers, nn.Linear(4, num_classes))\n"
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for number in range(10):
            drawing(50 + number, 60).save(tmp_path / "pets" / label / f"{number}.jpg")
    arguments = (
        "--weights",
        "net.pt",
        "--model",
        "pets_net:build",
        "--labels",
        "cat,dog",
        "--size",
        "48x40",
        "--color",
        "RGB",
    )
    assert command("clf-import", *arguments, "--resize", "pad").code == 0
    untrusted = command("clf-export", "--data", "pets")
    assert untrusted.code == 3
    assert "model.json names a factory outside clf-edge, pets_net:build" in untrusted.error
    assert untrusted.error.endswith("add --trust-factory pets_net:build")
    done = command("clf-export", "--data", "pets", "--trust-factory", "pets_net:build")
    assert done.code == 0, done.err
    assert command("clf-run", "pets", "-r").code == 0


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"--weights": "none.pt"}, 3, "none.pt: no such file"),
        (
            {"--model": "lenet", "--size": None, "--color": None},
            3,
            "the weights do not fit this model: missing: conv1.weight",
        ),
        ({"--model": "resnet-9000"}, 3, "model 'resnet-9000': unknown; expected one of"),
        ({"--labels": "a,b,c"}, 3, "wrong shape: 10.weight (found 10x128, expected 3x128)"),
        ({"--labels": "a,a"}, 2, "2 labels, 1 of them different"),
        ({"--labels": "labels.txt"}, 2, "labels.txt: no such file; expected one with a label on each line"),
        ({"--size": None}, 2, "set them with --size HxW and --color L or RGB"),
        ({"--color": "RGB"}, 3, "wrong shape: 0.weight (found 32x1x3x3, expected 32x3x3x3)"),
        ({"--mean": "0.1,0.2"}, 2, "--mean: found 2 numbers; expected 1 number"),
        ({"--mean": "inf"}, 2, "--mean: found inf; expected finite numbers"),
        ({"--std": "0"}, 2, "--std: found 0; expected numbers above 0, of pixels in 0..1"),
        ({"--mean": "half"}, 2, "'half' is not a number"),
        ({"--data": "mnist-of-mine"}, 3, "no such folder"),
        ({"--labels": "9,8,7,6,5,4,3,2,1,0", "--data": "digits"}, 3, "its classes are ['0', '1'"),
    ],
)
def test_every_error_is_one_line_and_nothing_is_written(command, checkpoint, tmp_path, changes, code, message):
    options = {
        "--weights": checkpoint,
        "--model": "small-resnet",
        "--labels": TEN,
        "--size": "8",
        "--color": "L",
    } | changes
    done = command(
        "clf-import", *(part for name, value in options.items() if value is not None for part in (name, value))
    )
    assert done.code == code, done.err
    assert message in done.err.strip().splitlines()[-1]
    assert "Traceback" not in done.err
    assert not (tmp_path / "artifacts").exists()


def test_a_size_that_the_network_does_not_take_is_a_usage_error(command, tmp_path):
    torch.save(build_model("pooled-conv2", (32, 32, 3), 10).state_dict(), tmp_path / "a.pt")
    done = command("clf-import", "--weights", "a.pt", "--model", "pooled-conv2", "--labels", TEN, "--size", 64)
    assert done.code == 2
    assert "pooled-conv2: takes only --size 32 (found 64); leave --size out" in done.error


# Runs the tutorials' own scripts for three batches each, in forks of this process, which has imported torch; saves the
# networks as the scripts would, and their outputs for noise.
RUN_TUTORIALS = """
import itertools, os, runpy, sys
import torch, torch.utils.data, torchvision

class Short(torch.utils.data.DataLoader):
    def __iter__(self):
        return itertools.islice(super().__iter__(), 3)

def run(script, number):
    torch.utils.data.DataLoader = Short
    sys.argv = [script, number, "data", "1"]
    model = runpy.run_path(script)["model"].eval()
    side, channels = (32, 3) if number in ("001", "004") else (28, 1)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (5, channels, side, side), generator=generator, dtype=torch.uint8)
    mean, std = (0.5, 0.5) if number in ("002", "004") else (0.0, 1.0)
    with torch.inference_mode():
        outputs = model((pixels / 255 - mean) / std)
    torch.save(model.state_dict(), number + ".pt")
    torch.save({"pixels": pixels, "outputs": outputs}, number + ".outputs.pt")

script, *numbers = sys.argv[1:]
for number in numbers:
    child = os.fork()
    if child == 0:
        run(script, number)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, number
"""

TUTORIALS = {
    "000": "plain-conv3",
    "001": "pooled-conv2",
    "002": "pooled-conv2-mlp",
    "003": "plain-conv2-mlp",
    "004": "lenet",
}


@pytest.fixture(scope="module")
def tutorials(test_data, tmp_path_factory) -> Path:
    """A folder with the state_dict of each tutorial's own script, NUMBER.pt, and its outputs, NUMBER.outputs.pt."""
    script = test_data.parent / "baselines/tutorials.py"
    if not script.is_file():
        pytest.skip("the tutorials' script is not beside the data")
    folder = tmp_path_factory.mktemp("tutorials")
    (folder / "data").mkdir()
    (folder / "data/mnist").symlink_to(test_data / "mnist")
    for part in ("train", "test"):
        for label in "0123456789":
            (folder / "data/cifar10" / part / label).mkdir(parents=True)
            for image in range(4):
                drawing(32, 32).save(folder / "data/cifar10" / part / label / f"{image}.jpg")
    (folder / "run.py").write_text(RUN_TUTORIALS)
    arguments = [sys.executable, "run.py", script, *TUTORIALS]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("number", "name"), TUTORIALS.items())
def test_what_a_tutorials_own_script_saves_is_imported_unchanged(command, tmp_path, tutorials, number, name):
    done = command("clf-import", "--weights", tutorials / f"{number}.pt", "--model", name, "--labels", TEN)
    assert done.code == 0, done.err
    saved = load_saved_model(tmp_path / "artifacts")
    expected = torch.load(tutorials / f"{number}.outputs.pt", weights_only=True)
    with torch.inference_mode():
        logits = saved.model(normalize_images(expected["pixels"].permute(0, 2, 3, 1), saved.spec.normalize))
    outputs = logits.softmax(dim=1) if name == "plain-conv2-mlp" else logits  # that tutorial ends with a softmax
    torch.testing.assert_close(outputs, expected["outputs"], rtol=1e-5, atol=1e-5)
