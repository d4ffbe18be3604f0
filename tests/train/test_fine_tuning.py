"""Training that starts from weights: its learning rate and its input are those that the weights need."""

from __future__ import annotations

import json

import pytest
import torch
from odd_images import drawing

from clf_runtime.errors import UsageError
from clf_train.config import DataSource, InputOptions, TrainConfig, load_dataset
from clf_train.models.networks import small_resnet
from clf_train.plan import make_plan, resolve_input

# What a user's package contains: one factory that loads weights by itself, and one that does not.
FACTORIES = """
import torch
from torch import nn

def fresh(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, num_classes))

def loaded(num_classes):
    network = fresh(7)
    network.load_state_dict(torch.load("seven.pt", weights_only=True))
    network[-1] = nn.Linear(8, num_classes)
    return network
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with photos of two classes, and with a user's module of two factories."""
    folder = tmp_path_factory.mktemp("user")
    for label in "ab":
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(6):
            drawing(300 + number, 280).save(folder / "photos" / label / f"{number}.png")
    (folder / "own_networks.py").write_text(FACTORIES)
    torch.manual_seed(5)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2), torch.nn.BatchNorm2d(8), *map(torch.nn.Identity, range(3)), torch.nn.Linear(8, 7)
    )
    torch.save(network.state_dict(), folder / "seven.pt")
    return folder


@pytest.fixture
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return DataSource("photos")


@pytest.mark.parametrize(
    ("model", "rate"),
    [
        ("resnet18", 0.01),
        ("efficientnet_lite0", 5e-4),  # of AdamW
        ("small-resnet", 0.01),
        ("own_networks:fresh", 0.01),
    ],
)
def test_every_network_that_starts_from_weights_gets_a_rate_for_fine_tuning(in_folder, model, rate):
    config = TrainConfig(in_folder, model, weights="some.pt")
    assert make_plan(config, load_dataset(in_folder)).recipe.learning_rate == rate
    from_scratch = TrainConfig(in_folder, model, weights="none")
    assert make_plan(from_scratch, load_dataset(in_folder)).recipe.learning_rate >= 0.05


def test_a_factory_that_loads_its_own_weights_is_fine_tuned_too(in_folder):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    plan = make_plan(TrainConfig(in_folder, "own_networks:loaded"), load_dataset(in_folder))
    assert plan.recipe.learning_rate == 0.01
    assert plan.preprocess.shape == (224, 224, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    fresh = make_plan(TrainConfig(in_folder, "own_networks:fresh"), load_dataset(in_folder))
    assert (fresh.recipe.learning_rate, fresh.preprocess.shape, fresh.warnings) == (0.1, (64, 64, 3), ())


def test_what_is_assumed_about_a_factory_s_weights_is_a_warning(in_folder):
    config = TrainConfig(in_folder, "own_networks:loaded")
    (warning,) = make_plan(config, load_dataset(in_folder)).warnings
    assert warning == (
        "own_networks:loaded starts from weights that do not say how they were trained; "
        "assuming --size 224 --mean 0.5 --std 0.5 --learning-rate 0.01"
    )
    known = InputOptions((96, 96), mean=(0.4,), std=(0.2, 0.3, 0.4))
    config = TrainConfig(in_folder, "own_networks:loaded", input=known, learning_rate=0.003)
    plan = make_plan(config, load_dataset(in_folder))
    assert plan.warnings == ()
    assert (plan.normalize.mean, plan.normalize.std) == ((0.4, 0.4, 0.4), (0.2, 0.3, 0.4))
    assert plan.recipe.learning_rate == 0.003


def test_weights_of_a_tutorial_keep_the_normalization_of_the_tutorial(in_folder):
    fresh = make_plan(TrainConfig(in_folder, "pooled-conv2"), load_dataset(in_folder))
    loaded = make_plan(TrainConfig(in_folder, "pooled-conv2", weights="some.pt"), load_dataset(in_folder))
    assert (fresh.normalize.mean, fresh.normalize.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (loaded.normalize.mean, loaded.normalize.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("model", ["resnet18", "efficientnet_lite0", "lenet"])
def test_mean_and_std_replace_those_of_any_model(model):
    _, normalize = resolve_input(model, InputOptions(mean=(0.1, 0.2, 0.3), std=(0.4,)))
    assert (normalize.mean, normalize.std) == ((0.1, 0.2, 0.3), (0.4, 0.4, 0.4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (InputOptions(mean=(0.1, 0.2)), "--mean: found 2 numbers; expected 1 number, or 3 \\(one for each channel\\)"),
        (InputOptions(std=(0.1, 0.0, 0.2)), "--std: found 0; expected numbers above 0"),
        (InputOptions(std=(float("nan"),)), "--std: found nan; expected finite numbers"),
    ],
)
def test_a_mean_or_std_that_cannot_be_is_a_usage_error(options, message):
    with pytest.raises(UsageError, match=message):
        resolve_input("resnet18", options)


def test_the_spec_records_mean_and_std_and_clf_train_rejects_wrong_ones(command, folder, tmp_path):
    torch.save(small_resnet((32, 32, 3), 7).state_dict(), tmp_path / "seven.pt")
    arguments = ("clf-train", "--data", folder / "photos", "--epochs", 1, "--size", 32, "--model", "small-resnet")
    normalize = ("--mean", "0.485,0.456,0.406", "--std", 0.25)
    assert command(*arguments, "--weights", "seven.pt", *normalize).code == 0
    assert json.loads((tmp_path / "artifacts/model.json").read_text())["normalize"] == {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.25, 0.25, 0.25],
    }
    done = command(*arguments, "-a", "other", "--std", "-1")
    assert (done.code, done.error) == (2, "clf-train: --std: found -1; expected numbers above 0, of pixels in 0..1")
