"""Held-out pictures as files, to try clf-run on."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

from clf_runtime.preprocess import upright_image
from clf_runtime.spec import ModelSpec, Preprocess
from clf_train.dataset import FilePictures, Pictures, in_turns

_SAMPLES = 16
_SAMPLE_SIDE = 512  # pixels, at most; a folder's photographs are samples, not an archive


def write_samples(folder: Path, pictures: Pictures, spec: ModelSpec) -> None:
    """Make `folder` and write 16 held-out pictures into it, the classes taken in turn. Raises OSError."""
    folder.mkdir()
    for name, content in _samples(pictures, spec):
        (folder / name).write_bytes(content)


def _samples(pictures: Pictures, spec: ModelSpec) -> list[tuple[str, bytes]]:
    """Give 16 held-out pictures as PNG files named LABEL-N.png, the classes taken in turn."""
    numbers: Counter[str] = Counter()
    samples = []
    for index in in_turns(pictures.targets, _SAMPLES):
        label = re.sub(r"[^\w.+-]+", "-", spec.labels[pictures.targets[index]])[:80]
        numbers[label] += 1
        samples.append((f"{label}-{numbers[label]}.png", _sample(pictures, index, spec.preprocess)))
    return samples


def _sample(pictures: Pictures, index: int, how: Preprocess) -> bytes:
    content = pictures.encoded(index)
    if not isinstance(pictures, FilePictures):
        return content
    image = upright_image(content, how)
    image.thumbnail((_SAMPLE_SIDE, _SAMPLE_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
