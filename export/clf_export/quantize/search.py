"""The choice of the INT8 config: the fastest one that keeps the answers, measured on this machine.

Among equally fast configs the one that agrees most with float32 wins, and among equally agreeing ones the smallest. The
calibration does not change the speed, so configs are timed with the first one; the others are tried for a config that
loses too much accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import onnx

from clf_export.latency import measure_latencies_ms
from clf_export.parity.limits import MIN_AGREEMENT
from clf_export.quantize.bias_correction import Float64Array, measure_input_means
from clf_export.quantize.graph import Graph, fuse
from clf_export.quantize.int8 import (
    CALIBRATIONS,
    QUANTIZATION_CONFIGS,
    QuantizationConfig,
    QuantizationError,
    calibrate,
    int8_from_onnx,
    onnxruntime_errors_as_quantization_errors,
)
from clf_export.quantize.rewrite import rewrite_for_quantization
from clf_export.quantize.trial import AcceptedTrial, Baseline, SearchResult, Trial
from clf_export.reference_split import SearchImages, TestSplit
from clf_runtime.machine import usable_cores
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import Float32Array

# Two medians within this factor count as equal, and so do two shares of some hundred images within this difference.
_EQUAL_LATENCY = 1.05
_EQUAL_AGREEMENT = 0.005


class QuantizationSearch:
    """Quantizes one graph with every config, times them all, and evaluates the fastest ones."""

    def __init__(
        self, content: bytes, split: TestSplit, max_drop: float, say: Callable[[str], object] = lambda message: None
    ) -> None:
        """Store what is searched.

        Args:
            content: a float32 ONNX file without metadata.
            split: the images to calibrate and to compare with.
            max_drop: the accuracy drop, in percentage points, up to which a config is accepted.
            say: called with progress messages.
        """
        self._content = content
        self._split = split
        self._max_drop = max_drop
        self._say = say

    def run(self, verify: Callable[[AcceptedTrial, Baseline], bool] = lambda accepted, baseline: True) -> SearchResult:
        """Quantize and time all configs, then evaluate them, fastest first, until `verify` returns True for one.

        Configs that are slower than the chosen one are not evaluated.
        """
        self._say(
            f"calibrating INT8 on {len(self._split.calibration)} training images, "
            f"timing {len(QUANTIZATION_CONFIGS)} configurations"
        )
        quantizer = _Quantizer(self._content, self._split.calibration)
        images = self._split.search_images
        candidates, failed = _quantize_all(quantizer, images)
        baseline, timed = _time(self._content, candidates, images)
        del candidates  # and their sessions
        evaluator = _Evaluator(quantizer, images, baseline, self._max_drop)
        accepted: list[AcceptedTrial] = []
        chosen: AcceptedTrial | None = None
        while timed and chosen is None:
            fastest, timed = _split_off_fastest(timed)
            best_first = _sort_best_first(list(filter(None, map(evaluator.find_accepted, fastest))))
            accepted += best_first
            chosen = next((trial for trial in best_first if verify(trial, baseline)), None)
        return SearchResult(baseline, (*evaluator.trials, *timed, *failed), tuple(accepted), chosen)


class _Quantizer:
    """One float32 graph in the forms that the configs start from; each is computed once, when it is needed."""

    def __init__(self, content: bytes, images: UInt8Array) -> None:
        self._content = content
        self._images = images
        self._ranges: dict[str, Any] = {}

    def quantize(self, config: QuantizationConfig, calibration: str) -> bytes:
        """Return the ONNX file without metadata. Raises QuantizationError."""
        if calibration not in self._ranges:
            self._ranges[calibration] = calibrate(self._taking_pixels, self._images, calibration)
        return int8_from_onnx(self._source(config), config, self._ranges[calibration], self._means)

    def _source(self, config: QuantizationConfig) -> onnx.ModelProto:
        if config.operators == "weights":
            return self._fused
        return self._taking_pixels if config.ends == "int8" else self._taking_floats

    @cached_property
    def _fused(self) -> onnx.ModelProto:
        return fuse(self._content)

    @cached_property
    def _taking_pixels(self) -> onnx.ModelProto:
        return rewrite_for_quantization(self._fused, takes_pixels=True)

    @cached_property
    def _taking_floats(self) -> onnx.ModelProto:
        return rewrite_for_quantization(self._fused, takes_pixels=False)

    @cached_property
    def _means(self) -> dict[str, Float64Array]:
        return measure_input_means(self._taking_pixels, self._images)


class _Evaluator:
    """Compares quantized graphs with the baseline, and records each trial."""

    def __init__(self, quantizer: _Quantizer, images: SearchImages, baseline: Baseline, max_drop: float) -> None:
        self._quantizer = quantizer
        self._images = images
        self._baseline = baseline
        self._max_drop = max_drop
        self.trials: list[Trial] = []

    def find_accepted(self, timed: Trial) -> AcceptedTrial | None:
        """Evaluate a timed config with one calibration after the other, until it loses little enough."""
        for calibration in CALIBRATIONS if timed.config.operators != "weights" else CALIBRATIONS[:1]:
            try:
                content = self._quantizer.quantize(timed.config, calibration)
                self.trials.append(self._evaluate(replace(timed, calibration=calibration), content))
            except QuantizationError as error:
                self.trials.append(Trial(timed.config, calibration, error=str(error)))
                continue
            if self._is_accepted(self.trials[-1]):
                return AcceptedTrial(self.trials[-1], content)
        return None

    def _evaluate(self, timed: Trial, content: bytes) -> Trial:
        with onnxruntime_errors_as_quantization_errors():
            logits = Graph(content).compute_logits(self._images.pixels)
        return replace(
            timed,
            size_bytes=len(content),
            accuracy=_accuracy(logits, self._images),
            agreement=float((logits.argmax(1) == self._baseline.logits.argmax(1)).mean()),
        )

    def _is_accepted(self, trial: Trial) -> bool:
        assert trial.accuracy is not None
        assert trial.agreement is not None
        drop = 100 * (self._baseline.accuracy - trial.accuracy)
        return drop <= self._max_drop + 1e-9 and trial.agreement >= MIN_AGREEMENT


@dataclass(frozen=True)
class _Candidate:
    """A quantized graph to be timed, with the first calibration."""

    config: QuantizationConfig
    size_bytes: int
    graph: Graph


def _quantize_all(quantizer: _Quantizer, images: SearchImages) -> tuple[list[_Candidate], list[Trial]]:
    """Quantize with every config and run one image; return the graphs, and a trial for each failure."""
    candidates: list[_Candidate] = []
    failed: list[Trial] = []
    for config in QUANTIZATION_CONFIGS:
        try:
            content = quantizer.quantize(config, CALIBRATIONS[0])
            with onnxruntime_errors_as_quantization_errors():
                graph = Graph(content, usable_cores())
                graph.run(images.pixels[:1])
        except QuantizationError as error:
            failed.append(Trial(config, CALIBRATIONS[0], error=str(error)))
        else:
            candidates.append(_Candidate(config, len(content), graph))
    return candidates, failed


def _time(content: bytes, candidates: list[_Candidate], images: SearchImages) -> tuple[Baseline, list[Trial]]:
    """Time one image on the float32 graph and on the candidates; return the baseline, and the trials, fastest first."""
    float32 = Graph(content, usable_cores())
    logits = float32.compute_logits(images.pixels)
    graphs = [float32, *(candidate.graph for candidate in candidates)]
    latencies_ms = measure_latencies_ms([partial(graph.run, images.pixels[:1]) for graph in graphs])
    trials = [
        Trial(candidate.config, CALIBRATIONS[0], candidate.size_bytes, latency_ms)
        for candidate, latency_ms in zip(candidates, latencies_ms[1:], strict=True)
    ]
    return Baseline(latencies_ms[0], _accuracy(logits, images), logits), sorted(trials, key=_latency_ms)


def _latency_ms(trial: Trial) -> float:
    assert trial.latency_ms is not None
    return trial.latency_ms


def _split_off_fastest(timed: list[Trial]) -> tuple[list[Trial], list[Trial]]:
    """Split trials, fastest first, into those that are as fast as the first one and the others."""
    limit_ms = _EQUAL_LATENCY * _latency_ms(timed[0])
    fastest = [trial for trial in timed if _latency_ms(trial) <= limit_ms]
    return fastest, timed[len(fastest) :]


def _sort_best_first(accepted: Sequence[AcceptedTrial]) -> list[AcceptedTrial]:
    """Sort by agreement with float32; among those that agree equally, the smallest comes first."""
    waiting, best_first = list(accepted), []
    while waiting:
        highest = max(candidate.trial.agreement or 0 for candidate in waiting)
        equal = [candidate for candidate in waiting if (candidate.trial.agreement or 0) >= highest - _EQUAL_AGREEMENT]
        best_first.append(min(equal, key=lambda candidate: len(candidate.content)))
        waiting.remove(best_first[-1])
    return best_first


def _accuracy(logits: Float32Array, images: SearchImages) -> float:
    return float((logits.argmax(1) == images.targets).mean())
