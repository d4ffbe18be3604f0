"""Training: everything random follows from the seed, and every metric matches its definition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from clf_runtime.errors import InvalidModelError
from clf_runtime.spec import Normalize
from clf_train.data.augment import augment, create_epoch_generator, draw_augmentation
from clf_train.data.cache import full_shard
from clf_train.engine.calibration import fit_temperature
from clf_train.engine.evaluate import compute_metrics, compute_probabilities
from clf_train.engine.schedule import Schedule, one_cycle
from clf_train.engine.trainer import Trainer, TrainerOptions
from clf_train.history import Epoch, csv_from_history
from clf_train.models.factory import build_model
from clf_train.models.networks import small_resnet
from clf_train.recipe import RECIPES, Recipe, choose_recipe


def run(model: nn.Module, train, validation, recipe: Recipe, seed: int = 0) -> Iterator[Epoch]:
    """Train to the end and yield the rows of the history."""
    options = TrainerOptions(recipe, Normalize((0.5,), (0.5,)), seed, torch.device("cpu"))
    trainer = Trainer(model, full_shard(*train), full_shard(*validation), options)
    while not trainer.is_done:
        row = trainer.step()
        if row is not None:
            yield row


def draw_images(count: int = 60):
    """Return pixels and targets of three classes that are easy to tell apart."""
    random = np.random.default_rng(0)
    targets = np.arange(count) % 3
    pixels = random.integers(0, 60, (count, 8, 8, 1), dtype=np.uint8)
    for index, target in enumerate(targets):
        pixels[index, :, target * 3] += 150
    return pixels, targets.astype(np.int64)


def train_small_resnet(seed: int = 0, epochs: int = 3) -> tuple[nn.Module, list[Epoch]]:
    torch.manual_seed(seed)
    model = small_resnet((8, 8, 1), 3, width=8)
    recipe = Recipe(epochs=epochs, batch_size=16, learning_rate=0.1, rotation=5, shift=0.1, invert=True)
    images = draw_images()
    return model, list(run(model, images, images, recipe, seed))


def test_a_seed_always_leads_to_the_same_weights_and_another_seed_to_others():
    first, again, other = (train_small_resnet(seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_an_easy_task_is_learnt_and_the_history_has_every_epoch():
    _, history = train_small_resnet(epochs=8)
    assert [row.epoch for row in history] == list(range(1, 9))
    assert history[-1].validation_accuracy > 0.9
    assert history[-1].validation_loss < history[0].validation_loss
    lines = csv_from_history(history).splitlines()
    assert lines[0] == "epoch,learning_rate,train_loss,train_accuracy,validation_loss,validation_accuracy,seconds"
    assert len(lines) == 9


def test_without_a_validation_split_there_are_no_validation_metrics():
    pixels, targets = draw_images(6)
    recipe = Recipe(epochs=1, batch_size=4, learning_rate=0.1)
    row = next(run(small_resnet((8, 8, 1), 3, 4), (pixels, targets), (pixels[:0], targets[:0]), recipe))
    assert row.validation_loss is None
    assert row.validation_accuracy is None
    assert csv_from_history([row]).splitlines()[1].count(",,") == 1


@pytest.mark.parametrize(("images", "batch", "steps"), [(64, 16, 4), (65, 16, 5), (17, 16, 2), (3, 16, 1), (2, 2, 1)])
def test_no_batch_has_only_one_image(images, batch, steps):
    schedule = Schedule(images, Recipe(epochs=3, batch_size=batch, learning_rate=0.1))
    assert schedule.steps_per_epoch == steps
    sizes = [len(rows) for rows in torch.arange(images).tensor_split(steps)]
    assert min(sizes) >= 2
    assert [schedule.count_images(step) for step in range(2 * steps + 1)] == np.cumsum([0, *sizes, *sizes]).tolist()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 1000])
def test_the_learning_rate_rises_for_a_quarter_of_the_steps_and_then_falls(steps):
    shares = [one_cycle(step, steps) for step in range(steps)]
    assert all(0 < share <= 1 for share in shares)
    peak = shares.index(max(shares))
    assert peak <= steps * 0.25
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)


def test_augmentation_depends_on_seed_epoch_and_index_and_not_on_the_batch():
    images = torch.rand(20, 1, 12, 12)
    recipe = Recipe(
        epochs=1, batch_size=1, learning_rate=1, rotation=15, scale=0.2, shear=0.1, shift=0.1, mirror=True, invert=True
    )
    draws = draw_augmentation(20, create_epoch_generator(3, 5))
    together = augment(images, draws, recipe)
    for index in (0, 7, 19):
        alone = augment(images[index : index + 1], draws[index : index + 1], recipe)
        torch.testing.assert_close(alone[0], together[index])
    assert not torch.equal(draws, draw_augmentation(20, create_epoch_generator(3, 6)))
    assert not torch.equal(draws, draw_augmentation(20, create_epoch_generator(4, 5)))


def test_a_recipe_without_augmentation_changes_nothing():
    images = torch.rand(4, 3, 9, 9)
    assert torch.equal(augment(images, torch.rand(4, 7), Recipe(1, 1, 0.1)), images)


def test_mirroring_and_shifting_move_whole_pixels():
    images = torch.rand(2, 1, 8, 8)
    recipe = Recipe(1, 1, 0.1, shift=0.25, mirror=True)
    draws = torch.tensor([[0, 0, 0, 0.5, 0, 1, 1], [0, 0, 0, 0, 0, -1, 1.0]])
    augmented = augment(images, draws, recipe)
    torch.testing.assert_close(augmented[0, :, :, :7], images[0, :, :, 1:])
    torch.testing.assert_close(augmented[1], images[1].flip(2))


def test_color_jitter_varies_brightness_contrast_and_saturation():
    recipe = Recipe(1, 1, 0.1, color_jitter=0.5)
    gray, red = torch.full((3, 4, 4), 0.5), torch.tensor([0.6, 0.3, 0.3])[:, None, None].expand(3, 4, 4)
    draws = torch.zeros(4, 10)
    draws[1, 7], draws[2, 8], draws[3, 9] = 1, -1, -1
    ramp = torch.linspace(0, 1, 16).view(4, 4).expand(3, 4, 4)
    bright, flat, dull = augment(torch.stack([ramp, gray, ramp, red]), draws, recipe)[1:]
    torch.testing.assert_close(bright, gray * 1.5)
    torch.testing.assert_close(flat, (ramp + 0.5) / 2)
    torch.testing.assert_close(dull[:, 0, 0], torch.tensor([0.5, 0.35, 0.35]))


def test_draws_for_colors_leave_the_other_draws_as_they_were():
    draws = draw_augmentation(20, create_epoch_generator(3, 5))
    assert torch.equal(draws[:, :7], torch.rand(20, 7, generator=create_epoch_generator(3, 5)) * 2 - 1)


def test_inversion_inverts_half_of_the_images():
    images = torch.zeros(1000, 1, 2, 2)
    draws = draw_augmentation(1000, create_epoch_generator(0, 0))
    inverted = augment(images, draws, Recipe(1, 1, 0.1, invert=True))
    assert set(inverted.unique().tolist()) == {0.0, 1.0}
    assert 400 < inverted[:, 0, 0, 0].sum() < 600


def test_metrics_match_their_definitions():
    logits = np.log(np.array([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]], np.float32))
    metrics = compute_metrics(logits, np.array([0, 1, 1]), temperature=1.0, split="test")
    assert (metrics.split, metrics.images) == ("test", 3)
    assert metrics.accuracy == pytest.approx(2 / 3)
    assert metrics.loss == pytest.approx(-np.log([0.7, 0.4, 0.8]).mean(), rel=1e-5)
    assert metrics.calibration_error == pytest.approx((0.3 + 0.6 + 0.2) / 3, rel=1e-5)
    np.testing.assert_allclose(compute_probabilities(logits, 1.0), np.exp(logits), rtol=1e-5)
    assert compute_probabilities(logits, 0.1).max() > 0.99


def test_the_temperature_corrects_over_confidence():
    random = np.random.default_rng(0)
    calibrated = random.normal(size=(4000, 5)) * 2
    probabilities = np.exp(calibrated) / np.exp(calibrated).sum(axis=1, keepdims=True)
    targets = np.array([random.choice(5, p=row) for row in probabilities])
    assert fit_temperature((calibrated * 3).astype(np.float32), targets) == pytest.approx(3, rel=0.1)


def test_a_validation_split_without_errors_does_not_make_a_model_certain():
    logits = np.eye(10, dtype=np.float32)[np.arange(100) % 10] * 4
    temperature = fit_temperature(logits, np.arange(100) % 10)
    highest = compute_probabilities(logits, temperature).max()
    assert 0.98 < highest < 0.995  # 101 / 102: the most that a hundred correct predictions justify


def test_the_default_recipes_for_digits_train_on_both_polarities():
    assert RECIPES["digits"].invert
    assert RECIPES["mnist"].invert


@pytest.mark.parametrize(("images", "epochs"), [(50, 60), (20_000, 15), (10_000_000, 8)])
def test_a_small_folder_is_trained_on_for_more_epochs(images, epochs):
    assert choose_recipe("my/folder", images, "RGB").epochs == epochs
    assert choose_recipe("my/folder", images, "RGB").mirror
    assert not choose_recipe("my/folder", images, "L").mirror


@pytest.mark.parametrize("size", [8, 9, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["tiny-convnet", "small-resnet"])
def test_the_small_networks_take_every_size_up_to_64_pixels(name, size, channels):
    model = build_model(name, (size, size + 1, channels), 7).eval()
    assert model(torch.rand(2, channels, size, size + 1)).shape == (2, 7)


def test_the_error_for_an_unknown_model_lists_the_known_ones():
    with pytest.raises(
        InvalidModelError, match="model 'resnet-9000': unknown; expected one of tiny-convnet, small-resnet"
    ):
        build_model("resnet-9000", (8, 8, 1), 2)
