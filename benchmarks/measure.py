"""Whole processes, timed in turn: A B A B …, so that a machine that drifts does so for both."""

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
class Run:
    """One process, from exec to exit: wall clock, processor time, and the peak of its resident memory."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def run(command: Sequence[str]) -> Run:
    """Run a command to its end, its output thrown away. Raises RuntimeError if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_environment())
    assert process.stderr is not None
    complaint = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.stderr.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command}: exit code {process.returncode}: {complaint.decode()}")
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return Run(seconds, usage.ru_utime + usage.ru_stime, kilobytes / 1024)


def in_turn(commands: Mapping[str, Sequence[str]], runs: int) -> dict[str, list[Run]]:
    """Run every command once uncounted, then all of them in turn, `runs` times."""
    for command in commands.values():
        run(command)
    taken: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            taken[name].append(run(command))
    return taken


def table(taken: Mapping[str, list[Run]], floor: str) -> list[dict[str, object]]:
    """Give medians, and the median of the ratios to `floor`, pair by pair."""
    rows = []
    for name, each in taken.items():
        pairs = list(zip(each, taken[floor], strict=True))
        rows.append(
            {
                "what": name,
                "seconds": round(statistics.median(one.seconds for one in each), 4),
                "ratio": round(statistics.median(one.seconds / other.seconds for one, other in pairs), 3),
                "peak_mb": round(statistics.median(one.peak_mb for one in each), 1),
                "memory_ratio": round(statistics.median(one.peak_mb / other.peak_mb for one, other in pairs), 3),
                "runs": len(each),
            }
        )
    return rows


def keep(name: str, content: object, packages: Sequence[str]) -> None:
    """Print a result, and write it beside the benchmarks with the machine and the date."""
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
    """Name the processor with its newest instruction sets, and count what this process may use of it."""
    newest = (cpu.instruction_sets() or [])[-2:]
    return f"{cpu.name()} ({', '.join(newest) or platform.machine()}), {usable_cores()} cores, {platform.system()}"


def _environment() -> dict[str, str]:
    # As a user's: with compiled modules, without what this shell sets for itself.
    return {
        key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    }
