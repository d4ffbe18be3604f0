"""What a model file says about itself, and where its graph would run here; nothing is classified."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from clf_runtime.errors import InvalidModelError, MachineError
from clf_runtime.machine import usable_cores
from clf_runtime.onnx_file import PARITY_KEY, SPEC_KEY, OnnxFile
from clf_runtime.spec import ModelSpec

_LABELS_SHOWN = 12


@dataclass(frozen=True)
class Here:
    """Where the graph runs on this machine, or why it does not."""

    provider: str | None
    nodes: Mapping[str, int] | None  # per provider; None where onnxruntime does not tell
    reason: str | None  # why it does not run, or not on what is better

    def __str__(self) -> str:
        if self.provider is None:
            return f"nothing here: {self.reason}"
        placed = counted(self.nodes) if self.nodes is not None else f"{self.provider} (onnxruntime 1.24 tells nodes)"
        return placed if self.reason is None else f"{placed}; {self.reason}"


def here(file: OnnxFile, device: str) -> Here:
    """Open the graph, to see where its nodes are placed. Raises UsageError."""
    try:
        from clf_runtime.session import Session

        session = Session(file, device, usable_cores(), record_nodes=True)
    except (ImportError, InvalidModelError, MachineError) as error:
        return Here(None, None, str(error))
    return Here(session.provider, session.nodes, session.warning or None)


def counted(nodes: Mapping[str, int]) -> str:
    """Say how many nodes run where."""
    return ", ".join(
        f"{provider} ({number} {'node' if number == 1 else 'nodes'})" for provider, number in nodes.items()
    )


def description(file: OnnxFile, where: Here) -> dict[str, Any]:
    """Give everything that `--info --format json` prints. Raises InvalidModelError."""
    spec = ModelSpec.from_json(file.metadata[SPEC_KEY], str(file.path))
    return {
        "path": str(file.path),
        "size_bytes": file.size_bytes,
        "sha256": file.sha256,
        "opset": file.opset,
        "ir_version": file.ir_version,
        "oldest_onnxruntime": file.oldest_runtime,
        "spec": asdict(spec),
        "parity": json.loads(file.metadata.get(PARITY_KEY, "null")),
        "here": asdict(where),
    }


def table(file: OnnxFile, where: Here) -> str:
    """Give the same for a person, a line each. Raises InvalidModelError."""
    spec = ModelSpec.from_json(file.metadata[SPEC_KEY], str(file.path))
    preprocess, metrics, origin = spec.preprocess, spec.metrics, spec.provenance
    rows = [
        ("model", str(file.path)),
        ("size", f"{file.size_bytes / 1e6:.2f} MB"),
        ("sha256", file.sha256),
        ("architecture", spec.architecture),
        ("labels", _labels(spec.labels)),
        (
            "input",
            f"uint8 (N, {preprocess.height}, {preprocess.width}, {preprocess.channels}), {preprocess.color}, "
            f"{preprocess.resize}, {preprocess.resample}",
        ),
        ("outputs", f"logits, probabilities: float32 (N, {len(spec.labels)}); temperature {spec.temperature:.3f}"),
        (
            "needs",
            f"onnxruntime {file.oldest_runtime or '(unknown)'} or later (opset {file.opset}, IR {file.ir_version})",
        ),
    ]
    if metrics:
        rows.append(("accuracy", f"{metrics.accuracy:.2%} of {metrics.images:,} held-out images ({metrics.split})"))
        rows.append(("calibration", f"expected error {metrics.calibration_error:.4f}, loss {metrics.loss:.4f}"))
    if origin and origin.data:
        rows.append(("trained on", f"{origin.data}, {origin.epochs:g} epochs, seed {origin.seed}, {origin.time}"))
        rows.append(("with", ", ".join(f"{name} {version}" for name, version in sorted(origin.versions.items()))))
    parity = json.loads(file.metadata.get(PARITY_KEY, "null"))
    if parity:
        rows.append(
            (
                "proven",
                f"{parity['images']:,} images, max |difference of a logit| "
                f"{parity['max_difference']:.1e}, labels flipped {parity['flipped']}",
            )
        )
    rows.append(("runs on", str(where)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _labels(labels: tuple[str, ...]) -> str:
    shown = ", ".join(labels[:_LABELS_SHOWN])
    return f"{len(labels)}: {shown}" + (", …" if len(labels) > _LABELS_SHOWN else "")
