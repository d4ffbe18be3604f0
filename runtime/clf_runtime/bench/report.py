"""What `clf-bench` prints: a table for a person, JSON for a program."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata

from clf_runtime import __version__
from clf_runtime.bench.measure import STAGES, BenchOptions, BenchResult
from clf_runtime.diagnostics import cpu
from clf_runtime.machine import usable_cores
from clf_runtime.providers import wheels

_PACKAGES = ("numpy", "pillow", "click")


def table(measured: list[BenchResult]) -> str:
    """Give a column for each model; further ones say how they compare with the first."""
    rows = [["", *(each.model for each in measured)]]
    for what, value, unit in _figures():
        values = [value(each) for each in measured]
        rows.append([what, *(_cell(each, values[0], unit, number) for number, each in enumerate(values))])
    rows += [
        ["nodes", *(_nodes(each) for each in measured)],
        ["images", *(_images(each) for each in measured)],
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(_line(row, widths) for row in rows)


def as_json(options: BenchOptions, measured: list[BenchResult]) -> str:
    """Give everything, with the machine, the versions and the date."""
    content = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{cpu.name()}, {usable_cores()} cores, {platform.system()} {platform.machine()}",
        "versions": {
            "clf-edge": __version__,
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in _PACKAGES},
            **dict(wheels()),
        },
        "order": asdict(options) | {"models": [str(model) for model in options.models]},
        "result": [asdict(each) for each in measured],
    }
    return json.dumps(content, indent=1)


def _figures() -> Iterable[tuple[str, Callable[[BenchResult], float | None], str]]:
    yield "cold start", lambda each: each.cold_start_ms, "ms"
    yield "latency p50", lambda each: each.latency_p50_ms, "ms"
    yield "latency p90", lambda each: each.latency_p90_ms, "ms"
    yield "latency p99", lambda each: each.latency_p99_ms, "ms"
    yield "throughput", lambda each: each.throughput, "images/s"
    for stage in STAGES:
        yield f"  {stage}", lambda each, stage=stage: each.stages_ms[stage], "ms"  # type: ignore[misc]
    yield "peak memory, one image", lambda each: _megabytes(each.cold_peak_bytes), "MB"
    yield "peak memory, many", lambda each: _megabytes(each.peak_bytes), "MB"
    yield "file", lambda each: _megabytes(each.size_bytes), "MB"


def _megabytes(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / 1e6


def _cell(value: float | None, first: float | None, unit: str, number: int) -> str:
    if value is None:
        return "not told"
    shown = f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
    compared = f" ({value / first:.2f} x)" if number and first else ""
    return f"{shown} {unit}{compared}"


def _nodes(each: BenchResult) -> str:
    if each.nodes is None:
        return f"{each.provider}, nodes not told"
    return ", ".join(f"{count} on {provider}" for provider, count in each.nodes.items())


def _images(each: BenchResult) -> str:
    return f"{each.images:,}" + (f", {each.unreadable:,} unreadable left out" if each.unreadable else "")


def _line(row: list[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
