"""What will be trained: the user's choices, completed from the images and the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from clf_runtime.errors import UsageError
from clf_runtime.spec import Color, Normalize, Preprocess, Resample
from clf_train.auto import MAX_SMALL_SIDE, Start, choose_start
from clf_train.config import DataSource, InputOptions, TrainConfig
from clf_train.data.dataset import Dataset, FileImageSet
from clf_train.data.folder import ImageProperties, survey_images
from clf_train.models.pretrained import loads_own_weights
from clf_train.normalization import choose_normalize
from clf_train.recipe import Recipe, choose_recipe, choose_transfer_recipe, disable_geometric_augmentation
from clf_train.registry import TORCHVISION, ModelRow, find_dataset_row, find_model_row

_Value = TypeVar("_Value")

_MIN_SIDE = 8  # pixels that any network needs
# Nearly all published weights were trained at this size; a user's factory does not say at which.
_MAX_PRETRAINED_SIDE = 224
# To which images of at most MAX_SMALL_SIDE are enlarged: more pixels show no more of them, and take longer.
_ENLARGED_SIDE = 176

# The first layer is followed by batch normalization, so only the rough range matters; and with inverted images among
# the others the true mean is 0.5.
_MEAN = _STD = 0.5

# From scratch, torchvision's references use 0.1 for 256 images per step; a pretrained network forgets at that rate.
_PEAK_TORCHVISION, _PEAK_FINE_TUNING = 0.05, 0.01
_MAX_BATCH_TORCHVISION = 64

# Their weights came from TensorFlow; torchvision's `transform_input` converts its own normalization into this one.
_TENSORFLOW_NORMALIZE = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class TrainPlan:
    """What will be trained."""

    architecture: str
    preprocess: Preprocess
    normalize: Normalize
    recipe: Recipe
    weights: str | None = None  # what the network starts from: DEFAULT_WEIGHTS, a file, or None for fresh weights
    reason: str = ""  # why this architecture; empty if the user named it
    warnings: tuple[str, ...] = ()  # what was assumed and may be wrong


def make_plan(config: TrainConfig, dataset: Dataset, has_gpu: bool = False) -> TrainPlan:
    """Decide everything that the configuration leaves open; with a GPU, all blocks of a pretrained network are trained.

    Raises:
        UsageError: an option contradicts the model.
    """
    properties = _find_image_properties(config.source, dataset)
    start = choose_start(config, properties)
    is_pretrained = _is_pretrained(start, properties, len(dataset.labels))
    preprocess, normalize = resolve_input(start.architecture, config.input, properties, is_pretrained)
    recipe = _choose_recipe(config, start, dataset, preprocess, properties)
    if has_gpu and recipe.first_block is not None:
        recipe = replace(recipe, first_block=0, trains_depthwise=True)
    recipe = _adapt_recipe(recipe, config, start.architecture, is_pretrained)
    warnings = _list_assumptions(config, start.architecture, preprocess, recipe) if is_pretrained else ()
    return TrainPlan(start.architecture, preprocess, normalize, recipe, start.weights, start.reason, warnings)


def resolve_input(
    architecture: str,
    options: InputOptions,
    properties: ImageProperties | None = None,
    is_pretrained: bool = False,
) -> tuple[Preprocess, Normalize]:
    """Decide what the network's input is.

    Args:
        architecture: the name of a model.
        options: the user's choices.
        properties: of the images; None if there are none.
        is_pretrained: whether the network starts from weights, whose input is then decided by them.

    Raises:
        UsageError: an option contradicts the model, or none of the three decides a value.
    """
    if architecture in TORCHVISION:
        return _resolve_torchvision_input(architecture, options)
    row = find_model_row(architecture) or ModelRow(architecture, "", "")
    color: Color | None = _resolve("--color", options.color, row.color, architecture)
    fixed_size = None if row.size is None else (row.size, row.size)
    size = _resolve("--size", options.size, fixed_size, architecture, _format_size)
    if row.weights is not None:
        size = size or (_choose_pretrained_side(row.weights.size, properties),) * 2
    if properties is not None:
        color = color or properties.color
        largest = _MAX_PRETRAINED_SIDE if is_pretrained and _is_factory(architecture) else MAX_SMALL_SIDE
        size = size or (min(largest, max(_MIN_SIDE, properties.side)),) * 2
    if size is None or color is None:
        raise UsageError(f"{architecture}: takes any size and color; set them with --size HxW and --color L or RGB")
    channels = 1 if color == "L" else 3
    preprocess = Preprocess(
        color=color,
        height=size[0],
        width=size[1],
        resize=options.resize,
        crop_ratio=1.0,
        resample="bilinear",
        background=(255,) * channels,
    )
    mean, std = row.normalize if row.weights is not None or is_pretrained else (_MEAN, _STD)
    return preprocess, choose_normalize(options, Normalize((mean,) * channels, (std,) * channels))


def _choose_pretrained_side(weights_side: int, properties: ImageProperties | None) -> int:
    is_small = properties is not None and _is_small(properties)
    return min(weights_side, _ENLARGED_SIDE) if is_small else weights_side


def _is_small(properties: ImageProperties) -> bool:
    return properties.side <= MAX_SMALL_SIDE


def _resolve_torchvision_input(architecture: str, options: InputOptions) -> tuple[Preprocess, Normalize]:
    """Return the input that torchvision's own weights were trained with, in the size that the user chose."""
    from torchvision.models import get_model_weights

    rgb: Color = "RGB"
    _resolve("--color", options.color, rgb, architecture)
    transforms = get_model_weights(architecture).DEFAULT.transforms()
    (crop,), (resize,) = transforms.crop_size, transforms.resize_size
    fixed_size = (crop, crop) if architecture.startswith(("vit", "maxvit", "inception")) else None
    size = _resolve("--size", options.size, fixed_size, architecture, _format_size) or (crop, crop)
    resample: Resample = "bicubic" if transforms.interpolation.value == "bicubic" else "bilinear"
    preprocess = Preprocess(
        color=rgb,
        height=size[0],
        width=size[1],
        resize=options.resize,
        crop_ratio=crop / resize if options.resize == "crop" else 1.0,
        resample=resample,
        background=(255, 255, 255),
    )
    if architecture in _TENSORFLOW_NORMALIZE:
        return preprocess, choose_normalize(options, Normalize((_MEAN,) * 3, (_STD,) * 3))
    return preprocess, choose_normalize(options, Normalize(tuple(transforms.mean), tuple(transforms.std)))


