"""`clf-run --info`: what a model file contains, and where its graph runs on this machine. No image is classified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from clf_runtime.diagnostics.parity import read_parity
from clf_runtime.errors import InvalidModelError, MachineError, escape
from clf_runtime.machine import usable_cores
from clf_runtime.onnx_file import OnnxFile
from clf_runtime.spec import ModelSpec

_LABELS_SHOWN = 12


@dataclass(frozen=True)
class Placement:
    """Where the graph runs on this machine, or why it does not."""

    provider: str | None
    nodes: Mapping[str, int] | None  # per provider; None if onnxruntime does not report them
    reason: str | None  # why it does not run, or not on a faster device

    def __str__(self) -> str:
        if self.provider is None:
            return f"nothing on this machine: {self.reason}"
        placed = f"{self.provider} (nodes are reported since onnxruntime 1.24)"
        if self.nodes is not None:
            placed = format_nodes(self.nodes)
        return placed if self.reason is None else f"{placed}; {self.reason}"


def find_placement(file: OnnxFile, device: str) -> Placement:
    """Open the graph to see where its nodes run. Raises UsageError if the device is unknown."""
    try:
        from clf_runtime.session import Session

        session = Session(file, device, usable_cores(), record_nodes=True)
    except (ImportError, InvalidModelError, MachineError) as error:
        return Placement(None, None, str(error))
    return Placement(session.provider, session.nodes, session.warning or None)


def format_nodes(nodes: Mapping[str, int]) -> str:
    """Return how many nodes run on each provider, as text."""
    return ", ".join(
        f"{provider} ({number} {'node' if number == 1 else 'nodes'})" for provider, number in nodes.items()
    )


def to_dict(file: OnnxFile, placement: Placement) -> dict[str, Any]:
    """Return what `--info --format json` prints."""
    return {
        "path": str(file.path),
        "size_bytes": file.size_bytes,
        "sha256": file.sha256,
        "opset": file.opset,
        "ir_version": file.ir_version,
        "oldest_onnxruntime": file.oldest_runtime,
        "spec": asdict(file.spec),
        "parity": read_parity(file),
        "runs_on": asdict(placement),
    }


def table(file: OnnxFile, placement: Placement) -> str:
    """Return the same as text, a line each."""
    requirement = f"onnxruntime {file.oldest_runtime or '(unknown)'} or later"
    rows = [
        ("model", str(file.path)),
        ("size", f"{file.size_bytes / 1e6:.2f} MB"),
        ("sha256", file.sha256),
        *([] if file.spec.serial is None else [("serial", str(file.spec.serial))]),
        *_spec_rows(file.spec),
        ("needs", f"{requirement} (opset {file.opset}, IR {file.ir_version})"),
        *_metrics_rows(file.spec),
    ]
    parity = read_parity(file)
    if parity:
        rows.append(
            (
                "parity",
                f"with PyTorch on {parity['images']:,} images: max |difference of a logit| "
                f"{parity['max_difference']:.1e}, labels flipped {parity['flipped']}",
            )
        )
    rows.append(("runs on", str(placement)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {escape(value)}" for name, value in rows)


def _spec_rows(spec: ModelSpec) -> list[tuple[str, str]]:
    preprocess, labels = spec.preprocess, spec.labels
    shown = ", ".join(labels[:_LABELS_SHOWN]) + (", …" if len(labels) > _LABELS_SHOWN else "")
    shape = f"uint8 (N, {preprocess.height}, {preprocess.width}, {preprocess.channels})"
    return [
        ("architecture", spec.architecture),
        ("labels", f"{len(labels)}: {shown}"),
        ("input", f"{shape}, {preprocess.color}, {preprocess.resize}, {preprocess.resample}"),
        ("outputs", f"logits, probabilities: float32 (N, {len(labels)}); temperature {spec.temperature:.3f}"),
    ]


def _metrics_rows(spec: ModelSpec) -> list[tuple[str, str]]:
    metrics, provenance = spec.metrics, spec.provenance
    rows = []
    if metrics:
        rows.append(("accuracy", f"{metrics.accuracy:.2%} of {metrics.images:,} images ({metrics.split})"))
        rows.append(("calibration", f"expected error {metrics.calibration_error:.4f}, loss {metrics.loss:.4f}"))
    if provenance and provenance.data:
        training = f"{provenance.epochs:g} epochs, seed {provenance.seed}, {provenance.time}"
        rows.append(("trained on", f"{provenance.data}, {training}"))
        rows.append(("with", ", ".join(f"{name} {version}" for name, version in sorted(provenance.versions.items()))))
    return rows
