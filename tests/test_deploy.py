"""The files in docs/deploy.md, as far as they can be checked here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import BIN, ROOT

from clf_serve.cli import command

PAGE = (ROOT / "docs/deploy.md").read_text()


def block(language: str) -> str:
    """Return the only code block of a language."""
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return text


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The systemd unit, with the command of this environment."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    path = tmp_path / "clf-serve.service"
    path.write_text(block("ini").replace("/opt/clf/bin", str(BIN)))
    return path


def test_the_unit_is_valid_and_hardened(unit):
    checked = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", unit]
    exposure = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    level = re.search(r"Overall exposure level for clf-serve.service: ([\d.]+)", exposure)
    assert level is not None
    assert float(level[1]) <= 1.5


@pytest.mark.parametrize("language", ["ini", "dockerfile"])
def test_the_options_of_the_service_exist(language):
    used = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub(r"RUN .*", "", block(language))))
    assert used
    assert used <= {flag for parameter in command.params for flag in parameter.opts}


def test_the_probes_of_kubernetes_ask_for_paths_that_exist():
    from clf_serve.app import ROUTES

    (container,) = yaml.safe_load(block("yaml"))["containers"]
    probes = [container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert {(probe["path"] in ROUTES, probe["port"]) for probe in probes} == {(True, 8000)}
