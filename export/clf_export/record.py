"""export.json and the page: what was proven of each exported file that is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from clf_export.exporters.module import ExportModule
from clf_export.latency import medians_ms
from clf_export.parity.check import OpenedModel, Parity
from clf_export.report_section import write_report_section
from clf_runtime import artifacts, files
from clf_runtime.preprocess import UInt8Array

_TIMED_S = 0.25  # for each file: to be told, where INT8's ways are told apart


@dataclass(frozen=True)
class Exported:
    """One file that is in place, and what was proven of it."""

    path: Path
    size_bytes: int
    parity: Parity
    oldest_onnxruntime: str | None  # that reads it; None where it is for PyTorch
    opened_model: OpenedModel  # the file, opened
    latency_ms: float = 0.0  # of one image, pixels to answer
    eager_latency_ms: float = 0.0  # of the same in eager PyTorch, in turn with it

    def record(self) -> dict[str, Any]:
        """Give what is written as JSON."""
        return {
            "size_bytes": self.size_bytes,
            "oldest_onnxruntime": self.oldest_onnxruntime,
            "latency_ms": round(self.latency_ms, 3),
            "eager_latency_ms": round(self.eager_latency_ms, 3),
            **self.parity.record(),
        }


def write_record(folder: Path, module: ExportModule, exported: Sequence[Exported], image: UInt8Array) -> list[Exported]:
    """Time the files beside eager PyTorch on one image, uint8 (1, H, W, C), and write down all there is to say."""
    times = medians_ms(
        [
            lambda: _eager(module, image),
            *(lambda opened_model=each.opened_model: opened_model.run(image) for each in exported),
        ],
        _TIMED_S,
    )
    timed = [
        replace(each, latency_ms=ms, eager_latency_ms=times[0]) for each, ms in zip(exported, times[1:], strict=True)
    ]
    path = folder / artifacts.EXPORT
    record = {name: value for name, value in _known(path).items() if (folder / name).exists()}
    record |= {each.path.name: each.record() for each in timed}
    files.atomic_write(path, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    write_report_section(folder, record)
    return timed


def _known(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _eager(module: ExportModule, image: UInt8Array) -> None:
    with torch.inference_mode():
        module(torch.from_numpy(image))
