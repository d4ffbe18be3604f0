"""The reference of the parity check: eager PyTorch behind torchvision's own transforms.

It uses neither the runtime's preprocessing nor the exported module, so that the check is independent of both.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision import transforms

from clf_runtime.session import Float32Array
from clf_runtime.spec import ModelSpec, Preprocess

# EfficientNet-Lite0 at 224 pixels, images per second of CPU time: 14 in batches of 64; 41 in batches of 32, channels
# last and with freed memory kept.
_BATCH = 32
_ORIENTATION = 0x0112  # EXIF tag; 5 and above swap width and height
_INTERPOLATION = {
    "bilinear": transforms.InterpolationMode.BILINEAR,
    "bicubic": transforms.InterpolationMode.BICUBIC,
}


class Reference:
    """A trained network, called the way its authors would call it."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        self.spec = spec
        self._model = model
        self._transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(spec.normalize.mean, spec.normalize.std)]
        )

    def transform_images(self, encoded: list[bytes]) -> Tensor:
        """Decode, resize and normalize image files; return float32 (N, C, H, W), channels last as in training."""
        preprocess = self.spec.preprocess
        images = (_resize(_decode(content, preprocess), preprocess) for content in encoded)
        stacked = torch.stack([self._transform(image) for image in images])
        return stacked.contiguous(memory_format=torch.channels_last)

    def compute_logits(
        self, encoded: list[bytes], on_progress: Callable[[float], object] = lambda share: None
    ) -> Float32Array:
        """Classify image files; return float32 (N, classes). `on_progress` is called with the share that is done."""
        logits = []
        with torch.inference_mode():
            for start in range(0, len(encoded), _BATCH):
                batch = encoded[start : start + _BATCH]
                logits.append(self._model(self.transform_images(batch)).numpy())
                on_progress((start + len(batch)) / len(encoded))
        return np.concatenate(logits)

    def compute_probabilities(self, logits: Float32Array) -> Float32Array:
        """Return softmax(logits / temperature), float32 (N, classes)."""
        scaled = torch.from_numpy(logits) / self.spec.temperature
        probabilities: Float32Array = torch.softmax(scaled, dim=1).numpy()
        return probabilities


def _decode(encoded: bytes, preprocess: Preprocess) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(encoded))
    if image.format in ("JPEG", "MPO"):
        _request_reduced_size(image, preprocess)
    image.load()  # before its orientation is read: loading a TIFF applies it
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray(np.floor(values * 255 / 65535 + 0.5).astype(np.uint8)).convert(preprocess.color)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        color = (preprocess.background * 3)[:3]
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*color, 255)), image)
    return image.convert(preprocess.color)


def _request_reduced_size(image: Image.Image, preprocess: Preprocess) -> None:
    """Decode a huge JPEG at a fraction of its size, by the rule of docs/artifact-format.md.

    Both sides stay at least twice as long as needed.
    """
    is_sideways = image.getexif().get(_ORIENTATION, 1) >= 5
    width, height = image.size[::-1] if is_sideways else image.size
    scales = preprocess.width / width, preprocess.height / height
    if preprocess.resize == "squash":
        needed = (preprocess.width, preprocess.height)
    else:
        scale = max(scales) / preprocess.crop_ratio if preprocess.resize == "crop" else min(scales)
        needed = (max(1, int(scale * width + 1e-6)), max(1, int(scale * height + 1e-6)))
    if is_sideways:
        needed = needed[::-1]
    image.draft(None, (2 * needed[0], 2 * needed[1]))


def _resize(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    interpolation = _INTERPOLATION[preprocess.resample]
    if preprocess.resize == "squash":
        return _resample(image, (preprocess.height, preprocess.width), interpolation)
    if preprocess.resize == "pad":
        return _pad(image, preprocess, interpolation)
    height, width = round(preprocess.height / preprocess.crop_ratio), round(preprocess.width / preprocess.crop_ratio)
    scale = max(height / image.height, width / image.width)
    cover = max(height, int(scale * image.height + 1e-6)), max(width, int(scale * image.width + 1e-6))
    image = _resample(image, cover, interpolation)
    cropped: Image.Image = transforms.CenterCrop((preprocess.height, preprocess.width))(image)
    return cropped


def _resample(image: Image.Image, size: tuple[int, int], interpolation: transforms.InterpolationMode) -> Image.Image:
    """Resize to (height, width), rows first: in one step the order would depend on the release of Pillow."""
    for step in ((image.height, size[1]), size):
        image = transforms.Resize(step, interpolation)(image)
    return image


def _pad(image: Image.Image, preprocess: Preprocess, interpolation: transforms.InterpolationMode) -> Image.Image:
    scale = min(preprocess.width / image.width, preprocess.height / image.height)
    size = max(1, int(scale * image.height + 1e-6)), max(1, int(scale * image.width + 1e-6))
    image = _resample(image, size, interpolation)
    left, top = (preprocess.width - image.width) // 2, (preprocess.height - image.height) // 2
    right, bottom = preprocess.width - image.width - left, preprocess.height - image.height - top
    fill = preprocess.background[0] if preprocess.color == "L" else preprocess.background
    padded: Image.Image = transforms.Pad((left, top, right, bottom), fill=fill)(image)
    return padded
