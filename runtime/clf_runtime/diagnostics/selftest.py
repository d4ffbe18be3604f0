"""The proof inside the file, replayed: real images as encoded files, and the logits that PyTorch gave for them."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clf_runtime.classifier import Classifier
from clf_runtime.errors import InvalidModelError
from clf_runtime.onnx_file import SELFTEST_KEY, OnnxFile
from clf_runtime.preprocess import pixels_from_image
from clf_runtime.session import Float32Array


@dataclass(frozen=True)
class Case:
    """One image and its reference."""

    name: str
    image: bytes  # an image file, encoded
    logits: tuple[float, ...]  # float32 PyTorch, on a CPU; of the self-test's classes


@dataclass(frozen=True)
class SelfTest:
    """What travels in the file under `clf.selftest`."""

    tolerance: float  # the largest |difference of a logit| that counts as the same answer
    cases: tuple[Case, ...]
    classes: tuple[int, ...] | None = None  # the positions of the logits, ascending; None: all of them

    def to_json(self) -> str:
        """Give the text that `from_json` reads."""
        cases = [
            {"name": case.name, "image": base64.b64encode(case.image).decode(), "logits": case.logits}
            for case in self.cases
        ]
        some = {} if self.classes is None else {"classes": self.classes}
        return json.dumps({"tolerance": self.tolerance, **some, "cases": cases})

    @classmethod
    def from_json(cls, text: str, source: str) -> SelfTest:
        """Parse the text; `source` is the file to name in a refusal. Raises InvalidModelError."""
        try:
            content = json.loads(text)
            cases = tuple(
                Case(
                    str(case["name"]), base64.b64decode(case["image"], validate=True), tuple(map(float, case["logits"]))
                )
                for case in content["cases"]
            )
            some = content.get("classes")
            return cls(float(content["tolerance"]), cases, None if some is None else tuple(map(int, some)))
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
            raise InvalidModelError(
                f"{source}: refused: its {SELFTEST_KEY} cannot be read ({error!r}); export it again"
            ) from None


@dataclass(frozen=True)
class SelfTestResult:
    """What a replay found on this machine."""

    images: int
    max_difference: float  # of a logit, over all images and classes
    worst_image: str  # the image that it belongs to
    flipped: int  # images whose label is another one here, although the tolerance leaves no doubt of it
    tolerance: float
    provider: str

    @property
    def passed(self) -> bool:
        """Whether this machine gives the answers that the model was exported with."""
        # A NaN compares as false, and so fails.
        return self.flipped == 0 and self.max_difference <= self.tolerance

    def __str__(self) -> str:
        return (
            f"{'passed' if self.passed else 'FAILED'}: {self.images} images on {self.provider}, "
            f"max |difference of a logit| {self.max_difference:.1e} ({self.worst_image}), "
            f"tolerance {self.tolerance:.0e}, labels flipped {self.flipped}"
        )


def read_self_test(file: OnnxFile) -> SelfTest:
    """Give the self-test that `file` carries. Raises InvalidModelError."""
    if SELFTEST_KEY not in file.metadata:
        raise InvalidModelError(f"{file.path}: refused: it carries no {SELFTEST_KEY}; export it again")
    return SelfTest.from_json(file.metadata[SELFTEST_KEY], str(file.path))


def run_self_test(classifier: Classifier) -> SelfTestResult:
    """Run the self-test that `classifier`'s file carries. Raises InvalidModelError, ImageError."""
    source = str(classifier.file.path)
    test = read_self_test(classifier.file)
    labels = range(len(classifier.spec.labels))
    compared = tuple(labels) if test.classes is None else test.classes
    if not _fits(test, compared) or not set(compared) <= set(labels):
        raise InvalidModelError(f"{source}: refused: its {SELFTEST_KEY} does not fit its labels; export it again")
    reference = np.asarray([case.logits for case in test.cases], dtype=np.float32)
    logits = np.stack([_logits(classifier, case) for case in test.cases])
    differences = np.abs(logits[:, list(compared)] - reference).max(axis=1)
    other = logits.argmax(axis=1) != np.asarray(compared)[reference.argmax(axis=1)]
    worst_image = int(differences.argmax())  # a NaN counts as the largest
    return SelfTestResult(
        images=len(test.cases),
        max_difference=float(differences[worst_image]),
        worst_image=test.cases[worst_image].name,
        flipped=int((_decided(reference, test.tolerance) & other).sum()),
        tolerance=test.tolerance,
        provider=classifier.provider,
    )


def _fits(test: SelfTest, compared: tuple[int, ...]) -> bool:
    return bool(test.cases) and bool(compared) and all(len(case.logits) == len(compared) for case in test.cases)


def _decided(logits: Float32Array, tolerance: float) -> npt.NDArray[np.bool_]:
    """Tell, for logits (N, classes), whose best one stays the best if each moves by as much as it may: bool (N,)."""
    best_two = np.sort(logits, axis=1)[:, -2:]
    decided: npt.NDArray[np.bool_] = best_two[:, -1] - best_two[:, 0] > 2 * tolerance
    return decided


def _logits(classifier: Classifier, case: Case) -> Float32Array:
    pixels = pixels_from_image(case.image, classifier.spec.preprocess)
    logits: Float32Array = classifier.run(pixels[None])[0][0]
    return logits
