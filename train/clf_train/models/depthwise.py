"""Depthwise convolutions: one filter per channel, most of whose time is memory access."""

from __future__ import annotations

from torch import nn


def is_depthwise(layer: nn.Module) -> bool:
    """Return whether the layer is a convolution with one filter per channel."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1


def has_depthwise_convolutions(model: nn.Module) -> bool:
    """Return whether the network has convolutions with one filter per channel."""
    return any(map(is_depthwise, model.modules()))
