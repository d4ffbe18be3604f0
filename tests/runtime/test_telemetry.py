"""The telemetry of onnxruntime: off, unless somebody wants it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_command
from tracing import Trace, create_traced_environment

PRINT = "import {}, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"


@pytest.mark.parametrize(
    ("package", "value", "expected"),
    [("clf_runtime", None, "1"), ("clf_runtime", "0", "0"), ("clf_runtime", "", ""), ("clf_export", None, "1")],
)
def test_importing_a_package_switches_telemetry_off_unless_the_user_decided(package, value, expected):
    environment = {key: text for key, text in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    if value is not None:
        environment["ORT_DISABLE_TELEMETRY"] = value
    command = [sys.executable, "-c", PRINT.format(package)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == expected


SCRIPT = "import sys, clf_runtime; print(clf_runtime.Classifier.load(sys.argv[1]).predict(sys.argv[2]).label)"


@pytest.mark.parametrize(
    "command",
    [
        ("clf-run", "{image}", "--model", "{model}"),
        ("clf-run", "--doctor", "--model", "{model}"),
        ("clf-bench", "--rounds", "1", "--seconds", "0", "--model", "{model}"),
        ("python", "-c", SCRIPT, "{model}", "{image}"),
    ],
)
def test_no_process_connects_anywhere_or_writes_outside_its_temporary_folder(command, model, samples, tmp_path):
    environment = create_traced_environment(tmp_path)
    os.environ.pop("ORT_DISABLE_TELEMETRY", None)  # this process has it from importing clf_runtime
    trace = Trace(tmp_path / "trace")
    program, *arguments = (part.format(image=samples[0], model=model) for part in command)
    done = run_command(program, *arguments, cwd=tmp_path, prefix=trace.prefix, **environment)
    assert done.code == 0, done.err
    assert trace.sockets() + trace.connections() == []
    outside = {path for path in trace.written() if not path.is_relative_to(tmp_path / "temporary")}
    assert outside == set()
    assert list(Path(tmp_path, "home").iterdir()) == []
