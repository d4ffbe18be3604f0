"""What is to be trained, as the person said it, and what follows from that and from the images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from clf_runtime.errors import UsageError
from clf_runtime.spec import Color, Normalize, Preprocess, Resample, ResizeMode
from clf_train.data import builtin, folder
from clf_train.data.dataset import Dataset, FileImageSet
from clf_train.recipe import Recipe, for_one_pass, recipe_for
from clf_train.registry import TORCHVISION, ModelRow, dataset_row, model_row

AUTO = "auto"
Cache = Literal["auto", "memory", "disk", "none"]
DEFAULT_WEIGHTS = "DEFAULT"

_SMALLEST_SIDE, _LARGEST_SIDE = 8, 64  # what the small networks are made for

# The first layer is followed by batch normalisation, so only the rough range matters; and with inverted
# images among the others the true mean is 0.5.
_MEAN = _STD = 0.5


@dataclass(frozen=True)
class TrainConfig:
    """What was asked for; None leaves a choice to the data and the model."""

    data: str = "digits"
    data_root: str = "data"
    model: str = AUTO
    weights: str | None = None  # DEFAULT, or a file
    epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    size: tuple[int, int] | None = None  # (height, width)
    color: Color | None = None
    resize: ResizeMode = "crop"
    test_split: float = 0.2
    seed: int = 0
    device: str = "auto"
    cache: Cache = "auto"
    skip_unreadable: bool = False
    overwrite: bool = False
    resume: bool = False
    checkpoint_every: float = 180.0  # seconds
    tensorboard: bool = False
    command: str = ""


@dataclass(frozen=True)
class TrainPlan:
    """What will be trained."""

    architecture: str
    preprocess: Preprocess
    normalize: Normalize
    recipe: Recipe
    reason: str  # why this architecture, where it was left open


def load_dataset(config: TrainConfig) -> Dataset:
    """Load the data set that an order names. Raises DataError, MachineError."""
    row = dataset_row(config.data)
    if row is not None:
        return builtin.load(row, Path(config.data_root), config.test_split, config.seed)
    return folder.load(Path(config.data), config.test_split, config.seed)


def make_plan(config: TrainConfig, dataset: Dataset) -> TrainPlan:
    """Decide on what the order leaves open. Raises UsageError where it contradicts itself."""
    side, color = _nature(config, dataset)
    architecture, reason = _chosen(config, side)
    preprocess, normalize = input_of(config, architecture, side, color)
    recipe = recipe_for(config.data, len(dataset.train), preprocess.color)
    row = model_row(architecture) or ModelRow(architecture, "", "")
    peak = row.learning_rate
    if row.batch_size is not None:
        recipe = replace(recipe, batch_size=min(recipe.batch_size, row.batch_size))
    if architecture in TORCHVISION:
        peak = _PEAK_FINE_TUNED if config.weights else _PEAK_TORCHVISION
        recipe = replace(recipe, batch_size=min(recipe.batch_size, 64))
    recipe = replace(
        recipe,
        epochs=config.epochs or recipe.epochs,
        batch_size=config.batch_size or recipe.batch_size,
        learning_rate=config.learning_rate or peak or recipe.learning_rate,
    )
    return TrainPlan(architecture, preprocess, normalize, recipe if recipe.epochs > 1 else for_one_pass(recipe), reason)


# From scratch torchvision's references take 0.1 for 256 images a step; a trained network forgets at that.
_PEAK_TORCHVISION, _PEAK_FINE_TUNED = 0.05, 0.01


def _nature(config: TrainConfig, dataset: Dataset) -> tuple[int, Color]:
    """Give the side in pixels and the colour of the images."""
    row = dataset_row(config.data)
    if row is not None:
        return row.size, row.color
    assert isinstance(dataset.train, FileImageSet)
    return folder.survey(dataset.train)


def _chosen(config: TrainConfig, side: int) -> tuple[str, str]:
    if config.model != AUTO:
        return config.model, ""
    if side <= _LARGEST_SIDE:
        return "small-resnet", f"chosen for images of {side} pixels"
    return "small-resnet", (
        f"chosen for any size; it sees {_LARGEST_SIDE} of {side} pixels a side: "
        "--model mobilenet_v3_small --weights DEFAULT sees more"
    )


def input_of(
    config: TrainConfig, architecture: str, side: int | None = None, color: Color | None = None
) -> tuple[Preprocess, Normalize]:
    """Decide on what the network sees; `side` and `color` are the images', where they are known.

    Raises UsageError where the order contradicts the network, or neither says what is needed.
    """
    if architecture in TORCHVISION:
        return _input_of_torchvision(config, architecture)
    row = model_row(architecture) or ModelRow(architecture, "", "")
    color = _settled(config.color, row.color, color, f"{architecture} takes --color {row.color}")
    free = None if side is None else (min(_LARGEST_SIDE, max(_SMALLEST_SIDE, side)),) * 2
    fixed = (row.size, row.size) if row.size is not None else None
    size = _settled(config.size, fixed, free, f"{architecture} takes --size {row.size}")
    if size is None or color is None:
        raise UsageError(f"{architecture} takes any size and colour: say --size HxW and --color L or RGB")
    channels = 1 if color == "L" else 3
    preprocess = Preprocess(
        color=color,
        height=size[0],
        width=size[1],
        resize=config.resize,
        crop_ratio=1.0,
        resample="bilinear",
        background=(255,) * channels,
    )
    return preprocess, Normalize((_MEAN,) * channels, (_STD,) * channels)


def _input_of_torchvision(config: TrainConfig, architecture: str) -> tuple[Preprocess, Normalize]:
    """What torchvision's own weights were trained with, so that they mean what they meant."""
    from torchvision.models import get_model_weights

    _settled(config.color, "RGB", "RGB", f"{architecture} takes --color RGB")
    transforms = get_model_weights(architecture).DEFAULT.transforms()
    (crop,), (resize,) = transforms.crop_size, transforms.resize_size
    fixed = (crop, crop) if architecture.startswith(("vit", "maxvit", "inception")) else None
    size = _settled(config.size, fixed, (crop, crop), f"{architecture} takes --size {crop}")
    resample: Resample = "bicubic" if transforms.interpolation.value == "bicubic" else "bilinear"
    preprocess = Preprocess(
        color="RGB",
        height=size[0],
        width=size[1],
        resize=config.resize,
        crop_ratio=crop / resize if config.resize == "crop" else 1.0,
        resample=resample,
        background=(255, 255, 255),
    )
    if architecture in _OWN_NORMALIZE:
        return preprocess, Normalize((_MEAN,) * 3, (_STD,) * 3)
    return preprocess, Normalize(tuple(transforms.mean), tuple(transforms.std))


# Their weights came from TensorFlow; torchvision's `transform_input` turns its own normalisation into this one.
_OWN_NORMALIZE = ("googlenet", "inception_v3")


def _settled(asked: object, fixed: object, free: object, complaint: str) -> Any:
    """Take what was asked for, unless the model has no choice."""
    if asked is not None and fixed is not None and asked != fixed:
        raise UsageError(f"{complaint}, and nothing else")
    return asked if asked is not None else fixed if fixed is not None else free
