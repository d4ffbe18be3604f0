"""What `clf-bench` prints: a table, or JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata

from clf_runtime import __version__
from clf_runtime.bench.measure import STAGES, BenchOptions, BenchResult
from clf_runtime.diagnostics import cpu
from clf_runtime.errors import escape
from clf_runtime.machine import usable_cores
from clf_runtime.providers import installed_wheels

_PACKAGES = ("numpy", "pillow", "click")


def table(results: list[BenchResult]) -> str:
    """Return a table with one column per model; further models are compared with the first."""
    rows = [["", *(result.model for result in results)]]
    for name, value, unit in _FIGURES:
        values = [value(result) for result in results]
        ratios = ["", *(_format_ratio(other, values[0]) for other in values[1:])]
        rows.append([name, *(_format(value, unit) + ratio for value, ratio in zip(values, ratios, strict=True))])
    rows += [
        ["nodes", *(_format_nodes(result) for result in results)],
        ["images", *(_format_images(result) for result in results)],
    ]
    rows = [list(map(escape, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def to_json(options: BenchOptions, results: list[BenchResult]) -> str:
    """Return all figures as JSON, with the machine, the versions and the date."""
    content = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{cpu.name()}, {usable_cores()} cores, {platform.system()} {platform.machine()}",
        "versions": {
            "clf-edge": __version__,
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in _PACKAGES},
            **dict(installed_wheels()),
        },
        "options": asdict(options) | {"models": [str(model) for model in options.models]},
        "result": [asdict(result) for result in results],
    }
    return json.dumps(content, indent=1)


def _megabytes(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / 1e6


# Name of the row, its value, its unit.
_FIGURES: tuple[tuple[str, Callable[[BenchResult], float | None], str], ...] = (
    ("cold start", lambda result: result.cold_start_ms, "ms"),
    ("latency p50", lambda result: result.latency_p50_ms, "ms"),
    ("latency p90", lambda result: result.latency_p90_ms, "ms"),
    ("latency p99", lambda result: result.latency_p99_ms, "ms"),
    ("throughput", lambda result: result.throughput, "images/s"),
    *((f"  {stage}", lambda result, stage=stage: result.stages_ms[stage], "ms") for stage in STAGES),
    ("peak memory, one image", lambda result: _megabytes(result.cold_peak_bytes), "MB"),
    ("peak memory, many", lambda result: _megabytes(result.peak_bytes), "MB"),
    ("file", lambda result: _megabytes(result.size_bytes), "MB"),
)


def _format(value: float | None, unit: str) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:#.3g} {unit}"


def _format_ratio(value: float | None, first: float | None) -> str:
    return "" if value is None or not first else f" ({value / first:.2f} x)"


def _format_nodes(result: BenchResult) -> str:
    if result.nodes is None:
        return f"{result.provider}, nodes unknown"
    return ", ".join(f"{count} on {provider}" for provider, count in result.nodes.items())


def _format_images(result: BenchResult) -> str:
    return f"{result.images:,}" + (f", without {result.unreadable:,} unreadable" if result.unreadable else "")
