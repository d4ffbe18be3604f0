"""The self-test in a file: which images are chosen, and how small they become."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch import nn

from clf_export.parity.reference import Reference
from clf_export.parity.selftest import MAX_BYTES, build_self_test
from clf_runtime.preprocess import pixels_from_image
from clf_runtime.spec import ModelSpec, Normalize, Preprocess

CLASSES = 4
LARGE = 10**8  # bytes of a file beside which the self-test is small


def noise(width: int, height: int, mode: str) -> Image.Image:
    """Return an image that no format compresses."""
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


ODD = {
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
    """Returns pixels as logits, so that every image has other logits."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images):
        flat = images.flatten(1)
        return flat[:, : self.classes] * 5 if flat.shape[1] >= self.classes else flat.repeat(1, 40)[:, : self.classes]


def make_spec(classes: int = CLASSES) -> ModelSpec:
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


def outputs_of(images: dict[str, bytes], reference: Reference) -> SimpleNamespace:
    contents = list(images.values())
    return SimpleNamespace(
        names=tuple(images),
        encoded=tuple(contents),
        logits=reference.compute_logits(contents),
        targets=np.arange(len(contents)) % CLASSES,
    )


def test_one_image_of_each_odd_kind_is_chosen_and_keeps_its_kind():
    reference = Reference(Mean(), make_spec())
    test = build_self_test(outputs_of(PLAIN | ODD, reference), reference, 1e-4, LARGE)
    chosen = {case.name: case.image for case in test.cases}
    assert set(ODD) <= set(chosen)
    assert len(chosen) == 16
    assert len(test.to_json()) <= MAX_BYTES
    for name in ODD:
        before, after = (Image.open(io.BytesIO(content)) for content in (ODD[name], chosen[name]))
        assert (after.format, after.mode) == (before.format, before.mode), name
        assert after.getexif().get(0x0112, 1) == before.getexif().get(0x0112, 1)
        assert min(after.size) >= 48
    for case in test.cases:
        assert pixels_from_image(case.image, make_spec().preprocess).shape == (48, 48, 3)
        np.testing.assert_array_equal(
            np.float32(case.logits),
            reference.compute_logits([case.image])[0],
            err_msg="the logits are not those of its bytes",
        )


@pytest.mark.parametrize("classes", [4, 1000, 1600, 6000, 21_841])
def test_its_size_is_limited_for_any_number_of_classes(classes):
    reference = Reference(Mean(classes), make_spec(classes))
    test = build_self_test(outputs_of(PLAIN | ODD, reference), reference, 1e-4, LARGE)
    assert len(test.cases) == (16 if classes == 4 else 8)
    assert len(test.to_json()) <= MAX_BYTES
    if classes <= 1600:
        assert test.classes is None
        return
    assert test.classes is not None
    assert 1600 < len(test.classes) == len(set(test.classes))
    assert max(np.diff(test.classes)) <= classes / 1000, "the compared classes leave a gap"
    for case in test.cases:
        logits = reference.compute_logits([case.image])[0]
        np.testing.assert_array_equal(np.float32(case.logits), logits[list(test.classes)])
        assert set(np.argsort(-logits, kind="stable")[:2].tolist()) <= set(test.classes), (
            "the classes that decide the label are missing"
        )


def test_a_small_file_has_fewer_images_but_still_one_of_each_kind():
    reference = Reference(Mean(), make_spec())
    test = build_self_test(outputs_of(PLAIN | ODD, reference), reference, 1e-4, file_bytes=1000)
    assert {case.name for case in test.cases} == set(ODD)
    sizes = [len(case.image) for case in test.cases]
    medium = build_self_test(outputs_of(PLAIN | ODD, reference), reference, 1e-4, file_bytes=25 * (sum(sizes) + 5000))
    assert len(test.cases) < len(medium.cases) < 16


def test_images_whose_label_could_change_within_the_tolerance_are_not_chosen():
    reference = Reference(Mean(), make_spec())
    reference_outputs = outputs_of(PLAIN, reference)
    best_two = np.sort(reference_outputs.logits, axis=1)[:, -2:]
    leads = dict(zip(reference_outputs.names, best_two[:, 1] - best_two[:, 0], strict=True))
    tolerance = float(np.median(list(leads.values()))) / 2
    test = build_self_test(reference_outputs, reference, tolerance, LARGE)
    assert all(leads[case.name] > 2 * tolerance for case in test.cases)
