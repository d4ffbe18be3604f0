"""Held-out images as files, to try clf-run on."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

from clf_runtime.preprocess import decode_image
from clf_runtime.spec import ModelSpec, Preprocess
from clf_train.data.dataset import FileImageSet, ImageSet, interleave_classes

_SAMPLES = 16
_SAMPLE_SIDE = 512  # pixels, at most; a folder's photographs are samples, not an archive


def write_samples(folder: Path, images: ImageSet, spec: ModelSpec) -> None:
    """Make `folder` and write 16 held-out images into it, the classes taken in turn. Raises OSError."""
    folder.mkdir()
    for name, content in _samples(images, spec):
        (folder / name).write_bytes(content)


def _samples(images: ImageSet, spec: ModelSpec) -> list[tuple[str, bytes]]:
    """Give 16 held-out images as PNG files named LABEL-N.png, the classes taken in turn."""
    numbers: Counter[str] = Counter()
    samples = []
    for index in interleave_classes(images.targets, _SAMPLES):
        label = re.sub(r"[^\w.+-]+", "-", spec.labels[images.targets[index]])[:80]
        numbers[label] += 1
        samples.append((f"{label}-{numbers[label]}.png", _sample(images, index, spec.preprocess)))
    return samples


def _sample(images: ImageSet, index: int, preprocess: Preprocess) -> bytes:
    content = images.encoded(index)
    if not isinstance(images, FileImageSet):
        return content
    image = decode_image(content, preprocess)
    image.thumbnail((_SAMPLE_SIDE, _SAMPLE_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
