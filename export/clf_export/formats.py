"""The files that can be exported: one row for each combination of format and precision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from clf_runtime import artifacts
from clf_runtime.errors import UsageError


@dataclass(frozen=True)
class Target:
    """One kind of file: its format, the precision of its arithmetic, and its name in the artifacts folder."""

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


def select_targets(formats: Iterable[str], precisions: Iterable[str]) -> tuple[Target, ...]:
    """Return the targets with one of the formats and one of the precisions.

    Raises UsageError where a format or a precision has no target among them.
    """
    formats, precisions = set(formats), set(precisions)
    selected = tuple(target for target in TARGETS if target.format in formats and target.precision in precisions)
    for missing in sorted(formats - {target.format for target in selected}):
        raise UsageError(f"--format {missing} is available in fp32 only; add --precision fp32")
    for missing in sorted(precisions - {target.precision for target in selected}):
        raise UsageError(f"--precision {missing} is available as ONNX only; add --format onnx")
    return selected
