"""The same files on 64-bit Arm: `make test-arm` installs a bundle on an emulated device without a network.

The emulation is slow: about half an hour on 2 cores.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from arm import ArmDevice, create_device
from conftest import ROOT, run_command
from debian import DEVICE_PYTHON
from same_answers import ASK, LIMITS, choose_photos, photo_models, raise_if_different

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
    compare(installed, sorted(folder.glob("model*.onnx")), choose_photos(test_data))


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
    """Compare the answers of the device with those of this machine."""
    there_models = [device.copy(model) for model in models]
    there_images = "\n".join(device.copy(image) for image in images)
    printed = device.run("/opt/clf/bin/python", "-c", ASK, *there_models, stdin=there_images).stdout
    raise_if_different(printed, models, images)
