"""`clf-deploy bundle`: what is inside, from a real package index."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from conftest import BIN, ROOT, run_checked, run_command
from privacy import assert_nothing_private

from clf_deploy.bundle import build, own_wheel, wheels
from clf_deploy.bundle.archive import unpack
from clf_deploy.bundle.build import BundleOptions, build_bundle
from clf_deploy.bundle.own_wheel import write_own_wheel
from clf_deploy.bundle.platforms import Target
from clf_deploy.bundle.sbom import sbom_from_parts
from clf_deploy.bundle.wheels import Wheel, download, resolve
from clf_runtime import onnx_file
from clf_runtime.errors import DataError, MachineError, UsageError
from clf_runtime.signature import signature_path

PINNED = ROOT / "requirements/dev.txt"
DEVICE = ROOT / "runtime/clf_deploy/bundle/device"


# The user and the host of the workstation on which the bundle is made.
USER, HOST = "alice-f3b1", "host-9c2e"
UNSHARE = ("unshare", "--user", "--map-root-user", "--uts", "sh", "-c", f'hostname {HOST} && exec "$@"', "sh")


@pytest.fixture(scope="module")
def built(tmp_path_factory, signed) -> Path:
    """A folder with a model, its signature, and a bundle for 64-bit Arm in arm.clfb; unpacked in `unpacked`."""
    folder = tmp_path_factory.mktemp(USER)
    for path in (signed, signature_path(signed)):
        shutil.copy(path, folder)
    arguments = ("--platform", "linux-aarch64", "--python", "3.11", "--constraint", PINNED, "-o", "arm.clfb")
    is_isolated = shutil.which("unshare") and subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    prefix = UNSHARE if is_isolated else ()
    env = {"USER": USER, "LOGNAME": USER, "TMPDIR": str(folder)}
    done = run_command("clf-deploy", "bundle", "-a", folder, *arguments, cwd=folder, prefix=prefix, **env)
    assert done.code == 0, done.err
    assert re.search(r"wrote arm.clfb: \d\d\.\d MB, 2\d files, the model is signed$", done.err)
    unpack(folder / "arm.clfb", folder / "unpacked")
    return folder


def options_of(folder: Path, platform: str = "linux-aarch64", python: str = "3.11", **more: object) -> BundleOptions:
    values = {"extras": ("cpu", "serve", "verify"), "constraint": PINNED} | more
    return BundleOptions(folder / "model.onnx", Target(platform, python), **values)  # type: ignore[arg-type]


def test_the_same_inputs_give_the_same_bytes(built, tmp_path):
    build_bundle(options_of(built), tmp_path / "again.clfb")
    assert (tmp_path / "again.clfb").read_bytes() == (built / "arm.clfb").read_bytes()


def test_a_bundle_contains_the_wheels_of_its_platform_pinned_by_digest(built):
    folder = built / "unpacked"
    found = {Wheel.read(path).name: path for path in (folder / "wheels").iterdir()}
    assert {"clf-edge", "click", "numpy", "pillow", "onnxruntime", "uvicorn", "httptools", "pip"} <= found.keys()
    assert {path.name.rpartition("_")[2] for path in found.values() if "-none-any" not in path.name} == {"aarch64.whl"}
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert lines == [Wheel.read(path).requirement for _, path in sorted(found.items())]


def test_a_bundle_contains_the_model_its_signature_and_what_runs_on_the_device(built):
    folder = built / "unpacked"
    assert (folder / "model.onnx").read_bytes() == (built / "model.onnx").read_bytes()
    assert (folder / "model.onnx.sig").read_bytes() == (built / "model.onnx.sig").read_bytes()
    # What verifies it.
    assert list((folder / "wheels").glob("cryptography-*.whl"))
    for path in filter(Path.is_file, DEVICE.rglob("*.s*")):
        assert (folder / path.relative_to(DEVICE)).read_bytes() == path.read_bytes()


def test_a_bundle_names_neither_the_user_nor_the_host_nor_a_folder_of_the_workstation(built, tmp_path):
    # Wheels of others name folders of the machines that built them.
    ours = shutil.ignore_patterns("[!c]*.whl", "c[!l]*.whl", "cli*.whl")
    shutil.copytree(built / "unpacked", tmp_path / "ours", ignore=ours)
    assert [path.name[:8] for path in (tmp_path / "ours/wheels").iterdir()] == ["clf_edge"]
    assert_nothing_private(tmp_path / "ours", USER, HOST, str(built.parent))
    content = (built / "arm.clfb").read_bytes()
    assert [name for name in (USER, HOST) if name.encode() in content] == []


def test_the_bill_of_materials_names_every_wheel_with_its_digest(built):
    document = json.loads((built / "unpacked/sbom.cdx.json").read_bytes())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    digests = {component["purl"]: component["hashes"][0]["content"] for component in document["components"]}
    for path in (built / "unpacked/wheels").iterdir():
        wheel = Wheel.read(path)
        assert digests.pop(f"pkg:pypi/{wheel.name}@{wheel.version}") == hashlib.sha256(path.read_bytes()).hexdigest()
    assert digests == {}
    licenses = {component["name"]: component["licenses"][0]["license"]["name"] for component in document["components"]}
    assert (licenses["clf-edge"], licenses["onnxruntime"]) == ("Apache-2.0", "MIT License")
    model = document["metadata"]["component"]
    assert model["hashes"][0]["content"] == hashlib.sha256((built / "model.onnx").read_bytes()).hexdigest()


def test_the_wheel_of_the_installed_package_contains_what_the_build_backend_packs(wheel, tmp_path):
    own = write_own_wheel(tmp_path)
    assert own.name == wheel.name
    with zipfile.ZipFile(own) as ours, zipfile.ZipFile(wheel) as theirs:
        different = {name for name in theirs.namelist() if ours.read(name) != theirs.read(name)}
        assert set(ours.namelist()) == set(theirs.namelist())
        assert {name.partition("/")[2] for name in different} == {"WHEEL", "RECORD"}
        assert {info.date_time for info in ours.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    run_checked(BIN / "uv", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", own)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"platform": "linux-armv7l"}, "--platform linux-armv7l: unknown; expected linux-aarch64 or linux-x86_64"),
        ({"python": "3.9"}, "--python 3.9: expected 3.10 or later"),
        ({"python": "three"}, "--python three: expected 3.10 or later"),
        ({"extras": ("cpu", "gpus")}, "--extra gpus: clf-edge has no such extra"),
        ({"extras": ("serve",)}, "expected either cpu or gpu"),
        ({"extras": ("cpu", "gpu")}, "expected either cpu or gpu"),
    ],
)
def test_wrong_options_are_rejected(changed, expected, tmp_path):
    with pytest.raises(UsageError, match=expected):
        options_of(tmp_path, **changed)


def test_a_name_that_some_systems_lack_is_rejected(tmp_path):
    with pytest.raises(UsageError, match="the name has characters that not every system allows"):
        BundleOptions(tmp_path / "a:b.onnx", Target("linux-x86_64", "3.11"), ("cpu",))


def test_without_an_index_the_reason_is_one_line_and_an_existing_bundle_stays(built, command, tmp_path):
    (tmp_path / "x.clfb").write_text("old")
    arguments = ("--model", built / "model.onnx", "--platform", "linux-aarch64", "--python", "3.11", "-o", "x.clfb")
    offline = {"UV_OFFLINE": "1", "UV_CACHE_DIR": str(tmp_path / "cache")}
    done = command("clf-deploy", "bundle", *arguments, **offline)
    assert done.code == 4
    assert "uv pip: " in done.error
    assert (tmp_path / "x.clfb").read_text() == "old"


@pytest.mark.parametrize(("output", "error"), [(".", IsADirectoryError), ("none/x.clfb", FileNotFoundError)])
def test_an_output_that_cannot_be_a_file_is_refused_before_anything_is_downloaded(
    output, error, signed, monkeypatch, tmp_path
):
    monkeypatch.setattr(build, "_collect_wheels", lambda *_: pytest.fail("the wheels are collected"))
    with pytest.raises(error) as raised:
        build_bundle(options_of(signed.parent), tmp_path / output)
    assert Path(raised.value.filename) == tmp_path / output


def test_versions_that_do_not_exist_are_reported_in_one_line(tmp_path):
    (tmp_path / "wanted.txt").write_text("numpy<1\n")
    own = write_own_wheel(tmp_path)
    with pytest.raises(MachineError, match=r"^uv pip: [^\n]*numpy[^\n]*$"):
        resolve(own, ("cpu",), Target("linux-x86_64", "3.11"), tmp_path / "wanted.txt")


def test_a_wheel_of_another_digest_is_not_taken(tmp_path):
    (tmp_path / "r.txt").write_text(f"click==8.1.8 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(MachineError, match="pip download: "):
        download(tmp_path / "r.txt", Target("linux-x86_64", "3.11"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["r.txt"]


def test_a_missing_tool_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r'^pip is not installed; pip install "clf-edge\[bundle\]"$'):
        download(tmp_path / "r.txt", Target("linux-x86_64", "3.11"), tmp_path)


def test_an_unsigned_model_gives_a_bundle_without_a_signature(model, tmp_path):
    assert build._copy_model(model, tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == [model.name]
    assert build.default_extras(model) == ("cpu", "serve")


def test_a_runtime_that_is_too_old_for_the_model_is_refused(model):
    old = Wheel(model, "onnxruntime", "1.14.0", None, "0" * 64)
    with pytest.raises(MachineError, match=r"needs onnxruntime 1\.\d+ or later, found 1.14.0 for this platform"):
        build._check_runtime(onnx_file.read(model), [old])


def test_a_wheel_that_states_no_license_has_none_in_the_bill_of_materials(model):
    wheel = Wheel(model, "a", "1+local", None, "0" * 64)
    (component,) = json.loads(sbom_from_parts(onnx_file.read(model), "0" * 64, [wheel]))["components"]
    assert (component["purl"], "licenses" in component) == ("pkg:pypi/a@1%2Blocal", False)


def test_what_is_no_wheel_is_reported(tmp_path):
    (tmp_path / "a.whl").write_bytes(b"half")
    with pytest.raises(DataError, match=r"a\.whl: not a wheel; clear the cache of pip"):
        Wheel.read(tmp_path / "a.whl")


def test_a_package_that_is_imported_but_not_installed_cannot_be_bundled(monkeypatch, tmp_path):
    monkeypatch.setattr(own_wheel, "DISTRIBUTION", "clf-edge-that-is-not-installed")
    with pytest.raises(MachineError, match="is not installed here, only imported"):
        write_own_wheel(tmp_path)
