"""What the workflow files run, and that it exists; `make workflows` checks their syntax."""

from __future__ import annotations

import re

import pytest
import yaml
from conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def jobs_of(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github/workflows" / name).read_text())["jobs"]


def matrix_of(job: dict) -> dict:
    return job.get("strategy", {}).get("matrix", {})


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_targets_that_exist_without_credentials(path):
    for job in jobs_of(path.name).values():
        for step in job["steps"]:
            wanted = re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))
            assert {*wanted, *matrix_of(job).get("target", ())} <= TARGETS
            assert (
                step.get("uses", "").partition("@")[0] != "actions/checkout" or not step["with"]["persist-credentials"]
            )


def test_the_tests_run_on_every_python_and_system():
    matrix = matrix_of(jobs_of("tests.yml")["tests"])
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]


def test_all_slow_tests_run_at_night():
    # GitHub's machines for everybody have no GPU.
    slow = {target for target in TARGETS if target.startswith("test-")} - {"test-gpu"}
    assert slow <= set(matrix_of(jobs_of("nightly.yml")["slow"])["target"])


def test_wheels_are_attested():
    build = jobs_of("wheel.yml")["build"]
    assert build["permissions"]["attestations"] == "write"
    assert any("attest-build-provenance" in step.get("uses", "") for step in build["steps"])
