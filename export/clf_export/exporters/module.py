"""The module that every format exports. It contains everything behind the pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clf_runtime.spec import ModelSpec

INPUT = "image"
OUTPUTS = ("logits", "probabilities")


class ExportModule(nn.Module):
    """A network with its normalization, temperature and softmax."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
            for values in (spec.normalize.mean, spec.normalize.std)
        )
        self.model = model
        # (pixel / 255 - mean) / std, as one subtraction and one multiplication
        self.offset = nn.Buffer((mean * 255).float())
        self.factor = nn.Buffer((1 / (std * 255)).float())
        self.temperature = spec.temperature

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities, float32 (N, classes), of pixels, uint8 (N, height, width, channels)."""
        # The cast is to float32, or to float64 in the parity check. It comes first, because TensorRT accepts uint8 only
        # as the input of a Cast (its issue 3985). Without contiguous(), torch traces strides, and a global pooling
        # becomes a Gather of computed indices, which is slow, and which onnxruntime 1.17.3 computes wrongly in float16.
        pixels = image.to(self.offset.dtype).permute(0, 3, 1, 2).contiguous()
        logits = self.model((pixels - self.offset) * self.factor)
        return logits, torch.softmax(logits / self.temperature, dim=1)


def example_input(spec: ModelSpec) -> Tensor:
    """Return pixels to trace with: two images, since a batch of one would be traced as a constant."""
    return torch.zeros((2, *spec.preprocess.shape), dtype=torch.uint8)
