"""Transfer learning: which network a folder of photos gets, the linear probe, the part that is trained, the budget."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from clf_runtime.artifacts import STATE_DICT
from clf_runtime.errors import MachineError
from clf_runtime.spec import Normalize, Preprocess
from clf_train import training
from clf_train.auto import choose_start
from clf_train.config import DataSource, InputOptions, TrainConfig, load_dataset
from clf_train.data.augment import augment, choose_view, draw_augmentation
from clf_train.data.cache import full_shard
from clf_train.data.dataset import FileImageSet, ImageRoot
from clf_train.data.folder import ImageProperties, survey_images
from clf_train.engine import transfer
from clf_train.engine import views as views_module
from clf_train.engine.budget import ViewPace, fit_to_budget, restore_recipe
from clf_train.engine.device import multiply_in, select_precision
from clf_train.engine.evaluate import Predictor, gather_logits, normalize_images
from clf_train.engine.features import ImageFeatures
from clf_train.engine.probe import fit_probe
from clf_train.engine.trainer import Trainer, TrainerOptions
from clf_train.engine.transfer import ProbeStart
from clf_train.engine.views import FixedViews, ViewRecorder, create_recorder
from clf_train.models.efficientnet_lite import efficientnet_lite0
from clf_train.models.transfer import FeatureExtractor, FrozenBlocks, TrainedBlocks
from clf_train.plan import make_plan
from clf_train.progress import Progress
from clf_train.recipe import Recipe, choose_transfer_recipe, train_last_block
from clf_train.training import train

PHOTOS = ImageProperties(256, "RGB", is_photo=True)
ICONS = ImageProperties(32, "RGB")
RECIPE = Recipe(
    epochs=2, batch_size=4, learning_rate=1e-3, optimizer="adamw", first_block=12, crop=0.5, crop_side=32, mirror=True
)


@pytest.fixture(scope="module")
def network():
    """A network with fresh weights, for 64-pixel images of three classes; not to be changed."""
    torch.manual_seed(0)
    model = efficientnet_lite0((64, 64, 3), 3).eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # as after training: otherwise folding it would change nothing
            layer.running_mean.uniform_(-0.1, 0.1)
            layer.running_var.uniform_(0.8, 1.2)
    return model


@pytest.fixture
def photos(tmp_path):
    """A folder with two classes of twelve noisy images, of which one is brighter."""
    random = np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 100)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(low, low + 128, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"data/{label}/{number}.png")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("options", "properties", "architecture", "weights"),
    [
        ({}, PHOTOS, "efficientnet_lite0", "DEFAULT"),
        ({}, ICONS, "small-resnet", None),
        ({"weights": "none"}, PHOTOS, "small-resnet", None),
        ({"weights": "none", "model": "efficientnet_lite0"}, PHOTOS, "efficientnet_lite0", None),
        ({"model": "efficientnet_lite2"}, PHOTOS, "efficientnet_lite2", "DEFAULT"),
        ({"model": "mobilenet_v3_small"}, PHOTOS, "mobilenet_v3_small", None),
        ({"weights": "mine.pt"}, PHOTOS, "efficientnet_lite0", "mine.pt"),
        ({"input": InputOptions(color="L")}, PHOTOS, "small-resnet", None),
        ({"input": InputOptions(size=(48, 48))}, PHOTOS, "small-resnet", None),
        ({"input": InputOptions(size=(160, 160))}, PHOTOS, "efficientnet_lite0", "DEFAULT"),
    ],
)
def test_photos_start_from_imagenet_weights_unless_an_option_says_otherwise(options, properties, architecture, weights):
    start = choose_start(TrainConfig(**options), properties)
    assert (start.architecture, start.weights) == (architecture, weights)
    assert bool(start.reason) == ("model" not in options)


def test_small_images_with_many_colors_are_photos_and_drawings_are_not(tmp_path):
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    drawing = np.full((32, 32, 3), 255, np.uint8)
    drawing[8:20, 8:20] = 200, 0, 0
    Image.fromarray(drawing).save(tmp_path / "drawing.png")
    (tmp_path / "damaged.png").write_bytes((tmp_path / "photo.png").read_bytes()[:900])

    def survey(*names: str) -> ImageProperties:
        return survey_images(FileImageSet(ImageRoot(tmp_path), names, np.zeros(len(names), np.int64)))

    assert survey("photo.png") == ImageProperties(32, "RGB", is_photo=True)
    assert survey("drawing.png") == ImageProperties(32, "RGB", is_photo=False)
    assert not survey("damaged.png").is_photo


def test_the_probe_is_the_logistic_regression_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    targets = np.arange(90) % 3
    features = (random.normal(size=(90, 20)) * 3 + 5 + targets[:, None] * random.normal(size=20)).astype(np.float32)
    l2 = 0.05
    probe = fit_probe(torch.from_numpy(features), torch.from_numpy(targets), 3, l2)
    standardized = (features - features.mean(0)) / features.std(0)
    # scikit-learn adds up the loss over the images, and multiplies it by C instead of the weights by l2.
    reference = LogisticRegression(C=1 / (l2 * len(targets)), tol=1e-8, max_iter=1000).fit(standardized, targets)
    expected = reference.decision_function(standardized)
    logits = probe.logits(torch.from_numpy(features)).numpy()
    assert np.abs((logits - logits.mean(1, keepdims=True)) - (expected - expected.mean(1, keepdims=True))).max() < 1e-2


def test_the_two_parts_compute_what_the_network_computes(network):
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        for first in (0, 3, 12, 16):
            logits = TrainedBlocks(network, first)(FrozenBlocks(network, first)(images))
            assert torch.allclose(logits, expected, atol=1e-4)
        features = FeatureExtractor(network)(images)
        assert torch.allclose(network._fc(features), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(64, 64, 3), (63, 50, 3), (96, 33, 3)])
def test_inference_without_padded_copies_computes_the_same_at_any_size(shape):
    torch.manual_seed(0)
    network = efficientnet_lite0(shape, 3).eval()
    images = torch.rand(2, 3, *shape[:2])
    with torch.no_grad():
        assert torch.allclose(
            FeatureExtractor(network)(images), network.compute_features(network.run_stem(images), 0), atol=1e-5
        )


def test_features_that_do_not_fit_into_memory_are_one_line(network, monkeypatch):
    monkeypatch.setattr(transfer, "usable_memory", lambda: 1000 * 1280 * 4 / 0.4 + 1)
    transfer._raise_if_too_many(1000, network)
    with pytest.raises(MachineError, match=r"the features of 1,001 images, .* use --weights none, or fewer images"):
        transfer._raise_if_too_many(1001, network)


def test_training_changes_the_last_blocks_and_no_running_mean(network):
    model, trainer = create_trainer(network)
    while not trainer.is_done:
        trainer.step()
    before, after = network.state_dict(), model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"_blocks.12._project_conv.weight", "_conv_head.weight", "_fc.bias"} <= changed
    assert not any(name.startswith(("_conv_stem", "_bn0", "_blocks.11.")) or "running" in name for name in changed)


def test_fine_tuning_keeps_the_depthwise_filters(network):
    model, trainer = create_trainer(network, trains_depthwise=False)
    while not trainer.is_done:
        trainer.step()
    before, after = network.state_dict(), model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"_blocks.12._project_conv.weight", "_blocks.12._bn1.weight"} <= changed
    assert not any("_depthwise_conv" in name for name in changed)


def test_a_cpu_multiplies_in_bfloat16_if_it_can_and_no_depthwise_filter_is_trained(network, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    cpu = torch.device("cpu")
    assert select_precision(cpu, FrozenBlocks(network, 9)) == torch.bfloat16
    assert select_precision(cpu, TrainedBlocks(copy.deepcopy(network), 9)) is None
    assert select_precision(cpu, TrainedBlocks(copy.deepcopy(network), 9, trains_depthwise=False)) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    assert select_precision(cpu, FrozenBlocks(network, 9)) is None


def test_features_and_gradients_in_bfloat16_are_nearly_those_in_float32(network):
    """On a CPU that cannot multiply in bfloat16, PyTorch emulates it."""
    images, cpu = torch.rand(4, 3, 64, 64), torch.device("cpu")
    outputs, gradients = [], []
    for precision in (None, torch.bfloat16):
        model = copy.deepcopy(network)
        trained = TrainedBlocks(model, 9, trains_depthwise=False)  # block 11 has a stride of 2
        with multiply_in(precision, cpu):
            activations = FrozenBlocks(model, 9)(images)
            assert activations.dtype == (precision or torch.float32)
            outputs.append(FeatureExtractor(model)(images).float())
            trained(activations).float().square().sum().backward()
        gradients.append(model._blocks[9]._expand_conv.weight.grad.flatten())
    assert (outputs[1] - outputs[0]).norm() < 0.02 * outputs[0].norm()
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98


def test_measuring_the_pace_does_not_change_the_training(network):
    weights = []
    for is_measured in (False, True):
        model, trainer = create_trainer(network)
        if is_measured:
            pace = trainer.measure_pace(test_images=10)
            assert 0 < pace.estimate(2, 0.5) < pace.estimate(2, 0)
            assert not trainer.history
        while not trainer.is_done:
            trainer.step()
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_random_crop_shows_a_part_of_the_image():
    ramp = torch.arange(64).expand(1, 1, 64, 64).float() / 64  # brighter from left to right
    crops = augment(ramp.repeat(50, 1, 1, 1), draw_augmentation(50, torch.Generator().manual_seed(0)), RECIPE)
    assert crops.shape == (50, 1, 32, 32)
    spans = crops[:, 0, 0, -1] - crops[:, 0, 0, 0]
    assert 0.5 < spans.abs().min() < spans.abs().max() <= 1
    assert {int(sign) for sign in spans.sign()} == {-1, 1}


def test_the_budget_chooses_the_recipe_with_enough_epochs():
    recipe = replace(RECIPE, first_block=9, epochs=6)

    def fit(seconds: float, view_pace: ViewPace | None) -> tuple[int | None, int, float]:
        chosen = fit_to_budget(recipe, 10, seconds, 1000, view_pace)
        return chosen.first_block, chosen.views, chosen.epochs

    pace = ViewPace(epoch_s=1, view_s=5)
    assert fit(50, pace) == (9, 0, 5)
    assert fit(1e6, pace) == (9, 0, 6)
    assert fit(49, pace) == (-1, 2, 6)
    assert fit(5 + 4, pace) == (-1, 2, 4)
    assert fit(5 + 3, pace) == (-1, 1, 6)
    assert fit(1.5, pace) == (-1, 1, 1.5)
    assert fit(1.4, pace)[2] == fit(-5, pace)[2] == 0
    assert fit(1, ViewPace(epoch_s=1, view_s=5, saved_s=2)) == (-1, 1, 3)
    assert fit(20, None) == (9, 0, 2)
    assert fit(0.1, None)[2] == fit(-5, None)[2] == 0
    assert fit_to_budget(replace(recipe, epochs=1), 10, 11, 1000, pace).first_block == 9
    assert fit_to_budget(recipe, 10, 11, 12_000, pace).first_block == -1
    assert fit_to_budget(recipe, 10, 11, 14_000, pace).first_block == 9
    from_scratch = Recipe(epochs=8, batch_size=8, learning_rate=0.1)
    assert fit_to_budget(from_scratch, 10, 25, 100).epochs == 2.5
    assert fit_to_budget(from_scratch, 10, -1, 100).epochs == 0.1


def test_a_checkpoint_remembers_what_the_budget_chose():
    assert restore_recipe(RECIPE, {"epochs": "3.5", "first block": "9"}).first_block == 9
    restored = restore_recipe(RECIPE, {"epochs": "3.5", "first block": "-1", "views": "2"})
    assert restored == replace(train_last_block(RECIPE, 2), epochs=3.5)
    assert restore_recipe(RECIPE, {"epochs": "3.5", "first block": "-1", "views": "999999"}) == RECIPE
    assert restore_recipe(RECIPE, {"epochs": "3.5", "first block": "None"}).epochs == 3.5


@pytest.mark.parametrize(
    ("size", "crop_side"), [(224, 192), (176, 160), (160, 128), (240, 192), (64, None), (32, None)]
)
def test_random_crops_have_fewer_pixels_than_the_input(size, crop_side):
    preprocess = Preprocess("RGB", size, size, "crop", 1.0, "bilinear", (255, 255, 255))
    assert choose_transfer_recipe(3000, preprocess, is_small=False).crop_side == crop_side


@pytest.mark.parametrize(("side", "first_block"), [(32, 2), (64, 2), (65, 9), (300, 9)])
def test_more_blocks_are_trained_on_small_photos(tmp_path, side, first_block):
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    config = TrainConfig(DataSource(str(tmp_path)))
    plan = make_plan(config, load_dataset(config.source))
    assert plan.recipe.first_block == first_block
    assert (plan.recipe.crop_side, plan.preprocess.height) == ((160, 176) if first_block == 2 else (192, 224))


class _StopAtStep(Progress):
    """Interrupts training like Ctrl-C, before a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._steps_left = step

    def on_step(self, images_done: int) -> None:
        self._steps_left -= 1
        if not self._steps_left:
            raise KeyboardInterrupt


def test_a_folder_of_photos_becomes_a_good_model_and_interrupted_training_resumes(photos, tmp_path, capsys):
    def config(**options: object) -> TrainConfig:
        source, size = DataSource(str(photos)), InputOptions(size=(96, 96))
        return TrainConfig(source, input=size, epochs=2, batch_size=4, checkpoint_every_s=0, **options)

    whole = train(config(), tmp_path / "whole", Progress())
    output = capsys.readouterr().err
    assert "chosen for 70-pixel photos, from ImageNet weights" in output
    assert "a linear probe of its features has a validation accuracy of 100.0%" in output
    assert "training 2 epochs: about" in output
    assert whole.spec.metrics.accuracy == 1
    with pytest.raises(KeyboardInterrupt):
        train(config(), tmp_path / "resumed", _StopAtStep(3))
    # A budget chooses the epochs; those of interrupted training stay, however little time is left.
    train(config(resume=True, budget_s=0.1), tmp_path / "resumed", Progress())
    assert "resuming with" in capsys.readouterr().err
    assert (tmp_path / "whole" / STATE_DICT).read_bytes() == (tmp_path / "resumed" / STATE_DICT).read_bytes()


def test_interrupted_training_of_the_last_block_resumes(photos, tmp_path, monkeypatch, capsys):
    def choose(recipe: Recipe, *_: object) -> Recipe:
        return replace(train_last_block(recipe, 2), epochs=2.0)

    def config(budget_s: float, **options: object) -> TrainConfig:
        source, size = DataSource(str(photos)), InputOptions(size=(96, 96))
        fixed = {"batch_size": 4, "learning_rate": 1e-3, "checkpoint_every_s": 0}
        return TrainConfig(source, input=size, budget_s=budget_s, **fixed, **options)

    monkeypatch.setattr(training, "fit_to_budget", choose)
    whole = train(config(60), tmp_path / "whole", Progress())
    assert "training 2 epochs" in capsys.readouterr().err
    assert whole.spec.metrics.accuracy == 1
    with pytest.raises(KeyboardInterrupt):
        train(config(60), tmp_path / "resumed", _StopAtStep(3))
    monkeypatch.undo()
    resumed = train(config(0.1, resume=True), tmp_path / "resumed", Progress())
    assert "resuming with" in capsys.readouterr().err
    assert (tmp_path / "whole" / STATE_DICT).read_bytes() == (tmp_path / "resumed" / STATE_DICT).read_bytes()
    assert resumed.spec.metrics == whole.spec.metrics


