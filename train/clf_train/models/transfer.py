"""A pretrained network in two parts: its first blocks, which stay as they are, and the rest, which is trained."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from clf_train.models.depthwise import is_depthwise
from clf_train.models.efficientnet_lite import EfficientNetLite, SamePadConv2d
from clf_train.models.folding import fold_batch_norm
from clf_train.recipe import Recipe


class FrozenBlocks(nn.Module):
    """Consecutive blocks, without gradients.

    Nothing in them changes, so batch normalization becomes part of the convolutions, and padding takes no copies: 211
    instead of 93 images/s for the complete network (EfficientNet-Lite0, 224 pixels, 2 cores with AVX-512).
    """

    def __init__(self, network: EfficientNetLite, end: int, first: int | None = None) -> None:
        """Copy the blocks from `first`, by default the stem and all blocks, up to, but not including, `end`."""
        super().__init__()
        self._layers = _copy_for_inference(_BlockRange(network, end, first))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (N, C, H, W), or the input of the block `first`, to the input of the block `end`."""
        with torch.no_grad():
            activations: Tensor = self._layers(inputs)
            return activations

    def train(self, mode: bool = True) -> FrozenBlocks:
        """Change nothing: the blocks are only used for inference."""
        return self


class TrainedBlocks(nn.Module):
    """The last blocks and the head, which share their parameters with the network.

    Batch normalization keeps the mean and the variance of the original training: batches of 32 photos of a new task
    would only blur them.
    """

    def __init__(self, network: EfficientNetLite, first: int, *, trains_depthwise: bool = True) -> None:
        """Wrap the blocks from `first` on, with or without gradients of depthwise filters."""
        super().__init__()
        self._first = first
        self._layers = nn.ModuleList(network.list_layers(first))
        for layer in self._layers.modules():
            if is_depthwise(layer):
                layer.requires_grad_(trains_depthwise)
        # In a tuple, so that its other parameters are not parameters of this module.
        self._network = (network,)

    def forward(self, activations: Tensor) -> Tensor:
        """Map the input of the block `first` to logits (N, classes)."""
        return self._network[0].run_last_blocks(activations, self._first)

    def train(self, mode: bool = True) -> TrainedBlocks:
        """Switch between training and inference, except batch normalization."""
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        return self


class FeatureExtractor(nn.Module):
    """A copy of a network up to its features, for inference only."""

    def __init__(self, network: EfficientNetLite, first: int | None = None) -> None:
        """Copy the blocks from `first` on, by default the stem and all blocks, and what follows but the last layer."""
        super().__init__()
        self._layers = _copy_for_inference(_FeatureLayers(network, first))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (N, C, H, W), or the input of the block `first`, to features (N, D)."""
        features: Tensor = self._layers(inputs)
        return features


def split_network(model: nn.Module, recipe: Recipe) -> tuple[nn.Module, nn.Module]:
    """Return the part of the network that stays as it is, and the part that is trained."""
    first = recipe.first_block
    if first is None:
        return nn.Identity(), model
    assert isinstance(model, EfficientNetLite)
    return FrozenBlocks(model, first), TrainedBlocks(model, first, trains_depthwise=recipe.trains_depthwise)


def copy_for_evaluation(model: nn.Module) -> nn.Module:
    """Return a faster copy of an EfficientNetLite, with outputs equal but for rounding; other networks as they are."""
    return _copy_for_inference(model) if isinstance(model, EfficientNetLite) else model


class _BlockRange(nn.Module):
    def __init__(self, network: EfficientNetLite, end: int, first: int | None) -> None:
        super().__init__()
        self._network, self._end, self._first = network, end, first

    def forward(self, inputs: Tensor) -> Tensor:
        activations = self._network.run_stem(inputs) if self._first is None else inputs
        return self._network.run_blocks(activations, self._first or 0, self._end)


class _FeatureLayers(nn.Module):
    def __init__(self, network: EfficientNetLite, first: int | None) -> None:
        super().__init__()
        self._network, self._first = network, first

    def forward(self, inputs: Tensor) -> Tensor:
        activations = self._network.run_stem(inputs) if self._first is None else inputs
        return self._network.compute_features(activations, self._first or 0)


def _copy_for_inference(layers: nn.Module) -> nn.Module:
    copied = fold_batch_norm(copy.deepcopy(layers).eval().requires_grad_(False))
    for layer in copied.modules():
        if isinstance(layer, SamePadConv2d):
            layer.crops_output = True
    return copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return,unused-ignore]