def _resolve(
    option: str,
    requested: _Value | None,
    fixed: _Value | None,
    architecture: str,
    format_value: Callable[[_Value], str] = str,
) -> _Value | None:
    """Return the requested value, or the only one that the model takes; None if both are open."""
    if requested is not None and fixed is not None and requested != fixed:
        raise UsageError(
            f"{architecture}: takes only {option} {format_value(fixed)} (found {format_value(requested)}); "
            f"leave {option} out"
        )
    return fixed if requested is None else requested


def _format_size(size: tuple[int, int]) -> str:
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def _find_image_properties(source: DataSource, dataset: Dataset) -> ImageProperties:
    row = find_dataset_row(source.data)
    if row is not None:
        return ImageProperties(row.size, row.color)
    assert isinstance(dataset.train, FileImageSet)
    return survey_images(dataset.train)


def _choose_recipe(
    config: TrainConfig, start: Start, dataset: Dataset, preprocess: Preprocess, properties: ImageProperties
) -> Recipe:
    row = find_model_row(start.architecture)
    if start.weights is not None and row is not None and row.weights is not None:
        return choose_transfer_recipe(len(dataset.train), preprocess, is_small=_is_small(properties))
    return choose_recipe(config.source.data, len(dataset.train), preprocess.color)


def _is_factory(architecture: str) -> bool:
    return ":" in architecture


def _is_pretrained(start: Start, properties: ImageProperties, classes: int) -> bool:
    """Return whether the network starts from weights: those of --weights, or those that a user's factory loads."""
    if start.weights is not None:
        return True
    shape = (properties.side, properties.side, 1 if properties.color == "L" else 3)
    return _is_factory(start.architecture) and loads_own_weights(start.architecture, shape, classes)


def _list_assumptions(
    config: TrainConfig, architecture: str, preprocess: Preprocess, recipe: Recipe
) -> tuple[str, ...]:
    """Say what the weights of a user's factory leave open, since a wrong guess costs accuracy and shows nowhere."""
    options = config.input
    assumed = [
        f"{option} {value}"
        for option, value, chosen in (
            ("--size", _format_size((preprocess.height, preprocess.width)), options.size),
            ("--mean", f"{_MEAN:g}", options.mean),
            ("--std", f"{_STD:g}", options.std),
            ("--learning-rate", f"{recipe.learning_rate:g}", config.learning_rate),
        )
        if chosen is None
    ]
    if not assumed or not _is_factory(architecture):
        return ()
    return (f"{architecture} starts from weights that do not say how they were trained; assuming {' '.join(assumed)}",)


def _adapt_recipe(recipe: Recipe, config: TrainConfig, architecture: str, is_pretrained: bool) -> Recipe:
    """Return the recipe with what the model needs and what the user chose."""
    row = find_model_row(architecture) or ModelRow(architecture, "", "")
    peak, max_batch_size = row.learning_rate, row.batch_size
    if row.weights is not None:
        peak = _PEAK_TORCHVISION
    if architecture in TORCHVISION:
        peak, max_batch_size = _PEAK_TORCHVISION, _MAX_BATCH_TORCHVISION
    if is_pretrained:
        peak = _PEAK_FINE_TUNING
    if recipe.first_block is not None:
        peak = recipe.learning_rate
    recipe = replace(
        recipe,
        epochs=config.epochs or recipe.epochs,
        batch_size=config.batch_size or min(recipe.batch_size, max_batch_size or recipe.batch_size),
        learning_rate=config.learning_rate or peak or recipe.learning_rate,
    )
    return recipe if recipe.epochs > 1 or recipe.first_block is not None else disable_geometric_augmentation(recipe)
