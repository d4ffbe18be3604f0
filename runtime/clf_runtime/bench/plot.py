"""`clf-bench --plot`: the results as an image. Needs matplotlib, which clf-edge does not install."""

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
_MAX_LABEL_CHARACTERS = 40  # a longer path would leave no room for the bars


def check_target(path: Path) -> None:
    """Check, before anything is measured, that the plot can be drawn. Raises UsageError, MachineError."""
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"--plot {path}: unknown format; expected a name that ends in .png or .svg")
    if not path.resolve().parent.is_dir():
        raise UsageError(f"--plot {path}: folder {path.parent} does not exist; create it first")
    if find_spec("matplotlib") is None:
        raise MachineError("--plot: matplotlib is not installed; pip install matplotlib, or leave out --plot")


def draw(results: list[BenchResult], path: Path) -> None:
    """Draw latency, stages, throughput and cold start with memory, with one bar per model. Raises OSError."""
    figure = import_module("matplotlib.figure").Figure(
        figsize=(11, 4.6 + 2 * _INCHES_PER_MODEL * len(results)), layout="constrained"
    )
    latency, stages, throughput, cold = figure.subplots(2, 2).flat
    _draw_percentiles(latency, results)
    _draw_stages(stages, results)
    _draw_bars(throughput, results, "throughput, images per second", lambda result: result.throughput, ",.0f")
    _draw_bars(cold, results, "cold start, ms (peak memory)", lambda result: result.cold_start_ms, ",.0f")
    for position, result in enumerate(results):
        if result.cold_peak_bytes is not None:
            text = f" {result.cold_peak_bytes / 1e6:,.0f} MB"
            cold.text(0, position, text, va="center", color="white", fontsize=9)
    encoded = io.BytesIO()
    figure.savefig(encoded, format=path.suffix.lower()[1:], dpi=144)
    files.atomic_write(path, encoded.getvalue())


def _draw_percentiles(axes: Any, results: list[BenchResult]) -> None:
    series = (("p50", _COLORS[1]), ("p90", _COLORS[2]), ("p99", _COLORS[0]))
    height = 0.8 / len(series)
    for number, (name, color) in enumerate(series):
        positions = [position + (number - 1) * height for position in range(len(results))]
        bars = axes.barh(
            positions,
            [getattr(result, f"latency_{name}_ms") for result in results],
            height * 0.9,
            label=name,
            color=color,
        )
        axes.bar_label(bars, fmt="{:.3g}", padding=3, fontsize=8)
    _label_axes(axes, results, "latency of one image, ms")
    axes.legend(fontsize=8, frameon=False)


def _draw_stages(axes: Any, results: list[BenchResult]) -> None:
    left = [0.0] * len(results)
    for stage, color in zip(STAGES, _COLORS, strict=True):
        widths = [result.stages_ms[stage] for result in results]
        axes.barh(range(len(results)), widths, 0.6, left=left, label=stage, color=color)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    _label_axes(axes, results, "stages of one image, ms")
    axes.legend(fontsize=8, frameon=False, ncols=len(STAGES), loc="upper center", bbox_to_anchor=(0.5, -0.12))


def _draw_bars(
    axes: Any, results: list[BenchResult], title: str, value: Callable[[BenchResult], float], number_format: str
) -> None:
    bars = axes.barh(range(len(results)), [value(result) for result in results], 0.6, color=_COLORS[1])
    axes.bar_label(bars, fmt=f"{{:{number_format}}}", padding=3, fontsize=9)
    _label_axes(axes, results, title)


def _label_axes(axes: Any, results: list[BenchResult], title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_yticks(range(len(results)), [_shorten(result.model) for result in results], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)


def _shorten(model: str) -> str:
    return model if len(model) <= _MAX_LABEL_CHARACTERS else f"…{model[1 - _MAX_LABEL_CHARACTERS :]}"
