"""The files in docs/deploy.md, as far as they can be checked here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import BIN, ROOT, run_checked
from serving import serving_by

from clf_runtime.cli import command as run
from clf_serve.cli import command as serve

PAGE = (ROOT / "docs/deploy.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


SERVICE_UNIT, CAMERA_UNIT = blocks("ini")
(CONTAINERFILE,) = blocks("dockerfile")
(PODS,) = blocks("yaml")


@pytest.mark.parametrize(("name", "unit"), [("clf-serve", SERVICE_UNIT), ("clf-camera", CAMERA_UNIT)])
def test_a_bundle_contains_the_units_of_this_page(name, unit):
    assert (ROOT / f"runtime/clf_deploy/bundle/device/systemd/{name}.service").read_text() == unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
@pytest.mark.parametrize(
    ("name", "unit", "exposure"), [("clf-serve", SERVICE_UNIT, 1.5), ("clf-camera", CAMERA_UNIT, 2.0)]
)
def test_the_units_are_valid_and_hardened(tmp_path, name, unit, exposure):
    path = tmp_path / f"{name}.service"
    path.write_text(unit.replace("/opt/clf/bin", str(BIN)))
    checked = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", path]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    level = re.search(rf"Overall exposure level for {name}.service: ([\d.]+)", printed)
    assert level is not None
    assert float(level[1]) <= exposure


@pytest.mark.parametrize(
    ("text", "command"),
    [(SERVICE_UNIT, serve), (CONTAINERFILE, serve), (CAMERA_UNIT, run)],
    ids=["service", "container", "camera"],
)
def test_the_options_of_the_commands_exist(text, command):
    used = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub(r"RUN .*", "", text)))
    assert used
    assert used <= {flag for parameter in command.params for flag in parameter.opts}


class Container:
    """The steps of the Containerfile in a virtual environment; its folders lie below one folder."""

    def __init__(self, context: Path, root: Path) -> None:
        """Run the steps of the build."""
        self._root = root
        self.env = dict(os.environ)
        self.entrypoint: list[str] = []
        for line in CONTAINERFILE.splitlines():
            step, _, value = line.partition(" ")
            getattr(self, f"_{step.lower()}")(value, context)

    def _from(self, value: str, context: Path) -> None:
        assert value.startswith("python:3")
        run_checked(sys.executable, "-m", "venv", self._root / "venv")
        self.env["PATH"] = f"{self._root / 'venv/bin'}:{os.environ['PATH']}"

    def _copy(self, value: str, context: Path) -> None:
        source, target = value.split()
        (found,) = context.glob(source)
        path = Path(f"{self._root}{target}")
        (path if target.endswith("/") else path.parent).mkdir(exist_ok=True)
        shutil.copy(found, path)

    def _run(self, value: str, context: Path) -> None:
        subprocess.run(value.replace("/tmp/", f"{self._root}/tmp/"), shell=True, env=self.env, check=True)

    def _env(self, value: str, context: Path) -> None:
        name, _, content = value.partition("=")
        self.env[name] = content

    def _entrypoint(self, value: str, context: Path) -> None:
        program, *arguments = json.loads(value)
        paths = [argument.replace("/srv/", f"{self._root}/srv/") for argument in arguments]
        self.entrypoint = [str(self._root / "venv/bin" / program), *paths]

    def _user(self, value: str, context: Path) -> None:
        assert value == "65534:65534"

    def _expose(self, value: str, context: Path) -> None:
        assert value == "8000"


@pytest.mark.slow
def test_the_steps_of_the_container_give_a_service_that_needs_no_rights_and_writes_nothing(
    wheel, model, samples, tmp_path
):
    (tmp_path / "context/dist").mkdir(parents=True)
    shutil.copy(wheel, tmp_path / "context/dist")
    shutil.copy(model, tmp_path / "context/model.onnx")
    (tmp_path / "root").mkdir()
    container = Container(tmp_path / "context", tmp_path / "root")
    assert not list((tmp_path / "root/tmp").iterdir())
    if os.geteuid() == 0 and shutil.which("unshare") and shutil.which("setpriv"):
        read_only = 'mount -o remount,bind,ro / && exec setpriv --bounding-set=-all --no-new-privs -- "$@"'
        isolated = ["unshare", "--mount", "sh", "-c", read_only, "sh"]
    else:
        isolated = []
    with serving_by([*isolated, *container.entrypoint], **container.env) as service:
        assert service.request("/readyz").status == 200
        answer = service.request("/v1/classify", samples[0].read_bytes())
        assert answer.json["label"] == samples[0].name[0]
        assert service.stop() == 0


def test_the_probes_of_kubernetes_ask_for_paths_that_exist():
    from clf_serve.app import ROUTES

    (container,) = yaml.safe_load(PODS)["containers"]
    probes = [container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert {(probe["path"] in ROUTES, probe["port"]) for probe in probes} == {(True, 8000)}
