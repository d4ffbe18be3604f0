"""A pretrained network in two parts: its first blocks, which stay as they are, and the rest, which is trained."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from clf_train.models.efficientnet_lite import EfficientNetLite, SamePadConv2d
from clf_train.models.folding import fold_batch_norm


class FrozenBlocks(nn.Module):
    """The stem and the first blocks, without gradients.

    Nothing in them changes, so batch normalization becomes part of the convolutions, and padding takes no copies: 211
    instead of 93 images/s for the complete network (EfficientNet-Lite0, 224 pixels, 2 cores with AVX-512).
    """

    def __init__(self, network: EfficientNetLite, count: int) -> None:
        """Copy the stem and the first `count` blocks of a network."""
        super().__init__()
        self._layers = _copy_for_inference(_FirstBlocks(network, count))

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to the input of the block `count`."""
        with torch.no_grad():
            activations: Tensor = self._layers(images)
            return activations

    def train(self, mode: bool = True) -> FrozenBlocks:
        """Change nothing: the blocks are only used for inference."""
        return self


class TrainedBlocks(nn.Module):
    """The last blocks and the head, which share their parameters with the network.

    Batch normalization keeps the mean and the variance of the original training: batches of 32 photos of a new task
    would only blur them.
    """

    def __init__(self, network: EfficientNetLite, first: int) -> None:
        """Wrap the blocks from `first` on."""
        super().__init__()
        self._first = first
        self._layers = nn.ModuleList(network.list_layers(first))
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

    def __init__(self, network: EfficientNetLite) -> None:
        """Copy everything but the last layer."""
        super().__init__()
        self._layers = _copy_for_inference(_FeatureLayers(network))

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to features (N, D)."""
        features: Tensor = self._layers(images)
        return features


def split_network(model: nn.Module, first_block: int | None) -> tuple[nn.Module, nn.Module]:
    """Return the part of the network that stays as it is, and the part that is trained."""
    if first_block is None:
        return nn.Identity(), model
    assert isinstance(model, EfficientNetLite)
    return FrozenBlocks(model, first_block), TrainedBlocks(model, first_block)


class _FirstBlocks(nn.Module):
    def __init__(self, network: EfficientNetLite, count: int) -> None:
        super().__init__()
        self._network, self._count = network, count

    def forward(self, images: Tensor) -> Tensor:
        return self._network.run_blocks(self._network.run_stem(images), 0, self._count)


class _FeatureLayers(nn.Module):
    def __init__(self, network: EfficientNetLite) -> None:
        super().__init__()
        self._network = network

    def forward(self, images: Tensor) -> Tensor:
        return self._network.compute_features(images)


def _copy_for_inference(layers: nn.Module) -> nn.Module:
    copied = fold_batch_norm(copy.deepcopy(layers).eval().requires_grad_(False))
    for layer in copied.modules():
        if isinstance(layer, SamePadConv2d):
            layer.crops_output = True
    return copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return,unused-ignore]
