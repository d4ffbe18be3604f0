"""A bundle on machines that boot: `make test-boot` starts Debian with systemd, on emulated Arm and x86-64 processors.

The tests of a platform follow each other on one machine: each finds what the ones before it have installed.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from booting import PLATFORMS, BootedMachine, booted
from conftest import ROOT, run_command
from debian import DEVICE_PYTHON
from onnx import helper
from rewriting import insert_before_logits, rewritten, with_serial
from same_answers import ASK, choose_photos, photo_models, raise_if_different

from clf_deploy.signing.sign import Signer, create_key

pytestmark = pytest.mark.slow

PRECISIONS = ("model.onnx", "model.fp16.onnx", "model.int8.onnx")
UNITS = ("clf-serve.service", "clf-camera.service", "clf-update.service", "clf-update.timer")
READY = "curl -sS --fail --unix-socket /run/clf/clf.sock http://localhost/readyz"
DEPLOY = "/opt/clf/bin/clf-deploy"
# What the version that needs too much memory writes for each image, and what the service may have then.
_HUNGRY_BYTES, _MEMORY_MAX = 400_000_000, "300M"


@pytest.fixture(scope="module")
def models(artifacts, tmp_path_factory) -> Path:
    """A folder with signed versions 1 to 4 of a model, of which 4 needs much memory, and the public key."""
    folder = tmp_path_factory.mktemp("models")
    private, _ = create_key(folder / "fleet.pem", "P-256")
    for serial in (1, 2, 3):
        (folder / str(serial)).mkdir()
        with_serial(artifacts / "model.onnx", folder / f"{serial}/model.onnx", serial)
    (folder / "4").mkdir()
    with_serial(hungry(artifacts / "model.onnx", folder / "hungry.onnx"), folder / "4/model.onnx", 4)
    for model in folder.glob("*/model.onnx"):
        Signer(private).sign(model)
    return folder


def hungry(model: Path, target: Path) -> Path:
    """Copy a model that gives the same answers, but fills a tensor of _HUNGRY_BYTES for each of its batches."""
    loaded = onnx.load(model)
    graph = loaded.graph
    size = onnx.numpy_helper.from_array(np.array([_HUNGRY_BYTES // 4]), "hungry_size")
    # The size follows from the image, or onnxruntime would compute all this once, when it opens the file.
    graph.initializer.append(size)
    insert_before_logits(
        graph,
        helper.make_node("Shape", [graph.input[0].name], ["hungry_shape"], start=3, end=4),
        helper.make_node("Div", ["hungry_shape", "hungry_shape"], ["hungry_one"]),
        helper.make_node("Mul", ["hungry_one", "hungry_size"], ["hungry_all"]),
        helper.make_node("ConstantOfShape", ["hungry_all"], ["hungry_zeros"]),
        helper.make_node("ReduceMax", ["hungry_zeros"], ["zero"], keepdims=0),
    )
    assert loaded.opset_import[0].version >= 15
    onnx.save(loaded, target)
    return rewritten(target, target)


@pytest.fixture(scope="module")
def photos(test_data, tmp_path_factory) -> Path:
    """A folder with photos."""
    folder = tmp_path_factory.mktemp("photos")
    for photo in choose_photos(test_data):
        shutil.copy(photo, folder)
    return folder


@pytest.fixture(scope="module")
def photo_model(request) -> Path:
    """An INT8 model of photos."""
    return photo_models(request, "small-resnet", ("int8",)) / "model.int8.onnx"


@pytest.fixture(scope="module", params=PLATFORMS)
def machine(request, models, artifacts, photos, photo_model, tmp_path_factory):
    """A machine with a bundle, not unpacked yet, in /srv."""
    folder = tmp_path_factory.mktemp(request.param)
    arguments = ("--platform", request.param, "--python", DEVICE_PYTHON, "--constraint", ROOT / "requirements/dev.txt")
    made = run_command("clf-deploy", "bundle", "-a", models / "1", *arguments, "-o", "parts.clfb", cwd=folder)
    assert made.code == 0, made.err
    files = {f"/mnt/models/{serial}": models / str(serial) for serial in (1, 2, 3, 4)}
    files |= {f"/srv/{name}": artifacts / name for name in (*PRECISIONS, "samples")}
    files |= {"/srv/photos": photos, f"/srv/photos-{photo_model.name}": photo_model}
    files |= {"/srv/parts.clfb": folder / "parts.clfb", "/etc/clf-edge/fleet.pub.pem": models / "fleet.pub.pem"}
    with booted(request.param, files, folder) as machine:
        print(f"\n{request.param}: {machine.run('uname -sr')}, booted in {machine.boot_s:.0f} s")
        yield machine
    shutil.rmtree(folder)


def current(machine: BootedMachine) -> str:
    """Return the serial number of the version that runs."""
    return machine.run("readlink /var/lib/clf-edge/current").rpartition("/")[2].partition("-")[0]


def wait_until(machine: BootedMachine, condition: str, seconds: int = 300) -> None:
    """Wait for a command of the shell to succeed."""
    command = f"for each in $(seq {seconds}); do if {condition}; then exit; fi; sleep 1; done >/dev/null 2>&1; exit 1"
    assert machine.try_to_run(command).code == 0, f"{condition}\n{journal(machine)}"


def override(machine: BootedMachine, unit: str, line: str) -> None:
    """Set an option of a service."""
    folder = f"/etc/systemd/system/{unit}.service.d"
    machine.run(f"mkdir {folder} && printf '[Service]\n{line}\n' >{folder}/test.conf && systemctl daemon-reload")


def journal(machine: BootedMachine, lines: int = 40) -> str:
    """Return the last lines of the service's journal, and of systemd's about it."""
    return machine.run(f"journalctl --no-pager --unit clf-serve --output cat --lines {lines}")


def test_a_bundle_installs_without_a_network(machine):
    began = time.monotonic()
    printed = machine.run("cd /srv && tar xf parts.clfb && sh clf-bundle/install.sh")
    print(f"\ninstalled in {time.monotonic() - began:.0f} s: {printed}")
    assert "passed: 16 images on CPUExecutionProvider" in printed
    assert current(machine) == "1"


@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_passes_its_self_test(machine, name):
    report = machine.run(f"/opt/clf/bin/clf-run --self-test --model /srv/{name}")
    print(f"\n{report}")
    assert "labels flipped 0" in report


def test_photos_get_the_same_answers(machine, photos, photo_model):
    names = sorted(path.name for path in photos.iterdir())
    machine.run(f"printf %s {shlex.quote(ASK)} >/srv/ask.py")
    there = f"cd /srv/photos && printf '%s\\n' {shlex.join(names)} | /opt/clf/bin/python /srv/ask.py"
    printed = machine.run(f"{there} /srv/photos-{photo_model.name}")
    raise_if_different(printed, [photo_model], [photos / name for name in names])


def test_the_units_are_valid_and_hardened(machine):
    machine.run("cp /srv/clf-bundle/systemd/* /etc/systemd/system/ && systemctl daemon-reload")
    assert machine.run(f"systemd-analyze verify {' '.join(UNITS)}") == ""
    for name, limit in (("clf-serve", 1.5), ("clf-camera", 2.0)):
        printed = machine.run(f"systemd-analyze security --no-pager {name}.service")
        level = re.search(rf"Overall exposure level for {name}.service: ([\d.]+)", printed)
        assert level is not None
        assert float(level[1]) <= limit


def test_the_service_answers_and_logs_no_warning(machine):
    print("\n" + machine.run("systemctl enable --now clf-serve"))
    assert machine.run("systemctl is-active clf-serve") == "active"
    assert machine.run(READY).startswith("ready: ")
    printed = machine.run("systemctl status --no-pager --full --lines 0 clf-serve")
    print(printed)
    asked = machine.try_to_run("/opt/clf/bin/clf-run --server unix:/run/clf/clf.sock --format jsonl /srv/samples")
    records = [json.loads(line) for line in asked.out.splitlines()]
    assert len(records) > 1, asked.err
    for record in records:
        assert record["label"] == Path(record["path"]).name.partition("-")[0]
    assert not re.search("warning|error", journal(machine), flags=re.IGNORECASE), journal(machine)


def test_new_versions_run_without_a_gap(machine):
    process = machine.run("systemctl show --property MainPID --value clf-serve")
    for command, serial in (
        ("install /mnt/models/2/model.onnx --require-signature /etc/clf-edge/fleet.pub.pem", "2"),
        ("rollback", "1"),
        ("activate 2", "2"),
    ):
        machine.run(f"{DEPLOY} {command}")
        assert current(machine) == serial
        digest = machine.run(f"{DEPLOY} status | sed -n 's/^{serial}-\\([0-9a-f]*\\) .*/\\1/p'")
        wait_until(machine, f"{READY} | grep -q {digest}")
    assert machine.run("systemctl show --property MainPID --value clf-serve") == process


def test_the_service_survives_a_reboot(machine):
    machine.reboot()
    wait_until(machine, READY)
    seconds = float(machine.run("cut -d ' ' -f 1 /proc/uptime"))
    print(f"\nready {seconds:.0f} s after the kernel's start")
    assert current(machine) == "2"
    assert machine.run("systemctl is-active clf-serve") == "active"


def test_the_update_service_installs_a_new_version(machine):
    override(machine, "clf-update", "Environment=URL=file:///mnt/models/3")
    machine.run("systemctl start clf-update")
    assert current(machine) == "3"
    machine.run("systemctl start clf-update")  # nothing to do
    wait_until(machine, f"{READY} | grep -q $({DEPLOY} status | sed -n 's/^3-\\([0-9a-f]*\\) .*/\\1/p')")
    machine.run("systemctl enable --now clf-update.timer && systemctl disable --now clf-update.timer")


def test_a_hanging_service_is_restarted_and_a_working_one_is_not(machine):
    machine.run("sleep 40")  # longer than WatchdogSec
    assert machine.run("systemctl show --property NRestarts --value clf-serve") == "0"
    machine.run("systemctl kill --signal STOP --kill-whom main clf-serve")
    wait_until(machine, "[ $(systemctl show --property NRestarts --value clf-serve) = 1 ]")
    wait_until(machine, READY)
    assert "Watchdog timeout" in journal(machine)


def test_a_version_that_needs_too_much_memory_is_replaced_by_the_one_before(machine):
    override(machine, "clf-serve", f"MemoryMax={_MEMORY_MAX}")
    machine.run("systemctl restart clf-serve")
    machine.run(f"{DEPLOY} install --probation 10min /mnt/models/4/model.onnx")
    wait_until(machine, f"{DEPLOY} status | grep -q '^3-.* current '")
    wait_until(machine, READY)
    lines = [line for line in journal(machine).splitlines() if "probation" in line or "oom-kill" in line]
    print("\n" + "\n".join(lines))
    assert "failed its probation (the service ended 3 times without being stopped); 3-" in lines[-1]
    again = machine.try_to_run(f"{DEPLOY} install /mnt/models/4/model.onnx")
    assert (again.code, "failed on this machine before" in again.err) == (3, True)
