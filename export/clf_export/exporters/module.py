"""The module that every format exports: everything after the pixels is inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clf_runtime.spec import ModelSpec

INPUT = "image"
OUTPUTS = ("logits", "probabilities")


class ExportModule(nn.Module):
    """uint8 (N, height, width, channels) to logits and probabilities, both float32 (N, classes)."""

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
        """Scale, normalise, bring to (N, C, H, W), classify, and apply temperature and softmax."""
        # Float32, or float64 for a proof; first of all, since TensorRT takes uint8 into nothing but a Cast (its issue
        # 3985). Contiguous, or torch traces layouts: a global pooling then becomes a Gather of computed places, which
        # is slow, and which onnxruntime 1.17.3 gets wrong in float16.
        pixels = image.to(self.offset.dtype).permute(0, 3, 1, 2).contiguous()
        logits = self.model((pixels - self.offset) * self.factor)
        return logits, torch.softmax(logits / self.temperature, dim=1)


def example(spec: ModelSpec) -> Tensor:
    """Give two images of the right shape to trace with; two, so that N is seen to vary."""
    return torch.zeros((2, *spec.preprocess.shape), dtype=torch.uint8)
