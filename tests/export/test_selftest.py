"""The self-test inside a file: which images it takes, and how small they are made."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch import nn

from clf_export.parity.reference import Reference
from clf_export.parity.selftest import MOST_BYTES, build_self_test
from clf_runtime.preprocess import pixels_from_image
from clf_runtime.spec import ModelSpec, Normalize, Preprocess

CLASSES = 4
LARGE = 10**8  # bytes of a graph beside which no self-test counts


def noise(width: int, height: int, mode: str) -> Image.Image:
    """What no format makes smaller."""
    rng = np.random.default_rng(width)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    if mode == "P":
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).quantize(64)
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels, mode)


def encoded(width: int, height: int, mode: str, image_format: str, orientation: int = 1) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif.tobytes()} if orientation != 1 else {}
    noise(width, height, mode).save(file, image_format, **options)
    return file.getvalue()


AWKWARD = {
    "phone.jpg": encoded(1200, 900, "RGB", "JPEG", orientation=6),
    "print.jpg": encoded(900, 700, "CMYK", "JPEG"),
    "scan.png": encoded(700, 800, "I;16", "PNG"),
    "clip.png": encoded(640, 640, "RGBA", "PNG"),
    "map.png": encoded(800, 600, "P", "PNG"),
    "web.webp": encoded(800, 600, "RGB", "WEBP"),
    "page.tif": encoded(500, 600, "L", "TIFF"),
    "film.gif": encoded(500, 400, "P", "GIF"),
}
PLAIN = {f"plain-{number}.jpg": encoded(60 + number, 64, "RGB", "JPEG") for number in range(40)}


class Mean(nn.Module):
    """Logits from the image itself, so that each has its own."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images):
        flat = images.flatten(1)
        return flat[:, : self.classes] * 5 if flat.shape[1] >= self.classes else flat.repeat(1, 40)[:, : self.classes]


def spec(classes: int = CLASSES) -> ModelSpec:
    preprocess = Preprocess(
        color="RGB", height=48, width=48, resize="crop", crop_ratio=1.0, resample="bilinear", background=(255, 255, 255)
    )
    return ModelSpec(
        architecture="mean",
        labels=tuple(map(str, range(classes))),
        preprocess=preprocess,
        normalize=Normalize((0.5,) * 3, (0.5,) * 3),
        temperature=1.0,
        metrics=None,
        provenance=None,
    )


def evidence_of(images: dict[str, bytes], reference: Reference) -> SimpleNamespace:
    contents = list(images.values())
    return SimpleNamespace(
        names=tuple(images),
        encoded=tuple(contents),
        logits=reference.logits(contents),
        targets=np.arange(len(contents)) % CLASSES,
    )


def test_one_of_each_awkward_kind_is_taken_and_stays_of_its_kind():
    reference = Reference(Mean(), spec())
    test = build_self_test(evidence_of(PLAIN | AWKWARD, reference), reference, 1e-4, LARGE)
    taken = {case.name: case.image for case in test.cases}
    assert set(AWKWARD) <= set(taken)
    assert len(taken) == 16
    assert len(test.to_json()) <= MOST_BYTES
    for name in AWKWARD:
        before, after = (Image.open(io.BytesIO(content)) for content in (AWKWARD[name], taken[name]))
        assert (after.format, after.mode) == (before.format, before.mode), name
        assert after.getexif().get(0x0112, 1) == before.getexif().get(0x0112, 1)
        assert min(after.size) >= 48
    for case in test.cases:
        assert pixels_from_image(case.image, spec().preprocess).shape == (48, 48, 3)
        np.testing.assert_array_equal(
            np.float32(case.logits), reference.logits([case.image])[0], err_msg="the logits are not those of its bytes"
        )


@pytest.mark.parametrize("classes", [4, 1000, 1600, 6000, 21_841])
def test_it_is_small_however_many_classes_there_are(classes):
    reference = Reference(Mean(classes), spec(classes))
    test = build_self_test(evidence_of(PLAIN | AWKWARD, reference), reference, 1e-4, LARGE)
    assert len(test.cases) == (16 if classes == 4 else 8)
    assert len(test.to_json()) <= MOST_BYTES
    if classes <= 1600:
        assert test.classes is None
        return
    assert test.classes is not None
    assert 1600 < len(test.classes) == len(set(test.classes))
    assert max(np.diff(test.classes)) <= classes / 1000, "a part of the classes is hardly compared"
    for case in test.cases:
        logits = reference.logits([case.image])[0]
        np.testing.assert_array_equal(np.float32(case.logits), logits[list(test.classes)])
        assert set(np.argsort(-logits, kind="stable")[:2].tolist()) <= set(test.classes), "a label could not be told"


def test_a_small_graph_carries_fewer_images_and_still_each_kind():
    reference = Reference(Mean(), spec())
    test = build_self_test(evidence_of(PLAIN | AWKWARD, reference), reference, 1e-4, graph_bytes=1000)
    assert {case.name for case in test.cases} == set(AWKWARD)
    sizes = [len(case.image) for case in test.cases]
    medium = build_self_test(
        evidence_of(PLAIN | AWKWARD, reference), reference, 1e-4, graph_bytes=25 * (sum(sizes) + 5000)
    )
    assert len(test.cases) < len(medium.cases) < 16


def test_images_whose_label_the_tolerance_could_change_are_left_out():
    reference = Reference(Mean(), spec())
    reference_outputs = evidence_of(PLAIN, reference)
    best_two = np.sort(reference_outputs.logits, axis=1)[:, -2:]
    leads = dict(zip(reference_outputs.names, best_two[:, 1] - best_two[:, 0], strict=True))
    tolerance = float(np.median(list(leads.values()))) / 2
    test = build_self_test(reference_outputs, reference, tolerance, LARGE)
    assert all(leads[case.name] > 2 * tolerance for case in test.cases)