def test_a_budget_that_is_spent_leaves_the_linear_probe(photos, tmp_path, capsys):
    options = TrainConfig(DataSource(str(photos)), input=InputOptions(size=(96, 96)), budget_s=0.1)
    result = train(options, tmp_path / "artifacts", Progress())
    assert result.spec.provenance.epochs == 0
    assert result.spec.metrics.accuracy == 1
    output = capsys.readouterr().err
    assert "epoch" not in output
    assert "warning: the budget is too short: even with hardly any training, the model is finished after" in output


@pytest.mark.parametrize(
    ("epochs", "views", "is_fresh"), [(2.9, 0, False), (3.0, 0, True), (1.5, 1, True), (0, 1, False)]
)
def test_only_training_of_enough_epochs_starts_from_a_fresh_head(network, epochs, views, is_fresh):
    model, _ = create_trainer(network)
    none, head = np.empty((0, 1280), np.float32), model.copy_head()
    start = ProbeStart(ImageFeatures(none, none, none), 0.1, False, 0.0, 0.0, {}, head)
    model.set_head(torch.ones_like(head[0]), torch.ones_like(head[1]))
    start.prepare_fine_tuning(model, replace(RECIPE, epochs=epochs, views=views))
    assert torch.equal(model.copy_head()[0], head[0]) == is_fresh


