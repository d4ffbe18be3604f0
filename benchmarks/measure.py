"""Complete processes, measured in turn: A B A B …, so that changes in the machine's speed affect both alike."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from clf_runtime.diagnostics import cpu
from clf_runtime.machine import usable_cores

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class ProcessRun:
    """One process, from exec to exit: wall clock, processor time, and the peak of its resident memory."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def run(command: Sequence[str]) -> ProcessRun:
    """Run a command, without its output. Raises RuntimeError if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_environment())
    assert process.stderr is not None
    stderr = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.stderr.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command}: exit code {process.returncode}: {stderr.decode()}")
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return ProcessRun(seconds, usage.ru_utime + usage.ru_stime, kilobytes / 1024)


def run_in_turn(commands: Mapping[str, Sequence[str]], runs: int) -> dict[str, list[ProcessRun]]:
    """Run every command once as a warm-up, then all of them in turn, `runs` times."""
    for command in commands.values():
        run(command)
    measured: dict[str, list[ProcessRun]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            measured[name].append(run(command))
    return measured


def summarize(measured: Mapping[str, list[ProcessRun]], baseline: str) -> list[dict[str, object]]:
    """Return medians, and the median of the ratios to `baseline`, pair by pair."""
    rows = []
    for name, runs in measured.items():
        pairs = list(zip(runs, measured[baseline], strict=True))
        rows.append(
            {
                "what": name,
                "seconds": round(statistics.median(run.seconds for run in runs), 4),
                "ratio": round(statistics.median(run.seconds / base.seconds for run, base in pairs), 3),
                "peak_mb": round(statistics.median(run.peak_mb for run in runs), 1),
                "memory_ratio": round(statistics.median(run.peak_mb / base.peak_mb for run, base in pairs), 3),
                "runs": len(runs),
            }
        )
    return rows


def save_result(name: str, content: object, packages: Sequence[str]) -> None:
    """Print a result, and write it to results/ with the machine, the versions and the date."""
    record = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        "versions": {package: version(package) for package in packages} | {"python": platform.python_version()},
        "result": content,
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def machine() -> str:
    """Return the processor with its newest instruction sets, and the cores that this process may use."""
    newest = (cpu.instruction_sets() or [])[-2:]
    return f"{cpu.name()} ({', '.join(newest) or platform.machine()}), {usable_cores()} cores, {platform.system()}"


def _environment() -> dict[str, str]:
    # As for a user: with compiled modules, and without settings of this shell.
    return {
        key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    }
