"""The networks of clf-edge, and those of well-known tutorials.

Each takes the shape of one image, (H, W, C), and the number of classes. The state_dicts of the tutorials load
unchanged, because the networks use the same key names; each docstring lists them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]


def tiny_convnet(shape: Shape, classes: int, width: int = 16) -> nn.Module:
    """Build three convolutions, two of them with a stride, and a linear layer that sees every position.

    With the mnist recipe it reaches 98.2 % after 0.3 epochs in 1.8 s, while small-resnet takes 30 s for one epoch
    (2 cores). Global pooling before the last layer costs 1 percentage point; 24 channels take twice as long.
    """
    rows, columns = ((side + 3) // 4 for side in shape[:2])
    return nn.Sequential(
        *_build_stem(shape[2], width, kernel_size=5, stride=2),
        _build_conv(width, 2 * width, stride=2),
        _build_conv(2 * width, 2 * width),
        nn.Flatten(),
        nn.Linear(2 * width * rows * columns, classes),
    )


def small_resnet(shape: Shape, classes: int, width: int = 32) -> nn.Module:
    """Build a residual network for small images: two poolings, one residual block, global max-pooling.

    With the mnist recipe, width 32 reaches 99.1 % after one epoch of 30 s on 2 cores; a variant with a second
    residual block took twice as long for the same accuracy.
    """
    return nn.Sequential(
        *_build_stem(shape[2], width, kernel_size=3, stride=1),
        nn.MaxPool2d(2),
        _build_conv(width, 2 * width),
        nn.MaxPool2d(2),
        Residual(2 * width),
        _build_conv(2 * width, 4 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def resnet9(shape: Shape, classes: int, width: int = 64) -> nn.Module:
    """Build nine layers with two residual blocks, after David Page's "How to train your ResNet" (2018)."""
    return nn.Sequential(
        _build_conv(shape[2], width),
        _build_conv(width, 2 * width),
        nn.MaxPool2d(2),
        Residual(2 * width),
        _build_conv(2 * width, 4 * width),
        nn.MaxPool2d(2),
        _build_conv(4 * width, 4 * width),
        Residual(4 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


class Absolute(nn.Module):
    """The absolute value, as an activation."""

    def forward(self, features: Tensor) -> Tensor:
        """Map features to their absolute values."""
        return features.abs()


class Residual(nn.Module):
    """Two convolutions whose output is added to their input (He et al. 2015)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(_build_conv(channels, channels), _build_conv(channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return torch.add(features, self.convolutions(features))


class PlainConv3(nn.Module):
    """Three 3x3 convolutions without padding and one linear layer, for 28x28: keys `model.0 .2 .4 .7`."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(shape[2], 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 22 * 22, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, 28, 28) to logits (N, classes)."""
        logits: Tensor = self.model(images)
        return logits


class PooledConv2(nn.Module):
    """Two pooled convolutions and one linear layer, for 32x32: keys `conv1 conv2 fc`."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape[2], 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(8 * 8 * 32, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, 32, 32) to logits (N, classes)."""
        features = _convolve_and_pool(self.conv2, _convolve_and_pool(self.conv1, images))
        logits: Tensor = self.fc(features.flatten(1))
        return logits


class PooledConv2Mlp(nn.Module):
    """Two pooled convolutions and two linear layers, for 28x28: keys `conv1 conv2 fc1 fc2`."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape[2], 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3)
        # The tutorial has 64 * 12 * 12, which does not match its own two poolings.
        self.fc1 = nn.Linear(64 * 6 * 6, 128)
        self.fc2 = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, 28, 28) to logits (N, classes)."""
        features = _convolve_and_pool(self.conv2, _convolve_and_pool(self.conv1, images))
        logits: Tensor = self.fc2(F.relu(self.fc1(features.flatten(1))))
        return logits


class LeNet(nn.Module):
    """Two pooled 5x5 convolutions and three linear layers, for 32x32: keys `conv1 conv2 fc1 fc2 fc3`."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape[2], 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, 32, 32) to logits (N, classes)."""
        features = _convolve_and_pool(self.conv2, _convolve_and_pool(self.conv1, images))
        logits: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(features.flatten(1))))))
        return logits


def plain_conv2_mlp(shape: Shape, classes: int) -> nn.Module:
    """Build two convolutions and two linear layers, for 28x28: keys `0 2 5 7`.

    Without the softmax at the end of the tutorial's network: it has no keys, slows training, and the exported graph
    adds its own.
    """
    return nn.Sequential(
        nn.Conv2d(shape[2], 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 16, 5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 22 * 22, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def _convolve_and_pool(convolution: nn.Conv2d, images: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(convolution(images)), 2)


def _build_stem(inputs: int, outputs: int, kernel_size: int, stride: int) -> Sequence[nn.Module]:
    """Build the first layers, with the absolute value as activation: dark on light then equals light on dark.

    On MNIST, small-resnet reaches 99.15 % after an epoch instead of 98.74 % with ReLU, and tiny-convnet 98.2 % instead
    of 97.5 % after 0.3 epochs. Photographs lose little: 54.8 % instead of 55.0 % on CIFAR-10. A PReLU initialized to
    the absolute value trains no better, and its gradient takes a tenth of a step.
    """
    return (
        nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        Absolute(),
    )


def _build_conv(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