@pytest.mark.parametrize("views", [1, 2])
def test_training_on_fixed_views_is_that_on_the_images(network, views):
    """View 0 is the image as it is; and resumed training sees the same views."""
    recipe = train_last_block(RECIPE, views)
    random = np.random.default_rng(0)
    shard = full_shard(random.integers(0, 255, (9, 64, 64, 3), dtype=np.uint8), np.arange(9) % 3)
    model = efficientnet_lite0((64, 64, 3), 3).eval()
    model.load_state_dict(network.state_dict())
    predictor = Predictor(model, Normalize((0.5,) * 3, (0.5,) * 3), torch.device("cpu"))
    recorder = ViewRecorder(model)
    features, _ = gather_logits(replace(predictor, model=recorder), shard)
    recorded, exact = recorder.take(), FrozenBlocks(model, -1)(images_of(shard))
    assert np.allclose(features, model.compute_features(model.run_stem(images_of(shard)), 0).detach(), atol=1e-5)
    computed = FixedViews(recorded, exact, exact)
    computed.add(model, shard, predictor, recipe, seed=0)
    again = FixedViews(recorded, exact, exact)
    again.add(model, shard, predictor, recipe, seed=0)
    rows, draws = torch.arange(9), draw_augmentation(9, torch.Generator().manual_seed(1))
    selected = computed.select(rows, draws)
    assert torch.equal(selected, again.select(rows, draws))
    is_plain = choose_view(draws, views) == 0
    assert is_plain.all() == (views == 1)
    assert torch.allclose(selected[is_plain], exact[is_plain], rtol=1e-3, atol=1e-4)
    plain = recorded.float()
    assert [torch.equal(*pair) for pair in zip(selected, plain, strict=True)] == is_plain.tolist()
    options = TrainerOptions(recipe, predictor.normalize, 0, torch.device("cpu"))
    trainer = Trainer(model, shard, shard, options, computed)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    while not trainer.is_done:
        trainer.step()
    changed = {
        name.rpartition(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {name.split(".")[1] for name in changed if name.startswith("_blocks")} == {"15"}
    assert {name for name in changed if not name.startswith("_blocks")} == {"_conv_head", "_bn1", "_fc"}
    assert trainer.history[-1].validation_accuracy is not None
    logits, _ = gather_logits(predictor, shard)
    assert np.allclose(computed.classify_test(TrainedBlocks(model, -1)), logits, atol=1e-5)


def test_without_memory_for_the_views_none_are_kept(network, monkeypatch):
    shard = full_shard(np.zeros((3, 64, 64, 3), np.uint8), np.arange(3))
    loaded = SimpleNamespace(train=shard, validation=shard, test=shard)
    predictor = Predictor(network, Normalize((0.5,) * 3, (0.5,) * 3), torch.device("cpu"))
    assert create_recorder(network, loaded, predictor) is not None
    monkeypatch.setattr(views_module, "usable_memory", lambda: 1000)
    assert create_recorder(network, loaded, predictor) is None


def images_of(shard):
    return normalize_images(torch.from_numpy(shard.pixels.array), Normalize((0.5,) * 3, (0.5,) * 3))


def create_trainer(network, **changes):
    model = efficientnet_lite0((64, 64, 3), 3)
    model.load_state_dict(network.state_dict())
    random = np.random.default_rng(0)
    shard = full_shard(random.integers(0, 255, (9, 64, 64, 3), dtype=np.uint8), np.arange(9) % 3)
    recipe = replace(RECIPE, **changes)
    options = TrainerOptions(recipe, Normalize((0.5,) * 3, (0.5,) * 3), 0, torch.device("cpu"))
    return model, Trainer(model, shard, shard, options)
