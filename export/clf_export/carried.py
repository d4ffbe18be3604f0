"""The self-test that a file carries: real held-out pictures as encoded files, with PyTorch's logits."""

from __future__ import annotations

import io

from clf_export.proof import TOLERANCE
from clf_export.reference import Reference
from clf_runtime.preprocess import fitted, upright_image
from clf_runtime.selftest import Case, SelfTest
from clf_runtime.spec import Preprocess
from clf_train.dataset import Pictures, in_turns

_CASES = 16
_CASE_BYTES = 12_000  # so that 16 of them, as base64, stay under 300 kB
_QUALITIES = (90, 75, 50, 25)


def selftest_from_pictures(pictures: Pictures, reference: Reference, how: Preprocess) -> SelfTest:
    """Choose held-out pictures, the classes in turn, and record what PyTorch says of their very bytes."""
    chosen = in_turns(pictures.targets, _CASES)
    encoded = [_small(pictures.encoded(index), how) for index in chosen]
    logits = reference.logits(encoded)
    cases = [
        Case(pictures.names[index], content, tuple(row.tolist()))
        for index, content, row in zip(chosen, encoded, logits, strict=True)
    ]
    return SelfTest(TOLERANCE, tuple(cases))


def _small(content: bytes, how: Preprocess) -> bytes:
    """Give the file as it is, or the picture at the input's size as a JPEG where the file is large."""
    if len(content) <= _CASE_BYTES:
        return content
    image = fitted(upright_image(content, how), how)
    for quality in _QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        if file.tell() <= _CASE_BYTES:
            break
    return file.getvalue()
