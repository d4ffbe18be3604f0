"""The last lines of clf-train and clf-import: what the model reaches, how certain that is, and what to do next."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from clf_runtime.errors import escape
from clf_runtime.evaluation.statistics import wilson_interval
from clf_train.portable import leads_to
from clf_train.progress import format_percent

if TYPE_CHECKING:
    from clf_runtime.spec import Metrics, ModelSpec
    from clf_train.config import DataSource
    from clf_train.training import TrainResult

_DEFAULT_ARTIFACTS = "artifacts"
# With fewer test images than this, a second decimal of an accuracy means nothing.
_MIN_IMAGES_FOR_TWO_DECIMALS = 2000


def format_result(result: TrainResult, artifacts: str, source: DataSource) -> str:
    """Return the two lines of a finished training; `artifacts` is the folder as the user named it."""
    metrics = result.spec.metrics
    assert metrics is not None
    latency = (
        "" if result.latency_ms is None else f", about {format_latency(result.latency_ms)} per image when exported"
    )
    return "\n".join(
        (
            escape(f"wrote {result.artifacts / 'model.pt'}, {result.artifacts / 'report.html'}; ")
            + f"calibration error {format_percent(metrics.calibration_error)} "
            f"({format_percent(result.uncalibrated.calibration_error)} before temperature scaling)",
            f"{format_accuracy(metrics)}{latency}; "
            + escape(f"next: {format_export_command(result.spec, artifacts, source)}"),
        )
    )


def format_accuracy(metrics: Metrics) -> str:
    """Return the accuracy on the test split with its 95 % interval."""
    decimals = 1 if metrics.images < _MIN_IMAGES_FOR_TWO_DECIMALS else 2
    low, high = wilson_interval(round(metrics.accuracy * metrics.images), metrics.images)
    return (
        f"accuracy {100 * metrics.accuracy:.{decimals}f} % (95 % interval {100 * low:.{decimals}f} to "
        f"{100 * high:.{decimals}f} %) on {metrics.images:,} test images"
    )


def format_latency(latency_ms: float) -> str:
    """Return an estimate with as many digits as it deserves, like 0.2 ms or 14 ms."""
    return f"{latency_ms:.0f} ms" if latency_ms >= 9.5 else f"{latency_ms:.1g} ms"


def format_export_command(spec: ModelSpec, artifacts: str, source: DataSource | None = None) -> str:
    """Return the command that exports a model, complete: it works as it is printed, in the same shell and folder.

    Args:
        spec: the model's.
        artifacts: its folder as the user named it.
        source: its data as the user named them, which the model does not record if they lie outside this folder.
    """
    command = ["clf-export"]
    # The variable would name another folder than this one.
    if artifacts != _DEFAULT_ARTIFACTS or "CLF_ARTIFACTS" in os.environ:
        command += ["-a", artifacts]
    data_root = spec.provenance.data_root if spec.provenance else None
    if data_root is not None and source is not None and not leads_to(data_root, source.data_root):
        command += ["--data-root", source.data_root]
    elif data_root is not None and os.environ.get("CLF_DATA_ROOT", data_root) != data_root:
        command += ["--data-root", data_root]
    if spec.provenance is not None and spec.provenance.data is None:
        command += ["--data", "FOLDER"]  # an import without images; the parity check needs some
    elif spec.provenance is not None and source is not None and not leads_to(spec.provenance.data, source.data):
        command += ["--data", source.data]
    if ":" in spec.architecture:
        command += ["--trust-factory", spec.architecture]
    return shlex.join([*command, "--format", "onnx"])
