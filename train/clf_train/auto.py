"""The network and the weights that a training run starts from, where the user leaves them open."""

from __future__ import annotations

from dataclasses import dataclass

from clf_train.config import AUTO, TrainConfig
from clf_train.data.folder import ImageProperties
from clf_train.registry import DEFAULT_WEIGHTS, NO_WEIGHTS, find_model_row

# For small images. The networks of clf-edge are made for up to this many pixels per side.
SMALL_MODEL, MAX_SMALL_SIDE = "small-resnet", 64
PHOTO_MODEL = "efficientnet_lite0"


@dataclass(frozen=True)
class Start:
    """What a training run starts from."""

    architecture: str
    weights: str | None  # DEFAULT_WEIGHTS, a file, or None for fresh weights
    reason: str  # why this architecture; empty if the user named it


def choose_start(config: TrainConfig, properties: ImageProperties) -> Start:
    """Decide which network is trained, and from which weights.

    A network whose ImageNet weights are in a Python package starts from them; --weights none trains it from scratch.
    """
    architecture, reason = _choose_architecture(config, properties)
    if config.weights == NO_WEIGHTS:
        return Start(architecture, None, reason)
    row = find_model_row(architecture)
    packaged = DEFAULT_WEIGHTS if row is not None and row.weights is not None else None
    return Start(architecture, config.weights or packaged, reason)


def _choose_architecture(config: TrainConfig, properties: ImageProperties) -> tuple[str, str]:
    """Return the name of the network, and why it was chosen; the reason is empty if the user named it."""
    if config.model != AUTO:
        return config.model, ""
    kind = f"{properties.side}-pixel {'photos' if properties.is_photo else 'images'}"
    if not properties.is_photo:
        return SMALL_MODEL, f"chosen for {kind}"
    if config.weights == NO_WEIGHTS:
        return SMALL_MODEL, f"chosen for training {kind} from scratch, at {MAX_SMALL_SIDE} pixels at most"
    if config.input.color == "L":
        return SMALL_MODEL, f"chosen for gray input; without --color L, {kind} start from ImageNet weights"
    if config.input.size is not None and min(config.input.size) <= MAX_SMALL_SIDE:
        return SMALL_MODEL, f"chosen for --size up to {MAX_SMALL_SIDE}; without it, {kind} start from ImageNet weights"
    return PHOTO_MODEL, f"chosen for {kind}, from ImageNet weights"
