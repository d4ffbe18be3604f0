"""Ctrl-C and SIGTERM while a command starts: no traceback of ours, and the exit code that a shell expects."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import BIN, ROOT

COMMANDS = {
    "clf-run": ("artifacts/samples",),
    "clf-bench": ("--rounds", "1", "--seconds", "0"),
    "clf-eval": ("--data", "artifacts/samples"),
    "clf-train": ("-a", "new", "--epochs", "0.1"),
    "clf-import": ("-a", "new", "--model", "tiny-convnet", "--weights", "none.pt", "--labels", "a,b"),
    "clf-export": ("-a", "none"),
}


def module_that_interrupts(folder: Path, name: str, number: int) -> dict[str, str]:
    """Return an environment in which importing a module sends a signal to the process first."""
    (folder / f"{name}.py").write_text(f"import os\nos.kill(os.getpid(), {number})\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM)], ids=["ctrl-c", "sigterm"]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_still_being_imported_ends_at_once_without_a_traceback(tmp_path, command, number, code):
    environment = module_that_interrupts(tmp_path, "click", number)
    done = subprocess.run([BIN / command], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize(
    ("number", "code", "printed"), [(signal.SIGINT, 130, "clf-run: interrupted\n"), (signal.SIGTERM, 143, "")]
)
def test_a_command_that_has_started_says_that_it_was_interrupted(home, tmp_path, number, code, printed):
    environment = module_that_interrupts(tmp_path, "numpy", number)
    done = subprocess.run(
        [BIN / "clf-run", "artifacts/samples"], cwd=home, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (code, printed)


def interrupt(command: Sequence[object], home: Path, number: int, after_s: float) -> tuple[int, str]:
    with subprocess.Popen(
        list(map(str, command)), cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        time.sleep(after_s)
        process.send_signal(number)
        return process.wait(60), process.stderr.read()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_at_any_moment_of_the_start_shows_no_traceback_of_ours(home, command, number):
    """Python itself prints one if Ctrl-C arrives while it starts, before it runs anything of ours."""
    arguments = [BIN / command, *COMMANDS[command]]
    undisturbed = subprocess.run(arguments, cwd=home, capture_output=True).returncode
    for milliseconds in range(10, 201, 10):
        code, printed = interrupt(arguments, home, number, milliseconds / 1000)
        # 1: in Python's own start; on a fast machine, some have ended before the signal
        assert code in (-number, 128 + number, undisturbed) or (code == 1 and "clf_" not in printed), printed
        assert "Exception ignored" not in printed, printed
        files = set(re.findall(rf'File "{re.escape(str(ROOT))}/(?:train|export|runtime)/\w+/(.*?)"', printed))
        assert files <= {"start.py", "__init__.py"}, printed  # they come before the first statement of the entry point
