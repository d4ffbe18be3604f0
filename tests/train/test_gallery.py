"""images.html: all test images, rendered from small seeded predictions, and opened in a browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clf_runtime.preprocess import UInt8Array
from clf_runtime.spec import ModelSpec, Normalize, Preprocess
from clf_train.data.cache import ArrayPixels
from clf_train.report.analysis import RunResults
from clf_train.report.gallery import MAX_BYTES, html_from_predictions
from clf_train.report.thumbnails import encode_images

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def make_spec(labels: tuple[str, ...], side: int) -> ModelSpec:
    return ModelSpec(
        architecture="cnn-small",
        labels=labels,
        preprocess=Preprocess("RGB", side, side, "squash", 1.0, "bilinear", (0, 0, 0)),
        normalize=Normalize((0.5,) * 3, (0.5,) * 3),
        temperature=1.0,
        metrics=None,
        provenance=None,
    )


def make_results(pixels: UInt8Array, wrong: int, labels: tuple[str, ...] = ("cat", "dog", "<b>&bird")) -> RunResults:
    """Return a run whose first `wrong` images are predicted as the next class."""
    count = len(pixels)
    targets = np.arange(count) % len(labels)
    predicted = (targets + (np.arange(count) < wrong)) % len(labels)
    probabilities = np.full((count, len(labels)), 0.1 / (len(labels) - 1), dtype=np.float32)
    probabilities[np.arange(count), predicted] = 0.9
    names = tuple(f"test/{number} </script><script>alert(1)</script>.jpg" for number in range(count))
    return RunResults(make_spec(labels, pixels.shape[1]), [], ArrayPixels(pixels), targets, probabilities, names=names)


def make_noise(count: int, side: int) -> UInt8Array:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def read_data(html: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)
    data: dict[str, Any] = json.loads(text)
    return data


def test_every_test_image_is_on_the_page_with_its_name_classes_and_probability() -> None:
    data = read_data(html_from_predictions(make_results(make_noise(7, 8), wrong=2)))
    assert data["labels"] == ["cat", "dog", "<b>&bird"]
    assert [row[1:4] for row in data["images"][:3]] == [[0, 1, 900], [1, 2, 900], [2, 2, 900]]
    assert [row[0].split()[0] for row in data["images"]] == [f"test/{number}" for number in range(7)]


def test_names_and_labels_cannot_end_the_data_or_run_as_a_script() -> None:
    html = html_from_predictions(make_results(make_noise(3, 8), wrong=1))
    assert html.count("<script") == 3
    assert "alert(1)" in html  # as text
    assert "<script>alert" not in html
    assert "innerHTML" not in html


def test_the_page_forbids_every_request_and_every_other_script() -> None:
    html = html_from_predictions(make_results(make_noise(3, 8), wrong=1))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert len(re.findall(r"'sha256-", policy)) == 2
    assert "'unsafe-inline'; script-src 'sha256-" in policy


@pytest.mark.parametrize(("count", "side"), [(300, 224), (10_000, 32)])
def test_the_page_stays_below_5_mb_even_with_noise(count: int, side: int) -> None:
    html = html_from_predictions(make_results(make_noise(count, side), wrong=10))
    assert len(html.encode()) < MAX_BYTES
    assert len(read_data(html)["images"]) <= count


def test_of_too_many_images_all_mistakes_are_shown_and_the_page_says_so() -> None:
    html = html_from_predictions(make_results(make_noise(12_000, 24), wrong=100))
    images = read_data(html)["images"]
    assert 1_000 < len(images) < 12_000
    assert sum(true != predicted for _, true, predicted, *_ in images) == 100
    assert f"it shows {len(images):,} of them: all mistakes" in html


def test_photos_are_shown_as_large_as_the_model_sees_them_if_they_fit() -> None:
    smooth = np.broadcast_to(np.arange(224, dtype=np.uint8)[None, :, None, None], (40, 224, 224, 3)).copy()
    assert encode_images(ArrayPixels(smooth), range(40), 1_000_000).format.side == 224
    assert encode_images(ArrayPixels(make_noise(40, 224)), range(40), 100_000).format.side <= 64
    assert encode_images(ArrayPixels(make_noise(4, 24)), range(4), 100_000).format.quality is None


def test_encoded_images_stay_within_their_bytes() -> None:
    for budget in (1_000_000, 300_000, 60_000):
        thumbnails = encode_images(ArrayPixels(make_noise(20, 224)), range(20), budget)
        assert sum(map(len, thumbnails.encoded)) <= budget


def test_a_file_name_that_is_not_unicode_is_shown() -> None:
    results = replace(make_results(make_noise(1, 8), wrong=0), names=("caf\udce9.jpg",))
    html_from_predictions(results).encode()
    assert read_data(html_from_predictions(results))["images"][0][0] == "caf\\xe9.jpg"


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize(
    ("address", "status", "shown"),
    [
        ("", "300 images", 120),
        ("#show=wrong", "10 images", 10),
        ("#true=0&predicted=1", "4 images", 4),
        ("#true=9", "", 120),
    ],
)
def test_the_address_of_the_page_filters_the_images_in_a_browser(
    tmp_path: Path, address: str, status: str, shown: int
) -> None:
    page = tmp_path / "images.html"
    page.write_text(html_from_predictions(make_results(make_noise(300, 8), wrong=10)), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    assert BROWSER is not None
    done = subprocess.run([BROWSER, *flags, page.as_uri() + address], capture_output=True, text=True, check=True)
    assert "Uncaught" not in done.stderr
    assert status in done.stdout
    assert done.stdout.count("<figure") >= shown
    assert done.stdout.count("<script>alert") == 0
