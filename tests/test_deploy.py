"""The files in docs/deploy.md, as far as they can be checked here."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml
from conftest import BIN, ROOT

from clf_runtime.cli import command as run
from clf_serve.cli import command as serve

PAGE = (ROOT / "docs/deploy.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


SERVICE_UNIT, CAMERA_UNIT = blocks("ini")
(CONTAINERFILE,) = blocks("dockerfile")
(PODS,) = blocks("yaml")


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


def test_the_probes_of_kubernetes_ask_for_paths_that_exist():
    from clf_serve.app import ROUTES

    (container,) = yaml.safe_load(PODS)["containers"]
    probes = [container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert {(probe["path"] in ROUTES, probe["port"]) for probe in probes} == {(True, 8000)}
