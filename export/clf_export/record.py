"""export.json and the report section: what the parity check found for each exported file in the folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clf_export.exporters.exporter import OpenedModel
from clf_export.exporters.module import ExportModule
from clf_export.latency import measure_latencies_ms
from clf_export.parity.check import Parity
from clf_export.report_section import write_report_section
from clf_runtime import artifacts, files
from clf_runtime.preprocess import UInt8Array

# Per file: the latencies here are shown only. The search among INT8 configs, which decides by them, takes longer.
_TIMED_S = 0.25


@dataclass(frozen=True)
class ExportedFile:
    """A file in its place, with what was measured of it."""

    path: Path
    size_bytes: int
    parity: Parity
    model: OpenedModel  # the file, opened
    latency_ms: float | None = None  # of one image, from pixels to probabilities; None: not measured yet
    eager_latency_ms: float | None = None  # of eager PyTorch, timed in turn with the file

    def record(self) -> dict[str, Any]:
        """Return what is written as JSON."""
        return {
            "size_bytes": self.size_bytes,
            "oldest_onnxruntime": self.model.oldest_onnxruntime,
            "latency_ms": _round(self.latency_ms),
            "eager_latency_ms": _round(self.eager_latency_ms),
            **self.parity.record(),
        }


def measure_latencies(exported: Sequence[ExportedFile], module: ExportModule, image: UInt8Array) -> list[ExportedFile]:
    """Time the files and eager PyTorch in turn on one image, uint8 (1, H, W, C); return the files with latencies."""
    calls: list[Callable[[], object]] = [
        partial(_run_eager, module, image),
        *(partial(file.model.run, image) for file in exported),
    ]
    eager_ms, *latencies_ms = measure_latencies_ms(calls, _TIMED_S)
    return [
        replace(file, latency_ms=latency_ms, eager_latency_ms=eager_ms)
        for file, latency_ms in zip(exported, latencies_ms, strict=True)
    ]


def write_record(folder: Path, exported: Sequence[ExportedFile]) -> None:
    """Write export.json and the report section; files of earlier exports stay in both. Raises OSError."""
    path = folder / artifacts.EXPORT
    record = {name: value for name, value in _read_record(path).items() if (folder / name).exists()}
    record |= {file.path.name: file.record() for file in exported}
    files.atomic_write(path, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    write_report_section(folder, record)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _round(latency_ms: float | None) -> float | None:
    return None if latency_ms is None else round(latency_ms, 3)


def _run_eager(module: ExportModule, image: UInt8Array) -> None:
    with torch.inference_mode():
        module(torch.from_numpy(image))
