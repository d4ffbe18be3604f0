"""The self-test that a file carries: real held-out images as encoded files, with PyTorch's logits."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from clf_export.parity.reference import Reference
from clf_export.parity.reference_outputs import ReferenceOutputs
from clf_runtime.diagnostics.selftest import Case, SelfTest
from clf_runtime.preprocess import decode_image, resize_image
from clf_runtime.session import Float32Array
from clf_runtime.spec import Preprocess
from clf_train.data.dataset import interleave_classes

MOST_BYTES = 300_000

_MOST_CASES, _FEWEST_CASES = 16, 8
_MOST_OF_GRAPH = 0.04  # for the images beyond the fewest; as text a third more
_CASE_BYTES = 12_000
_LOGIT_BYTES = 14  # as text, with its comma
_NAMES_BYTES = 20_000  # names and brackets, of all
_WANTED_LOGITS_BYTES, _MOST_LOGITS_BYTES = 100_000, 180_000
_BEST = 5  # classes of each image that are always compared
_QUALITIES = (90, 75, 50, 25)
_SIDEWAYS = 0x0112  # EXIF's orientation


def build_self_test(
    reference_outputs: ReferenceOutputs, reference: Reference, tolerance: float, graph_bytes: int
) -> SelfTest:
    """Choose held-out images, and record what PyTorch says of their very bytes.

    One of each kind that the data has (format, colour, orientation, transparency), rare kinds first, then the
    classes in turn. Only images of which PyTorch is surer than `tolerance` can change: their labels must be the
    same everywhere. `graph_bytes` is the size of what they travel with: a small file gets fewer, 8 at least.
    Of more than some 1,600 classes, those that matter most for these images and an even choice of the others.
    """
    preprocess = reference.spec.preprocess
    count, compared, room_bytes = _budget(reference_outputs.logits.shape[1])
    chosen = _chosen(reference_outputs, tolerance)[:count]
    encoded = [_small(reference_outputs.encoded[index], preprocess, room_bytes) for index in chosen]
    while len(encoded) > _FEWEST_CASES and sum(map(len, encoded)) > _MOST_OF_GRAPH * graph_bytes:
        encoded.pop()
    names = [reference_outputs.names[index] for index in chosen[: len(encoded)]]
    logits = reference.logits(encoded)
    classes = _classes(logits, compared)
    cases = [
        # The shortest text that reads back as the same float32.
        Case(name, content, tuple(float(str(value)) for value in row[classes]))
        for name, content, row in zip(names, encoded, logits, strict=True)
    ]
    return SelfTest(tolerance, tuple(cases), None if len(classes) == logits.shape[1] else tuple(classes))


def _budget(classes: int) -> tuple[int, int, int]:
    """Give how many cases there are, of how many classes, and the bytes that the image of each may have."""
    count = _MOST_CASES
    while count > _FEWEST_CASES and count * classes * _LOGIT_BYTES > _WANTED_LOGITS_BYTES:
        count -= 1
    compared = min(classes, _MOST_LOGITS_BYTES // (count * _LOGIT_BYTES))
    left = MOST_BYTES - _NAMES_BYTES - count * compared * _LOGIT_BYTES
    return count, compared, min(_CASE_BYTES, left * 3 // 4 // count)


def _classes(logits: Float32Array, count: int) -> list[int]:
    """Choose classes of logits (N, classes): the best ones of each image, so that a label can be told, and others."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :_BEST]
    others = np.linspace(0, logits.shape[1] - 1, count).astype(int)
    return sorted(list(dict.fromkeys([*best.ravel().tolist(), *others.tolist()]))[:count])


def _chosen(reference_outputs: ReferenceOutputs, tolerance: float) -> list[int]:
    best_two = np.sort(reference_outputs.logits, axis=1)[:, -2:]
    sure = np.flatnonzero(best_two[:, -1] - best_two[:, 0] > 2 * tolerance)
    if len(sure) < _FEWEST_CASES:
        sure = np.argsort(best_two[:, 0] - best_two[:, -1], kind="stable")[:_MOST_CASES]
    by_kind: dict[object, list[int]] = {}
    for index in sure.tolist():
        by_kind.setdefault(_kind(reference_outputs.encoded[index]), []).append(index)
    rare_first = sorted(by_kind.values(), key=len)
    one_of_each = [indices[0] for indices in rare_first[: _MOST_CASES // 2]]
    turns = [int(sure[at]) for at in interleave_classes(reference_outputs.targets[sure], len(sure))]
    return list(dict.fromkeys([*one_of_each, *turns]))


def _kind(content: bytes) -> object:
    """Tell images apart by what makes their reading awkward."""
    image = Image.open(io.BytesIO(content))
    return (
        image.format,
        image.mode,
        image.getexif().get(_SIDEWAYS, 1) != 1,
        image.has_transparency_data,
        getattr(image, "n_frames", 1) > 1,
    )


def _small(content: bytes, preprocess: Preprocess, room_bytes: int) -> bytes:
    """Give the file as it is, or a smaller image of the same kind where the file is large."""
    if len(content) <= room_bytes:
        return content
    for attempt in (_same_kind, _as_jpeg):
        file = attempt(content, preprocess, room_bytes)
        if file is not None:
            return file
    raise AssertionError("a JPEG of 8 pixels a side has less than 500 bytes")


def _same_kind(content: bytes, preprocess: Preprocess, room_bytes: int) -> bytes | None:
    """Scale the image down in its own format and colours, with its orientation; None where that is not enough."""
    image = Image.open(io.BytesIO(content))
    if image.format not in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"):
        return None
    orientation = image.getexif().get(_SIDEWAYS, 1)
    exif = Image.Exif()
    exif[_SIDEWAYS] = orientation
    extra = {"exif": exif.tobytes()} if orientation != 1 and image.format in ("JPEG", "PNG", "WEBP") else {}
    for factor in (2.0, 1.5, 1.0):
        scale = factor * max(preprocess.width, preprocess.height) / min(image.size)
        if scale >= 1:
            continue
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        # Nearest: the only one that palettes and 16 bits have.
        smaller = image.resize(size, Image.Resampling.NEAREST)
        smaller.info.pop("icc_profile", None)
        lossy = image.format in ("JPEG", "WEBP")
        for options in [{"quality": quality} for quality in _QUALITIES[:-1]] if lossy else [{}]:
            file = _saved(smaller, image.format, {**options, **extra})
            if file is not None and len(file) <= room_bytes:
                return file
    return None


def _as_jpeg(content: bytes, preprocess: Preprocess, room_bytes: int) -> bytes | None:
    """Give what the network sees as a JPEG; smaller than that where it must be."""
    image = resize_image(decode_image(content, preprocess), preprocess)
    while True:
        for quality in _QUALITIES:
            file = _saved(image, "JPEG", {"quality": quality})
            if file is not None and len(file) <= room_bytes:
                return file
        if max(image.size) <= 8:
            return file
        image = image.resize((max(1, image.width // 2), max(1, image.height // 2)))


def _saved(image: Image.Image, image_format: str, options: Mapping[str, Any]) -> bytes | None:
    file = io.BytesIO()
    try:
        image.save(file, image_format, **options)
    except (OSError, ValueError):
        return None  # this colour mode cannot be written in this format
    return file.getvalue()
