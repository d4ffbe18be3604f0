"""EfficientNet-Lite: EfficientNet for edge devices, with ReLU6 and without squeeze-and-excitation.

Plain convolutions and ReLU6 quantize well, which is what the Lite variants are made for. The names of the parameters
are those of the published PyTorch weights, so that their state_dicts load as they are. Sources: Tan & Le 2019
("EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"), and the model table of TensorFlow's
EfficientNet-Lite (2020) for what Lite leaves unscaled: the stem, the head, and the depth of the first and last stage.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clf_train.models.networks import Shape

# One row per stage: blocks, kernel size, stride of the first block, expansion, output channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS, _HEAD_CHANNELS = 32, 1280


def efficientnet_lite0(shape: Shape, classes: int) -> nn.Module:
    """Build EfficientNet-Lite0: 4.7 M parameters, trained at 224 pixels."""
    return EfficientNetLite(shape, classes, width=1.0, depth=1.0)


def efficientnet_lite1(shape: Shape, classes: int) -> nn.Module:
    """Build EfficientNet-Lite1: 5.4 M parameters, trained at 240 pixels."""
    return EfficientNetLite(shape, classes, width=1.0, depth=1.1)


def efficientnet_lite2(shape: Shape, classes: int) -> nn.Module:
    """Build EfficientNet-Lite2: 6.1 M parameters, trained at 260 pixels."""
    return EfficientNetLite(shape, classes, width=1.1, depth=1.2, dropout=0.3)


class EfficientNetLite(nn.Module):
    """A stem, inverted residual blocks, a head; keys `_conv_stem _blocks.N _conv_head _fc`."""

    def __init__(self, shape: Shape, classes: int, width: float, depth: float, dropout: float = 0.2) -> None:
        """Build the network for images of (H, W, C); the padding of strided layers depends on their size."""
        super().__init__()
        size, channels = shape[:2], _STEM_CHANNELS
        self._conv_stem = SamePadConv2d(shape[2], channels, 3, stride=2, size=size)
        self._bn0 = _create_norm(channels)
        size = _halve(size)
        blocks: list[nn.Module] = []
        for stage, (repeats, kernel_size, stride, expansion, base) in enumerate(_STAGES):
            scaled = stage not in (0, len(_STAGES) - 1)
            outputs = _scale_channels(base, width)
            for repeat in range(math.ceil(depth * repeats) if scaled else repeats):
                step = stride if repeat == 0 else 1
                blocks.append(InvertedResidual(channels, outputs, expansion, kernel_size, step, size))
                size, channels = (_halve(size) if step == 2 else size), outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(channels, _HEAD_CHANNELS, 1, bias=False)
        self._bn1 = _create_norm(_HEAD_CHANNELS)
        self._relu6 = nn.ReLU6(inplace=True)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(_HEAD_CHANNELS, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to logits (N, classes)."""
        return self.run_last_blocks(self.run_stem(images), 0)

    def run_stem(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to the input of the first block."""
        activations: Tensor = self._relu6(self._bn0(self._conv_stem(images)))
        return activations

    def run_blocks(self, activations: Tensor, first: int, end: int) -> Tensor:
        """Map the input of block `first` to the input of block `end`."""
        for block in self._blocks[first:end]:
            activations = block(activations)
        return activations

    def run_last_blocks(self, activations: Tensor, first: int) -> Tensor:
        """Map the input of block `first` to logits (N, classes)."""
        logits: Tensor = self._fc(self._dropout(self.compute_features(activations, first)))
        return logits

    def compute_features(self, activations: Tensor, first: int) -> Tensor:
        """Map the input of block `first` to the input of the last layer, (N, 1280)."""
        activations = self.run_blocks(activations, first, len(self._blocks))
        features: Tensor = self._relu6(self._bn1(self._conv_head(activations)))
        return features.mean((2, 3))

    def list_layers(self, first: int) -> list[nn.Module]:
        """Return the layers from block `first` on."""
        return [*self._blocks[first:], self._conv_head, self._bn1, self._dropout, self._fc]

    def copy_head(self) -> tuple[Tensor, Tensor]:
        """Return a copy of the weight (classes, 1280) and the bias (classes,) of the last layer."""
        return self._fc.weight.detach().clone(), self._fc.bias.detach().clone()

    def set_head(self, weight: Tensor, bias: Tensor) -> None:
        """Replace the weights (classes, 1280) and the bias (classes,) of the last layer."""
        self._fc.weight.data.copy_(weight)
        self._fc.bias.data.copy_(bias)


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, project; added to its input where the shapes agree (Sandler et al. 2018)."""

    def __init__(
        self, inputs: int, outputs: int, expansion: int, kernel_size: int, stride: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        self._expands = expansion > 1
        self._adds_input = stride == 1 and inputs == outputs
        if self._expands:
            self._expand_conv = nn.Conv2d(inputs, hidden, 1, bias=False)
            self._bn0 = _create_norm(hidden)
        self._depthwise_conv = SamePadConv2d(hidden, hidden, kernel_size, stride=stride, size=size, groups=hidden)
        self._bn1 = _create_norm(hidden)
        self._project_conv = nn.Conv2d(hidden, outputs, 1, bias=False)
        self._bn2 = _create_norm(outputs)
        self._relu6 = nn.ReLU6(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        hidden = self._relu6(self._bn0(self._expand_conv(features))) if self._expands else features
        hidden = self._relu6(self._bn1(self._depthwise_conv(hidden)))
        projected: Tensor = self._bn2(self._project_conv(hidden))
        return features + projected if self._adds_input else projected


class SamePadConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME does: the output has ceil(size / stride) rows and columns.

    For a stride of 2 and an even size that is one pixel more at the end than at the beginning.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, stride: int, size: tuple[int, int], groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel_size, stride, bias=False, groups=groups)
        rows, columns = (max((math.ceil(n / stride) - 1) * stride + kernel_size - n, 0) for n in size)
        # The convolution itself pads the same at the beginning and the end, without a copy of the features; the rest is
        # added here. F.pad counts from the last axis on: left, right, top, bottom.
        self._at_start = rows // 2, columns // 2
        self.padding = self._at_start
        self._at_end = (0, columns % 2, 0, rows % 2)
        # Pads more instead, and leaves the first outputs out: faster where no batch normalization follows, since only
        # outputs are copied. For inference in PyTorch; onnxruntime makes F.pad a part of the convolution.
        self.crops_output = False

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, ceil(H / stride), ceil(W / stride))."""
        if not self.crops_output:
            return self._convolve(F.pad(features, self._at_end) if any(self._at_end) else features)
        if not any(self._at_end):
            return super().forward(features)
        # One stride more at the beginning is one output more there.
        (top, left), (down, right) = self._at_start, self.stride
        padding = (top + down, left + right)
        outputs = F.conv2d(features, self.weight, self.bias, self.stride, padding, groups=self.groups)
        height, width = math.ceil(features.shape[2] / down), math.ceil(features.shape[3] / right)
        return outputs[:, :, 1 : height + 1, 1 : width + 1]

    def _convolve(self, features: Tensor) -> Tensor:
        """Convolve, in float32 if the gradient would take a hundred times as long: in bfloat16, strided, on a CPU."""
        is_slow = self.stride != (1, 1) and features.requires_grad and features.device.type == "cpu"
        if not (is_slow and torch.is_autocast_enabled("cpu")):
            return super().forward(features)
        with torch.autocast("cpu", enabled=False):
            return super().forward(features.float())


def _create_norm(channels: int) -> nn.BatchNorm2d:
    """Return batch normalization as in TensorFlow, where the published weights were trained."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _halve(size: tuple[int, int]) -> tuple[int, int]:
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _scale_channels(channels: int, width: float) -> int:
    """Round to a multiple of 8, at most a tenth below the scaled number (the rule of MobileNet and EfficientNet)."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded
