"""The self-test inside a model file: encoded images, and the logits that PyTorch computed for them."""

from __future__ import annotations

import base64
import binascii
import json
import math
import operator
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import Any

import numpy as np
import numpy.typing as npt

from clf_runtime.classifier import Classifier
from clf_runtime.errors import ImageError, InvalidModelError, escape
from clf_runtime.onnx_file import SELFTEST_KEY, OnnxFile
from clf_runtime.preprocess import pixels_from_image
from clf_runtime.session import Float32Array
from clf_runtime.spec import parse_json


@dataclass(frozen=True)
class Case:
    """One image and its reference logits."""

    name: str
    image: bytes  # an image file, encoded
    logits: tuple[float, ...]  # from PyTorch in float32 on a CPU; of the self-test's classes


@dataclass(frozen=True)
class SelfTest:
    """The content of `clf.selftest`."""

    tolerance: float  # the largest allowed |difference of a logit|
    cases: tuple[Case, ...]
    classes: tuple[int, ...] | None = None  # the positions of the logits, ascending; None if all

    def to_json(self) -> str:
        """Return the JSON text that `from_json` reads."""
        cases = [
            {"name": case.name, "image": base64.b64encode(case.image).decode(), "logits": case.logits}
            for case in self.cases
        ]
        classes = {} if self.classes is None else {"classes": self.classes}
        return json.dumps({"tolerance": self.tolerance, **classes, "cases": cases})

    @classmethod
    def from_json(cls, text: str, source: str) -> SelfTest:
        """Parse a self-test; `source` is the name of the file for error messages. Raises InvalidModelError."""
        try:
            content = parse_json(text)
            cases = tuple(
                Case(
                    str(case["name"]),
                    base64.b64decode(case["image"], validate=True),
                    tuple(map(float, case["logits"])),
                )
                for case in content["cases"]
            )
            classes = content.get("classes")
            tolerance = _finite(content["tolerance"])
            if tolerance < 0:
                raise ValueError(f"the tolerance is {tolerance}")
            return cls(tolerance, cases, None if classes is None else tuple(map(operator.index, classes)))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, binascii.Error) as error:
            raise InvalidModelError(
                f"{source}: its {SELFTEST_KEY} cannot be parsed ({shorten(repr(error), 100)}); export it again"
            ) from None


def _finite(number: float) -> float:
    """Return a number. Raises ValueError, TypeError, OverflowError: an infinite tolerance would pass everything."""
    if not math.isfinite(number):
        raise ValueError(f"{number} is not finite")
    return float(number)


@dataclass(frozen=True)
class SelfTestResult:
    """The result of a self-test on this machine."""

    images: int
    max_difference: float  # of a logit, over all images and classes
    worst_image: str  # the image with this difference
    flipped: int  # images with another label here, although the tolerance does not allow it
    tolerance: float
    provider: str

    @property
    def passed(self) -> bool:
        """Whether this machine computes the logits that the model was exported with."""
        # A NaN compares as false, so it fails.
        return self.flipped == 0 and self.max_difference <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Return what `--self-test --format json` prints. JSON has no NaN."""
        difference = self.max_difference if math.isfinite(self.max_difference) else None
        return {"passed": self.passed, **asdict(self), "max_difference": difference}

    def __str__(self) -> str:
        return (
            f"{'passed' if self.passed else 'FAILED'}: {self.images} images on {self.provider}, "
            f"max |difference of a logit| {self.max_difference:.1e} ({escape(self.worst_image)}), "
            f"tolerance {self.tolerance:.0e}, labels flipped {self.flipped}"
        )


def read_self_test(file: OnnxFile) -> SelfTest:
    """Return the self-test that a model file contains. Raises InvalidModelError."""
    if SELFTEST_KEY not in file.metadata:
        raise InvalidModelError(f"{file.path}: it contains no {SELFTEST_KEY}; export it again")
    return SelfTest.from_json(file.metadata[SELFTEST_KEY], str(file.path))


def run_self_test(classifier: Classifier) -> SelfTestResult:
    """Run the self-test that the model file of a classifier contains. Raises InvalidModelError."""
    test = read_self_test(classifier.file)
    labels = range(len(classifier.spec.labels))
    classes = tuple(labels) if test.classes is None else test.classes
    if not _is_consistent(test, classes) or not set(classes) <= set(labels):
        raise InvalidModelError(
            f"{classifier.file.path}: its {SELFTEST_KEY} does not match its labels; export it again"
        )
    reference = np.asarray([case.logits for case in test.cases], dtype=np.float32)
    logits = np.stack([_run_case(classifier, case) for case in test.cases])
    differences = np.abs(logits[:, list(classes)] - reference).max(axis=1)
    has_other_label = logits.argmax(axis=1) != np.asarray(classes)[reference.argmax(axis=1)]
    worst = int(differences.argmax())  # a NaN counts as the largest
    return SelfTestResult(
        images=len(test.cases),
        max_difference=float(differences[worst]),
        worst_image=test.cases[worst].name,
        flipped=int((_is_decided(reference, test.tolerance) & has_other_label).sum()),
        tolerance=test.tolerance,
        provider=classifier.provider,
    )


def _is_consistent(test: SelfTest, classes: tuple[int, ...]) -> bool:
    return bool(test.cases) and bool(classes) and all(len(case.logits) == len(classes) for case in test.cases)


def _is_decided(logits: Float32Array, tolerance: float) -> npt.NDArray[np.bool_]:
    """Return whether the best class stays the best if each logit changes by the tolerance.

    For logits (N, classes); returns bool (N,).
    """
    best_two = np.sort(logits, axis=1)[:, -2:]
    is_decided: npt.NDArray[np.bool_] = best_two[:, -1] - best_two[:, 0] > 2 * tolerance
    return is_decided


def _run_case(classifier: Classifier, case: Case) -> Float32Array:
    try:
        pixels = pixels_from_image(case.image, classifier.spec.preprocess)
    except ImageError as error:
        raise InvalidModelError(
            f"{classifier.file.path}: image {case.name!r} of its {SELFTEST_KEY} cannot be read ({error}); "
            "export it again"
        ) from None
    logits: Float32Array = classifier.run(pixels[None])[0][0]
    return logits
