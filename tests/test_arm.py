"""The same files on 64-bit Arm: `make test-arm` installs a bundle on an emulated device without a network.

The emulation is slow: about half an hour on 2 cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from arm import ArmDevice, create_device
from conftest import ROOT, build_once, run_command
from debian import DEVICE_PYTHON

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

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def device() -> ArmDevice:
    """A device without clf-edge."""
    return create_device()


@pytest.fixture(scope="session")
def installed(device, artifacts, tmp_path_factory) -> ArmDevice:
    """The device, with a bundle installed in /opt/clf: the versions of this environment."""
    folder = tmp_path_factory.mktemp("bundle")
    pinned = ("--constraint", ROOT / "requirements/dev.txt", "--output", folder / "arm.clfb")
    target = ("--platform", "linux-aarch64", "--python", DEVICE_PYTHON)
    made = run_command("clf-deploy", "bundle", "-a", artifacts, *target, *pinned, cwd=folder)
    assert made.code == 0, made.err
    there = device.copy(folder / "arm.clfb")
    device.run("tar", "xf", there, "-C", "/tmp")
    began = time.monotonic()
    done = device.run("sh", "/tmp/clf-bundle/install.sh")
    print(
        f"\nbundle: {(folder / 'arm.clfb').stat().st_size / 1e6:.1f} MB, installed in {time.monotonic() - began:.0f} s"
    )
    assert "passed: 16 images on CPUExecutionProvider" in done.stderr
    assert done.stdout.endswith("; next: /opt/clf/bin/clf-run --model /var/lib/clf-edge/current/model.onnx IMAGE\n")
    return device


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


@pytest.mark.parametrize("name", LIMITS)
def test_the_self_test_passes(installed, artifacts, name):
    there = installed.copy(artifacts / name)
    report = installed.run("/opt/clf/bin/clf-run", "--self-test", "--model", there).stdout
    assert "passed" in report
    assert "labels flipped 0" in report
    print(f"\n{name}: {report.strip().partition(': ')[2]}")


def test_test_images_get_the_same_answers(installed, artifacts, digits):
    images = sorted(digits.rglob("*.png"))[::9]
    compare(installed, [artifacts / name for name in LIMITS], images)


# In float32, small-resnet takes the emulation 4 seconds for a photo, MobileNetV3 a third of one.
@pytest.mark.parametrize(
    ("network", "precisions"), [("mobilenet_v3_small", ("fp32", "fp16")), ("small-resnet", ("int8",))]
)
def test_photos_get_the_same_answers(request, installed, network, precisions, test_data):
    folder = photo_models(request, network, precisions)
    photos = sorted((test_data / "clothing/test").rglob("*.jpg"), key=lambda path: path.name)[:PHOTOS]
    assert len(photos) == PHOTOS
    compare(installed, sorted(folder.glob("model*.onnx")), photos)


def test_the_service_answers(installed, artifacts, samples):
    model, image = installed.copy(artifacts / "model.onnx"), installed.copy(samples[0])
    ask = f"/opt/clf/bin/clf-run --server unix:/tmp/clf.sock --format jsonl {image}"
    script = (
        f"/opt/clf/bin/clf-serve --model {model} --unix /tmp/clf.sock & "
        f"for try in $(seq 100); do if {ask}; then kill $!; wait $!; exit; fi; sleep 1; done; exit 1"
    )
    record = json.loads(installed.run("sh", "-c", script).stdout)
    assert record["label"] == samples[0].name.partition("-")[0]


def compare(device: ArmDevice, models: Sequence[Path], images: Sequence[Path]) -> None:
    """Compare pixels, labels and logits there with those here, and print the largest differences."""
    there_models = [device.copy(model) for model in models]
    there_images = "\n".join(device.copy(image) for image in images)
    there = read(device.run("/opt/clf/bin/python", "-c", ASK, *there_models, stdin=there_images).stdout, len(models))
    command = [sys.executable, "-c", ASK, *map(str, models)]
    asked = subprocess.run(command, input="\n".join(map(str, images)), capture_output=True, text=True, check=True)
    here = read(asked.stdout, len(models))
    for model, (our_pixels, ours), (their_pixels, theirs) in zip(models, here, there, strict=True):
        difference = np.abs(ours - theirs).max()
        flipped = int((ours.argmax(axis=1) != theirs.argmax(axis=1)).sum())
        print(f"\n{model.name}: {len(images)} images, max |difference of a logit| {difference:.1e}, flipped {flipped}")
        assert our_pixels == their_pixels
        assert flipped == 0
        assert difference <= LIMITS[model.name]


def read(printed: str, models: int) -> list[tuple[list[str], np.ndarray]]:
    """Return, for each model, the digests of the pixels and the logits of all images."""
    rows = [json.loads(line) for line in printed.splitlines()]
    return [
        ([digest for digest, _ in rows[at::models]], np.array([logits for _, logits in rows[at::models]]))
        for at in range(models)
    ]
