"""Test images as files, to try clf-run with."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

from clf_runtime.preprocess import decode_image
from clf_runtime.spec import ModelSpec, Preprocess
from clf_train.data.dataset import FileImageSet, ImageSet, interleave_classes

_SAMPLES = 16
_MAX_SIDE = 512  # pixels; a folder's photographs are samples, not an archive


def write_samples(folder: Path, images: ImageSet, spec: ModelSpec) -> None:
    """Make `folder` and write 16 images into it as LABEL-N.png, one class after the other in turn.

    Raises:
        DataError: an image can no longer be read.
        OSError: a file cannot be written.
    """
    folder.mkdir()
    numbers: Counter[str] = Counter()
    for index in interleave_classes(images.targets, _SAMPLES):
        label = re.sub(r"[^\w.+-]+", "-", spec.labels[images.targets[index]])[:80]
        numbers[label] += 1
        (folder / f"{label}-{numbers[label]}.png").write_bytes(_png_from_image(images, index, spec.preprocess))


def _png_from_image(images: ImageSet, index: int, preprocess: Preprocess) -> bytes:
    content = images.encode(index)
    if not isinstance(images, FileImageSet):
        return content  # a PNG already
    image = decode_image(content, preprocess)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
