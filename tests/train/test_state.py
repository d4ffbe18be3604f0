"""The state in a checkpoint: only one of the same training run is taken."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_command

from clf_runtime.spec import Normalize
from clf_train.data.cache import full_shard
from clf_train.engine.budget import restore_recipe
from clf_train.engine.trainer import Trainer, TrainerOptions
from clf_train.models.networks import small_resnet
from clf_train.recipe import Recipe

State = dict[str, Any]


def create_trainer(optimizer: str) -> Trainer:
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.1, optimizer=optimizer, averaging=0.9)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 1), dtype=np.uint8)
    shard = full_shard(pixels, np.arange(48) % 3)
    options = TrainerOptions(recipe, Normalize((0.5,), (0.5,)), 0, torch.device("cpu"))
    return Trainer(small_resnet((8, 8, 1), 3, width=4), shard, shard, options)


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def trained(request) -> tuple[str, State]:
    """An optimizer and the state after four of six steps."""
    trainer = create_trainer(request.param)
    for _ in range(4):
        trainer.step()
    return request.param, trainer.state()


def first_kept(state: State) -> State:
    return state["optimizer"]["state"][0]


ATTACKS: dict[str, tuple[str, Callable[[State], object]]] = {
    "no step": ("it has no step", lambda state: state.pop("step")),
    "step is text": ("its step", lambda state: state.update(step="4")),
    "step below 0": ("its step", lambda state: state.update(step=-1)),
    "step after the last": ("its step", lambda state: state.update(step=7)),
    "seconds are a list": ("its seconds", lambda state: state.update(seconds=[])),
    "sums of another shape": ("its sums", lambda state: state.update(sums=torch.zeros(4, dtype=torch.float64))),
    "no weights": ("its model", lambda state: state.update(model={})),
    "weights are a list": ("its model", lambda state: state.update(model=[])),
    "a weight of another shape": ("its model", lambda state: state["model"].update({"1.weight": torch.zeros(1)})),
    "average is short": ("its average", lambda state: state["average"].pop()),
    "average is None": ("its average", lambda state: state.update(average=None)),
    "history is a dict": ("its history", lambda state: state.update(history={})),
    "a row is empty": ("its history", lambda state: state["history"].append({})),
    "a loss is text": ("its history", lambda state: state["history"][0].update(train_loss="x")),
    "scaler is None": ("its scaler", lambda state: state.update(scaler=None)),
    "optimizer is empty": ("its optimizer", lambda state: state.update(optimizer={})),
    "no groups": ("its optimizer", lambda state: state["optimizer"].update(param_groups=[])),
    "a group is empty": ("its optimizer", lambda state: state["optimizer"]["param_groups"].__setitem__(0, {})),
    "a group has other parameters": (
        "its optimizer",
        lambda state: state["optimizer"]["param_groups"][0].update(params=[5]),
    ),
    "a rate is text": ("its optimizer", lambda state: state["optimizer"]["param_groups"][0].update(lr="fast")),
    "too many parameters": ("its optimizer", lambda state: state["optimizer"]["state"].update({999: {}})),
    "a momentum of another shape": (
        "its optimizer",
        lambda state: first_kept(state).update({max(first_kept(state)): torch.zeros(1, 2)}),
    ),
    "a momentum is text": ("its optimizer", lambda state: first_kept(state).update({max(first_kept(state)): "x"})),
    "no momentum": ("its optimizer", lambda state: first_kept(state).clear()),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_state_with_other_content_is_not_restored(trained, attack):
    optimizer, state = trained
    message, change = ATTACKS[attack]
    changed = copy.deepcopy(state)
    change(changed)
    with pytest.raises(ValueError, match=message):
        create_trainer(optimizer).restore(changed)


def test_an_intact_state_is_restored(trained):
    optimizer, state = trained
    trainer = create_trainer(optimizer)
    trainer.restore(state)
    assert (trainer.images_done, len(trainer.history)) == (64, 1)
    while not trainer.is_done:
        trainer.step()
    assert len(trainer.history) == 2


def test_a_foreign_state_under_a_matching_digest_is_an_error_of_one_line(tmp_path):
    options = ("--model", "tiny-convnet", "--epochs", "1", "--batch-size", "512", "--checkpoint-every", "0")
    folder = tmp_path / "artifacts"
    folder.mkdir()
    write_checkpoint(folder, {}, {})
    done = run_command("clf-train", *options, "--resume", cwd=tmp_path)
    assert done.code == 3
    assert "from a different training run" in done.err
    identity = dict(difference.split(" was missing, is ") for difference in find_differences(done.err))
    write_checkpoint(folder, identity, {"step": 1})
    done = run_command("clf-train", *options, "--resume", cwd=tmp_path)
    assert done.code == 3
    assert done.err.splitlines()[-1] == (
        "clf-train: artifacts: the state in its checkpoint is not one of this training run (it has no model); "
        "start over with --overwrite"
    )
    assert "Traceback" not in done.err


def write_checkpoint(folder, identity: dict[str, str], state: State) -> None:
    file = io.BytesIO()
    torch.save({"identity": identity, "state": state}, file)
    content = file.getvalue()
    (folder / "checkpoint.pt").write_bytes(content + hashlib.sha256(content).digest())


def find_differences(message: str) -> list[str]:
    return message.partition("different training run (")[2].rpartition("); use the same")[0].split("; ")


@pytest.mark.parametrize("value", ["x", "nan", "inf", "-1"])
def test_the_epochs_of_a_foreign_checkpoint_do_not_become_the_recipe(value):
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.1)
    assert restore_recipe(recipe, {"epochs": value}) == recipe
    assert restore_recipe(recipe, {"epochs": "3", "first block": "x"}) == recipe
    assert restore_recipe(recipe, {"epochs": "3"}).epochs == 3
