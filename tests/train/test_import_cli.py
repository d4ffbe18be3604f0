"""`clf-import` as a process: a state_dict trained elsewhere becomes a model that exports with proof and runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from awkward import drawing
from torch import nn

from clf_train.engine.evaluate import normalize_images
from clf_train.models import saved
from clf_train.models.factory import build

TEN = ",".join("0123456789")


@pytest.fixture
def elsewhere(tmp_path, artifacts):
    """The weights of our own digits model, as somebody else could have saved them."""
    state = torch.load(artifacts / "model.pt", weights_only=True)
    torch.save(
        {"epoch": 30, "state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "best.ckpt"
    )
    return tmp_path / "best.ckpt"


def test_from_a_checkpoint_to_the_same_answers(command, elsewhere, artifacts, samples, tmp_path):
    arguments = ("--weights", elsewhere, "--model", "small-resnet", "--labels", TEN, "--size", 8, "--color", "L")
    done = command("clf-import", *arguments, "--mean", 0.5, "--std", 0.5, "--data", "digits", "-a", "mine")
    assert done.code == 0, done.err
    spec = json.loads((tmp_path / "mine/model.json").read_text())
    wanted = json.loads((artifacts / "model.json").read_text())
    for key in ("labels", "metrics", "temperature", "preprocess", "normalize"):
        assert spec[key] == wanted[key]
    assert done.out.endswith("10 labels; next: clf-export -a mine --format onnx\n")
    exported = command("clf-export", "-a", "mine")
    assert exported.code == 0, exported.err
    here = command("clf-run", "-a", "mine", *samples).out
    assert here == command("clf-run", "-a", artifacts, *samples).out


def test_without_data_it_is_the_export_that_asks_for_some(command, elsewhere, tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join("0123456789") + "\n")
    arguments = (
        "--weights",
        elsewhere,
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
    assert done.out == "artifacts/model.pt, 10 labels; next: clf-export --data NAME|DIR --format onnx\n"
    assert {path.name for path in (tmp_path / "artifacts").iterdir()} == {"model.pt", "model.json"}
    refused = command("clf-export")
    assert refused.code == 3
    assert "names no data" in refused.error
    assert command("clf-export", "--data", "digits").code == 0
    assert command("clf-run", "--self-test").code == 0
    assert "accuracy" not in command("clf-run", "--info").out


def test_a_factory_of_ones_own_is_imported_exported_and_run(command, tmp_path):
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
    assert "model.json names code that is not clf-edge's, pets_net:build" in untrusted.error
    done = command("clf-export", "--data", "pets", "--model", "pets_net:build")
    assert done.code == 0, done.err
    assert command("clf-run", "pets", "-r").code == 0


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"--weights": "none.pt"}, 3, "none.pt: no such file"),
        (
            {"--model": "lenet", "--size": None, "--color": None},
            3,
            "refused: not the weights of this model: missing: conv1.weight",
        ),
        ({"--model": "resnet-9000"}, 3, "unknown here"),
        ({"--labels": "a,b,c"}, 3, "of another shape: 10.weight 10x128 for 3x128"),
        ({"--labels": "a,a"}, 2, "2 labels, 1 of them different"),
        ({"--labels": "labels.txt"}, 2, "labels.txt: no such file; expected one with a label on each line"),
        ({"--size": None}, 2, "say --size HxW and --color L or RGB"),
        ({"--color": "RGB"}, 3, "of another shape: 0.weight 32x1x3x3 for 32x3x3x3"),
        ({"--mean": "0.1,0.2"}, 2, "--mean and --std have 2 numbers; expected 1 or 1"),
        ({"--mean": "half"}, 2, "'half' is no number"),
        ({"--data": "mnist-of-mine"}, 3, "no such folder"),
        ({"--labels": "9,8,7,6,5,4,3,2,1,0", "--data": "digits"}, 3, "its classes are ['0', '1'"),
    ],
)
def test_what_cannot_be_imported_is_one_line_and_nothing_is_written(command, elsewhere, tmp_path, changes, code, said):
    options = {
        "--weights": elsewhere,
        "--model": "small-resnet",
        "--labels": TEN,
        "--size": "8",
        "--color": "L",
    } | changes
    done = command(
        "clf-import", *(part for name, value in options.items() if value is not None for part in (name, value))
    )
    assert done.code == code, done.err
    assert said in done.err.strip().splitlines()[-1]
    assert "Traceback" not in done.err
    assert not (tmp_path / "artifacts").exists()


def test_a_network_that_does_not_take_the_size_is_refused(command, tmp_path):
    torch.save(build("pooled-conv2", (32, 32, 3), 10).state_dict(), tmp_path / "a.pt")
    done = command("clf-import", "--weights", "a.pt", "--model", "pooled-conv2", "--labels", TEN, "--size", 64)
    assert done.code == 2
    assert "pooled-conv2 takes --size 32, and nothing else" in done.error


# A tutorial's own script, ended after three batches: its network, saved as its author would, and what it says of noise.
A_TUTORIAL = """
import itertools, json, runpy, sys
import torch, torch.utils.data
class Short(torch.utils.data.DataLoader):
    def __iter__(self):
        return itertools.islice(super().__iter__(), 3)
torch.utils.data.DataLoader = Short
script, number, root = sys.argv[1:]
sys.argv = [script, number, root, "1"]
made = runpy.run_path(script)
model = made["model"].eval()
torch.save(model.state_dict(), "tutorial.pt")
side, channels = (32, 3) if number in ("001", "004") else (28, 1)
pixels = torch.randint(0, 256, (5, channels, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
mean, std = (0.5, 0.5) if number in ("002", "004") else (0.0, 1.0)
with torch.inference_mode():
    given = model((pixels / 255 - mean) / std)
torch.save({"pixels": pixels, "given": given}, "answers.pt")
"""


@pytest.mark.parametrize(
    ("number", "name"),
    [
        ("000", "plain-conv3"),
        ("001", "pooled-conv2"),
        ("002", "pooled-conv2-mlp"),
        ("003", "plain-conv2-mlp"),
        ("004", "lenet"),
    ],
)
def test_what_a_tutorials_own_script_saves_is_imported_as_it_is(command, tmp_path, test_data, number, name):
    script = test_data.parent / "baselines/tutorials.py"
    if not script.is_file():
        pytest.skip("the tutorials' script does not lie beside the data")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mnist").symlink_to(test_data / "mnist")
    for part in ("train", "test"):
        for label in "0123456789":
            (tmp_path / "data/cifar10" / part / label).mkdir(parents=True)
            for number_of_image in range(4):
                drawing(32, 32).save(tmp_path / "data/cifar10" / part / label / f"{number_of_image}.jpg")
    (tmp_path / "run.py").write_text(A_TUTORIAL)
    subprocess.run([sys.executable, "run.py", script, number, "data"], cwd=tmp_path, check=True, capture_output=True)

    done = command("clf-import", "--weights", "tutorial.pt", "--model", name, "--labels", TEN)
    assert done.code == 0, done.err
    model = saved.load(tmp_path / "artifacts")
    answers = torch.load(tmp_path / "answers.pt", weights_only=True)
    with torch.inference_mode():
        logits = model.model(normalize_images(answers["pixels"].permute(0, 2, 3, 1), model.spec.normalize))
    ours = logits.softmax(dim=1) if name == "plain-conv2-mlp" else logits  # that one ends in its softmax
    torch.testing.assert_close(ours, answers["given"], rtol=1e-5, atol=1e-5)
