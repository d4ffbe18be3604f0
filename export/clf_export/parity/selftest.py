"""The self-test that a file carries: real images of the test split as encoded files, with PyTorch's logits."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
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

MAX_BYTES = 300_000

_MAX_CASES, _MIN_CASES = 16, 8
_MAX_SHARE = 0.04  # of the file, for the images beyond _MIN_CASES; base64 adds a third
_CASE_BYTES = 12_000
_LOGIT_BYTES = 14  # as text, with its comma
_NAMES_BYTES = 20_000  # all names and brackets
_FEW_LOGITS_BYTES, _MAX_LOGITS_BYTES = 100_000, 180_000
_TOP_CLASSES = 5  # of each image that are always compared
_QUALITIES = (90, 75, 50, 25)
_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class _Budget:
    """What a self-test may hold."""

    cases: int
    classes: int  # logits per case
    image_bytes: int  # per case


def build_self_test(
    reference_outputs: ReferenceOutputs, reference: Reference, tolerance: float, file_bytes: int
) -> SelfTest:
    """Choose images, make them small, and record PyTorch's logits for exactly those bytes.

    One image of each kind in the data (format, color mode, orientation, transparency) comes first, rare kinds before
    common ones, then the classes in turn. An image is chosen only if a difference of `tolerance` cannot change its
    label, so its label must be the same on every machine. With more than about 1,600 classes, the classes that matter
    most for these images and an even choice of the others are compared.

    Args:
        reference_outputs: the images to choose from.
        reference: computes the logits.
        tolerance: the difference of a logit up to which the self-test passes.
        file_bytes: the size of the file without the self-test. A small file gets fewer images, at least 8.
    """
    preprocess = reference.spec.preprocess
    budget = _plan_budget(reference_outputs.logits.shape[1])
    chosen = _choose_images(reference_outputs, tolerance)[: budget.cases]
    encoded = [_shrink(reference_outputs.encoded[index], preprocess, budget.image_bytes) for index in chosen]
    while len(encoded) > _MIN_CASES and sum(map(len, encoded)) > _MAX_SHARE * file_bytes:
        encoded.pop()
    names = [reference_outputs.names[index] for index in chosen[: len(encoded)]]
    logits = reference.compute_logits(encoded)
    classes = _choose_classes(logits, budget.classes)
    cases = [
        # The shortest text that reads back as the same float32.
        Case(name, content, tuple(float(str(value)) for value in row[classes]))
        for name, content, row in zip(names, encoded, logits, strict=True)
    ]
    return SelfTest(tolerance, tuple(cases), None if len(classes) == logits.shape[1] else tuple(classes))


def _plan_budget(classes: int) -> _Budget:
    """Divide MAX_BYTES between the logits and the images of a network with so many classes."""
    cases = _MAX_CASES
    while cases > _MIN_CASES and cases * classes * _LOGIT_BYTES > _FEW_LOGITS_BYTES:
        cases -= 1
    compared = min(classes, _MAX_LOGITS_BYTES // (cases * _LOGIT_BYTES))
    left = MAX_BYTES - _NAMES_BYTES - cases * compared * _LOGIT_BYTES
    return _Budget(cases, compared, min(_CASE_BYTES, left * 3 // 4 // cases))


def _choose_classes(logits: Float32Array, count: int) -> list[int]:
    """Choose `count` columns of logits, (N, classes): each image's best ones, which decide its label, and others."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :_TOP_CLASSES]
    others = np.linspace(0, logits.shape[1] - 1, count).astype(int)
    return sorted(list(dict.fromkeys([*best.ravel().tolist(), *others.tolist()]))[:count])


def _choose_images(reference_outputs: ReferenceOutputs, tolerance: float) -> list[int]:
    """Return the indices of the images with a certain label, best suited first."""
    best_two = np.sort(reference_outputs.logits, axis=1)[:, -2:]
    certain = np.flatnonzero(best_two[:, -1] - best_two[:, 0] > 2 * tolerance)
    if len(certain) < _MIN_CASES:
        certain = np.argsort(best_two[:, 0] - best_two[:, -1], kind="stable")[:_MAX_CASES]
    by_kind: dict[object, list[int]] = {}
    for index in certain.tolist():
        by_kind.setdefault(_kind_of(reference_outputs.encoded[index]), []).append(index)
    rare_first = sorted(by_kind.values(), key=len)
    one_of_each = [indices[0] for indices in rare_first[: _MAX_CASES // 2]]
    by_class = [int(certain[row]) for row in interleave_classes(reference_outputs.targets[certain], len(certain))]
    return list(dict.fromkeys([*one_of_each, *by_class]))


def _kind_of(content: bytes) -> object:
    """Return what distinguishes image files that take different paths through a decoder."""
    image = Image.open(io.BytesIO(content))
    return (
        image.format,
        image.mode,
        image.getexif().get(_ORIENTATION, 1) != 1,
        image.has_transparency_data,
        getattr(image, "n_frames", 1) > 1,
    )


def _shrink(content: bytes, preprocess: Preprocess, max_bytes: int) -> bytes:
    """Return the image file unchanged if it is small enough, else a smaller image of the same kind."""
    if len(content) <= max_bytes:
        return content
    for shrink in (_shrink_same_kind, _shrink_to_jpeg):
        file = shrink(content, preprocess, max_bytes)
        if file is not None:
            return file
    raise AssertionError("a JPEG of 8 pixels a side has less than 500 bytes")


def _shrink_same_kind(content: bytes, preprocess: Preprocess, max_bytes: int) -> bytes | None:
    """Scale the image down in its own format, mode and orientation; return None where that is not enough."""
    image = Image.open(io.BytesIO(content))
    if image.format not in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"):
        return None
    orientation = image.getexif().get(_ORIENTATION, 1)
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    extra = {"exif": exif.tobytes()} if orientation != 1 and image.format in ("JPEG", "PNG", "WEBP") else {}
    for factor in (2.0, 1.5, 1.0):
        scale = factor * max(preprocess.width, preprocess.height) / min(image.size)
        if scale >= 1:
            continue
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        # Nearest is the only filter for palettes and 16 bits.
        smaller = image.resize(size, Image.Resampling.NEAREST)
        smaller.info.pop("icc_profile", None)
        is_lossy = image.format in ("JPEG", "WEBP")
        for options in [{"quality": quality} for quality in _QUALITIES[:-1]] if is_lossy else [{}]:
            file = _encode(smaller, image.format, {**options, **extra})
            if file is not None and len(file) <= max_bytes:
                return file
    return None


def _shrink_to_jpeg(content: bytes, preprocess: Preprocess, max_bytes: int) -> bytes | None:
    """Return the network's input as a JPEG, at half the size or less where it must be."""
    image = resize_image(decode_image(content, preprocess), preprocess)
    while True:
        for quality in _QUALITIES:
            file = _encode(image, "JPEG", {"quality": quality})
            if file is not None and len(file) <= max_bytes:
                return file
        if max(image.size) <= 8:
            return file
        image = image.resize((max(1, image.width // 2), max(1, image.height // 2)))


def _encode(image: Image.Image, image_format: str, options: Mapping[str, Any]) -> bytes | None:
    file = io.BytesIO()
    try:
        image.save(file, image_format, **options)
    except (OSError, ValueError):
        return None  # this format does not have this mode
    return file.getvalue()
