"""The records of a quantization search, and their table."""

from __future__ import annotations

from dataclasses import dataclass

from clf_export.quantize.int8 import QuantizationConfig
from clf_runtime.session import Float32Array


@dataclass(frozen=True)
class Trial:
    """One config with one calibration, and what was measured of it on images that neither training nor calibration saw.

    Accuracy and agreement are None where they were not measured: because of the error, or since a faster config was
    accepted. If the accuracy alone is None, the trial ended early, and the agreement is the most that was possible.
    """

    config: QuantizationConfig
    calibration: str
    size_bytes: int | None = None
    latency_ms: float | None = None
    accuracy: float | None = None
    agreement: float | None = None  # the share of labels that are float32's
    error: str = ""  # why the network cannot be quantized this way, or not run afterwards

    def __str__(self) -> str:
        return f"{self.config}, {self.calibration}"


@dataclass(frozen=True)
class AcceptedTrial:
    """A trial that loses little enough, with its ONNX file without metadata."""

    trial: Trial
    content: bytes

    @property
    def latency_ms(self) -> float:
        """Of one image, from pixels to probabilities."""
        assert self.trial.latency_ms is not None
        return self.trial.latency_ms


@dataclass(frozen=True)
class Baseline:
    """The float32 graph on the same images."""

    latency_ms: float
    accuracy: float
    logits: Float32Array  # (N, classes)


@dataclass(frozen=True)
class SearchResult:
    """Everything that a search measured."""

    baseline: Baseline
    trials: tuple[Trial, ...]  # evaluated ones first, then those that were only timed, then those with an error
    accepted: tuple[AcceptedTrial, ...]  # best first
    chosen: AcceptedTrial | None  # the first accepted one that also passed `verify`


def format_trials(result: SearchResult) -> list[str]:
    """Return the lines of a table of all trials."""
    rows = [("configuration", "calibration", "size", "latency", "accuracy", "agreement")]
    baseline = result.baseline
    rows.append(("float32", "", "", f"{baseline.latency_ms:.2f} ms", f"{baseline.accuracy:.2%}", ""))
    for trial in result.trials:
        size = "" if trial.size_bytes is None else f"{trial.size_bytes / 1e6:.2f} MB"
        latency = "" if trial.latency_ms is None else f"{trial.latency_ms:.2f} ms"
        accuracy = "" if trial.accuracy is None else f"{trial.accuracy:.2%}"
        limit = "≤ " if trial.accuracy is None else ""
        agreement = "" if trial.agreement is None else f"{limit}{trial.agreement:.2%}"
        rows.append((str(trial.config), trial.calibration, size, latency, accuracy, agreement))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return [*lines, *(f"{trial}: not possible: {trial.error}" for trial in result.trials if trial.error)]
