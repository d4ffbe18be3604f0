"""What can be exported: one row for each kind of file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from clf_runtime import artifacts
from clf_runtime.errors import UsageError


@dataclass(frozen=True)
class Target:
    """One file: its format, the precision of its arithmetic, and its name in the artifacts folder."""

    format: str
    precision: str
    file: str


TARGETS = (
    Target("onnx", "fp32", artifacts.ONNX),
    Target("onnx", "fp16", artifacts.ONNX_FP16),
    Target("onnx", "int8", artifacts.ONNX_INT8),
    Target("torchscript", "fp32", artifacts.TORCHSCRIPT),
    Target("pt2", "fp32", artifacts.PT2),
)
FORMATS = tuple(dict.fromkeys(target.format for target in TARGETS))
PRECISIONS = tuple(dict.fromkeys(target.precision for target in TARGETS))


def targets_of(formats: Iterable[str], precisions: Iterable[str]) -> tuple[Target, ...]:
    """Give every target of these formats and precisions. Raises UsageError where one of them has none."""
    formats, precisions = set(formats), set(precisions)
    chosen = tuple(each for each in TARGETS if each.format in formats and each.precision in precisions)
    for each in sorted(formats - {target.format for target in chosen}):
        raise UsageError(f"--format {each} is made in fp32 only; add --precision fp32")
    for each in sorted(precisions - {target.precision for target in chosen}):
        raise UsageError(f"--precision {each} is made as ONNX only; add --format onnx")
    return chosen
