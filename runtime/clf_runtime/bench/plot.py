"""`clf-bench --plot`: the same as an image. Needs matplotlib, which the runtime does not: it is looked for by name."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clf_runtime import files
from clf_runtime.bench.measure import STAGES, BenchResult
from clf_runtime.errors import MachineError, UsageError

_FORMATS = (".png", ".svg")
_COLORS = ("#7f8c8d", "#2a78b5", "#e08e2b", "#2e8b57")
_INCHES_PER_MODEL = 0.55


def check(path: Path) -> None:
    """Refuse, before anything is measured, what could not be drawn. Raises UsageError, MachineError."""
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"--plot {path}: expected a name that ends in .png or .svg")
    if not path.resolve().parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}; make it first")
    if find_spec("matplotlib") is None:
        raise MachineError("--plot: matplotlib is not installed; pip install matplotlib, or leave out --plot")


def draw(measured: list[BenchResult], path: Path) -> None:
    """Draw latency, stages, throughput, and cold start with memory, a bar for each model. Raises OSError."""
    figure = import_module("matplotlib.figure").Figure(
        figsize=(11, 4.6 + 2 * _INCHES_PER_MODEL * len(measured)), layout="constrained"
    )
    latency, stages, throughput, cold = figure.subplots(2, 2).flat
    _percentiles(latency, measured)
    _stages(stages, measured)
    _bars(throughput, measured, "throughput, images per second", lambda each: each.throughput, ",.0f")
    _bars(cold, measured, "cold start, ms (peak memory)", lambda each: each.cold_start_ms, ",.0f")
    for place, each in enumerate(measured):
        if each.cold_peak_bytes is not None:
            text = f" {each.cold_peak_bytes / 1e6:,.0f} MB"
            cold.text(0, place, text, va="center", color="white", fontsize=9)
    encoded = io.BytesIO()
    figure.savefig(encoded, format=path.suffix.lower()[1:], dpi=144)
    files.write(path, encoded.getvalue())


def _percentiles(axes: Any, measured: list[BenchResult]) -> None:
    shares = (("p50", _COLORS[1]), ("p90", _COLORS[2]), ("p99", _COLORS[0]))
    height = 0.8 / len(shares)
    for number, (share, color) in enumerate(shares):
        places = [place + (number - 1) * height for place in range(len(measured))]
        bars = axes.barh(
            places, [getattr(each, f"latency_{share}_ms") for each in measured], height * 0.9, label=share, color=color
        )
        axes.bar_label(bars, fmt="{:.3g}", padding=3, fontsize=8)
    _named(axes, measured, "latency of one image, ms")
    axes.legend(fontsize=8, frameon=False)


def _stages(axes: Any, measured: list[BenchResult]) -> None:
    left = [0.0] * len(measured)
    for stage, color in zip(STAGES, _COLORS, strict=True):
        widths = [each.stages_ms[stage] for each in measured]
        axes.barh(range(len(measured)), widths, 0.6, left=left, label=stage, color=color)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    _named(axes, measured, "stages of one image, ms")
    axes.legend(fontsize=8, frameon=False, ncols=len(STAGES), loc="upper center", bbox_to_anchor=(0.5, -0.12))


def _bars(
    axes: Any, measured: list[BenchResult], title: str, value: Callable[[BenchResult], float], number_format: str
) -> None:
    bars = axes.barh(range(len(measured)), [value(each) for each in measured], 0.6, color=_COLORS[1])
    axes.bar_label(bars, fmt=f"{{:{number_format}}}", padding=3, fontsize=9)
    _named(axes, measured, title)


def _named(axes: Any, measured: list[BenchResult], title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_yticks(range(len(measured)), [each.model for each in measured], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
