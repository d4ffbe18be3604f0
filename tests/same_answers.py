"""Whether another machine gives the answers of this one: pixels, labels and logits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import build_once, run_command

PHOTOS = 200

# The largest |difference of a logit|. With instructions for FP16, as here, onnxruntime computes in FP16, otherwise in
# FP32; the self-test allows as much.
LIMITS = {"model.onnx": 1e-4, "model.fp16.onnx": 5e-2, "model.int8.onnx": 0.0}

# Print a JSON array for each image on stdin and each model: pixels (digest), logits.
ASK = """
import hashlib, json, sys
from clf_runtime import Classifier
from clf_runtime.preprocess import pixels_from_image
classifiers = [Classifier.load(model, device="cpu", threads=1) for model in sys.argv[1:]]
for image in sys.stdin.read().splitlines():
    for classifier in classifiers:
        pixels = pixels_from_image(image, classifier.spec.preprocess)
        logits = classifier.run(pixels[None])[0][0]
        print(json.dumps([hashlib.sha256(pixels.tobytes()).hexdigest(), logits.tolist()]), flush=True)
"""


def photo_models(request: pytest.FixtureRequest, name: str, precisions: Sequence[str]) -> Path:
    """Return a folder with a small network that was trained on photos at 64 pixels."""
    data = request.getfixturevalue("test_data") / "clothing"
    if not data.exists():
        pytest.skip("CLF_TEST_DATA has no clothing/")

    def build(folder: Path) -> None:
        network = ("--model", name, "--size", "64x64", "--weights", "none", "--epochs", 4)
        trained = run_command("clf-train", "--data", data, *network, "-a", ".", cwd=folder)
        assert trained.code == 0, trained.err
        wanted = [option for precision in precisions for option in ("-p", precision)]
        exported = run_command("clf-export", "--data", data, *wanted, "-a", ".", cwd=folder)
        assert exported.code == 0, exported.err

    return build_once(request.config, f"photos-{name}", build)


def choose_photos(test_data: Path) -> list[Path]:
    """Return photos of clothes, in the order of their names."""
    photos = sorted((test_data / "clothing/test").rglob("*.jpg"), key=lambda path: path.name)[:PHOTOS]
    assert len(photos) == PHOTOS
    return photos


def raise_if_different(printed: str, models: Sequence[Path], images: Sequence[Path]) -> None:
    """Compare what ASK has printed on another machine with what it prints here; print the largest differences."""
    command = [sys.executable, "-c", ASK, *map(str, models)]
    asked = subprocess.run(command, input="\n".join(map(str, images)), capture_output=True, text=True, check=True)
    pairs = zip(_parse(asked.stdout, len(models)), _parse(printed, len(models)), strict=True)
    for model, ((our_pixels, ours), (their_pixels, theirs)) in zip(models, pairs, strict=True):
        difference = np.abs(ours - theirs).max()
        flipped = int((ours.argmax(axis=1) != theirs.argmax(axis=1)).sum())
        print(f"\n{model.name}: {len(images)} images, max |difference of a logit| {difference:.1e}, flipped {flipped}")
        assert our_pixels == their_pixels
        assert flipped == 0
        assert difference <= LIMITS[model.name]


def _parse(printed: str, models: int) -> list[tuple[list[str], np.ndarray]]:
    """Return, for each model, the digests of the pixels and the logits of all images."""
    rows = [json.loads(line) for line in printed.splitlines()]
    return [
        ([digest for digest, _ in rows[at::models]], np.array([logits for _, logits in rows[at::models]]))
        for at in range(models)
    ]
