"""The results of an evaluation as JSON; docs/commands.md describes the keys."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

from clf_runtime import __version__
from clf_runtime.diagnostics import cpu
from clf_runtime.evaluation.metrics import EvalMetrics, rank_mistakes
from clf_runtime.evaluation.results import Comparison, Evaluation, ModelResult
from clf_runtime.machine import usable_cores
from clf_runtime.providers import installed_wheels

FORMAT = 1

_PACKAGES = ("numpy", "pillow")
_DIGITS = 6


def to_json(evaluation: Evaluation) -> str:
    """Return everything that was found as JSON, with the machine, the versions and the date."""
    return json.dumps(_to_dict(evaluation), indent=1, allow_nan=False)


def describe_machine() -> str:
    """Return the CPU, the cores and the system."""
    return f"{cpu.name()}, {usable_cores()} cores, {platform.system()} {platform.machine()}"


def _to_dict(evaluation: Evaluation) -> dict[str, Any]:
    images = evaluation.images
    return {
        "format": FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": {
            "clf-edge": __version__,
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in _PACKAGES},
            **dict(installed_wheels()),
        },
        "data": {
            "source": str(images.source),
            "split": images.split,
            "images": len(images),
            "labels": images.counts,
        },
        "warnings": list(evaluation.warnings),
        "unreadable": [asdict(failure) for failure in evaluation.failures],
        "models": [_model_to_dict(result, evaluation) for result in evaluation.results],
        "comparisons": [_comparison_to_dict(comparison) for comparison in evaluation.comparisons],
    }


def _model_to_dict(result: ModelResult, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "model": result.name,
        "sha256": result.file.sha256,
        "size_bytes": result.file.size_bytes,
        "architecture": result.file.spec.architecture,
        "precision": result.precision,
        "provider": result.provider,
        **_metrics_to_dict(result.metrics),
        "throughput": round(result.throughput, 2),
        "latency": {
            "images": result.latency.images,
            "preprocess_ms": round(result.latency.preprocess_ms, 4),
            "inference_ms": round(result.latency.inference_ms, 4),
            "total_ms": round(result.latency.total_ms, 4),
        },
        "respelled_labels": dict(result.match.respelled),
        "unknown_labels": list(result.match.unknown),
        "labels_without_images": list(result.match.unused),
        "confusions": [
            {"label": result.labels[true], "predicted": result.labels[predicted], "images": images}
            for (true, predicted), images in result.metrics.confusions.items()
        ],
        "mistakes": [_mistake_to_dict(result, row, evaluation) for row in rank_mistakes(result.scored)],
    }


def _metrics_to_dict(metrics: EvalMetrics) -> dict[str, Any]:
    return {
        "images": metrics.images,
        "correct": metrics.correct,
        "accuracy": metrics.accuracy,
        "interval": [_round(end) for end in metrics.interval],
        "top": metrics.top,
        "top_accuracy": metrics.top_accuracy,
        "balanced_accuracy": _round(metrics.balanced_accuracy),
        "macro_f1": _round(metrics.macro_f1),
        "loss": _round(metrics.loss),
        "calibration_error": _round(metrics.calibration_error),
        "classes": [
            {**asdict(row), "precision": _round(row.precision), "recall": _round(row.recall), "f1": _round(row.f1)}
            for row in metrics.classes
        ],
        "calibration": [
            {
                "low": _round(bin_.low),
                "high": _round(bin_.high),
                "images": bin_.count,
                "accuracy": _round(bin_.accuracy) if bin_.count else None,
                "confidence": _round(bin_.confidence) if bin_.count else None,
            }
            for bin_ in metrics.bins
        ],
        "thresholds": [
            {"threshold": row.threshold, "images": row.images, "accuracy": _round(row.accuracy)}
            for row in metrics.thresholds
        ],
    }


def _mistake_to_dict(result: ModelResult, row: int, evaluation: Evaluation) -> dict[str, Any]:
    scored = result.scored
    return {
        "path": str(evaluation.images.files[result.positions[row]]),
        "label": result.labels[scored.targets[row]],
        "predicted": result.labels[scored.predicted[row]],
        "score": _round(float(scored.confidence[row])),
        "label_score": _round(float(scored.probability[row])),
        "label_rank": int(scored.rank[row]) + 1,
    }


def _comparison_to_dict(comparison: Comparison) -> dict[str, Any]:
    return {
        "first": comparison.first,
        "second": comparison.second,
        "images": comparison.images,
        "difference": _round(comparison.difference),
        "only_first_correct": comparison.only_first,
        "only_second_correct": comparison.only_second,
        "p_value": _round(comparison.p_value),
        "changes": [
            {"path": change.path, "label": change.label, "first": change.first, "second": change.second}
            for change in comparison.changes
        ],
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
