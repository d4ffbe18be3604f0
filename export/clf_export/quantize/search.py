"""The choice of the INT8 config: the fastest one that keeps the answers, measured on this machine.

Among equally fast configs the one that agrees most with float32 wins, and among equally agreeing ones the smallest. The
calibration does not change the speed, so configs are timed with the first one; the others are tried for a config that
loses too much accuracy. What cannot change the choice is not measured: configs that are much slower than the fastest
are timed briefly, and a trial ends when it has lost more labels than it may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import onnx

from clf_export.latency import measure_latencies_ms
from clf_export.parity.limits import MIN_AGREEMENT
from clf_export.quantize.bias_correction import Float64Array, measure_input_means
from clf_export.quantize.calibration import CALIBRATIONS, Calibration
from clf_export.quantize.graph import BATCH, Graph, fuse
from clf_export.quantize.int8 import (
    QUANTIZATION_CONFIGS,
    QuantizationConfig,
    QuantizationError,
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
# All configs are timed briefly, for 3 rounds; those within _NEAR of the fastest then for longer. Timed twice on a busy
# machine, brief medians of one graph differed by up to a tenth.
_BRIEF_S, _TIMED_S = 0.05, 0.5
_NEAR = 1.3
# Files up to this size are kept from the timing to the evaluation: quantizing again takes a second for each.
_MAX_KEPT_BYTES = 16 << 20
# Shares of the search's time, for the progress: EfficientNet-Lite0 at 224 pixels.
_CALIBRATION_ENDS, _QUANTIZATION_ENDS, _TIMING_ENDS = 0.3, 0.6, 0.8


class QuantizationSearch:
    """Quantizes one graph with every config, times them all, and evaluates the fastest ones."""

    def __init__(
        self,
        content: bytes,
        split: TestSplit,
        max_drop: float,
        on_progress: Callable[[float], object] = lambda share: None,
    ) -> None:
        """Store what is searched.

        Args:
            content: a float32 ONNX file without metadata.
            split: the images to calibrate and to compare with.
            max_drop: the accuracy drop, in percentage points, up to which a config is accepted.
            on_progress: called with the share that is done; what follows the timing is usually short.
        """
        self._content = content
        self._split = split
        self._max_drop = max_drop
        self._on_progress = on_progress

    def run(self, verify: Callable[[AcceptedTrial, Baseline], bool] = lambda accepted, baseline: True) -> SearchResult:
        """Quantize and time all configs, then evaluate them, fastest first, until `verify` returns True for one.

        Configs that are slower than the chosen one are not evaluated.
        """
        quantizer = _Quantizer(self._content, self._split.calibration)
        images = self._split.search_images
        candidates, failed = _quantize_all(quantizer, images, self._on_progress)
        baseline, timed = _time(self._content, candidates, images)
        self._on_progress(_TIMING_ENDS)
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
        self._files: dict[QuantizationConfig, bytes] = {}  # with the first calibration

    def quantize(self, config: QuantizationConfig, calibration: str) -> bytes:
        """Return the ONNX file without metadata. Raises QuantizationError."""
        if calibration == CALIBRATIONS[0] and config in self._files:
            return self._files[config]
        ranges = self._calibration.ranges(calibration)
        content = int8_from_onnx(self._source(config), config, ranges, self._means)
        if calibration == CALIBRATIONS[0] and len(content) <= _MAX_KEPT_BYTES:
            self._files[config] = content
        return content

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
    def _calibration(self) -> Calibration:
        return Calibration(self._taking_pixels, self._images)

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
        expected = self._baseline.logits.argmax(1)
        agrees = np.ones(len(expected), bool)
        logits = np.empty_like(self._baseline.logits)
        with onnxruntime_errors_as_quantization_errors():
            graph = Graph(content)
            for start in range(0, len(expected), BATCH):
                batch = slice(start, start + BATCH)
                logits[batch] = graph.run(self._images.pixels[batch])[0]
                agrees[batch] = logits[batch].argmax(1) == expected[batch]
                if agrees.mean() < MIN_AGREEMENT and start + BATCH < len(expected):
                    # Too low even if all other labels agree.
                    return replace(timed, size_bytes=len(content), agreement=float(agrees.mean()))
        return replace(
            timed,
            size_bytes=len(content),
            accuracy=_accuracy(logits, self._images),
            agreement=float(agrees.mean()),
        )

    def _is_accepted(self, trial: Trial) -> bool:
        if trial.accuracy is None or trial.agreement is None:
            return False
        drop = 100 * (self._baseline.accuracy - trial.accuracy)
        return drop <= self._max_drop + 1e-9 and trial.agreement >= MIN_AGREEMENT


@dataclass(frozen=True)
class _Candidate:
    """A quantized graph to be timed, with the first calibration."""

    config: QuantizationConfig
    size_bytes: int
    graph: Graph


def _quantize_all(
    quantizer: _Quantizer, images: SearchImages, on_progress: Callable[[float], object]
) -> tuple[list[_Candidate], list[Trial]]:
    """Quantize with every config and run one image; return the graphs, and a trial for each failure."""
    candidates: list[_Candidate] = []
    failed: list[Trial] = []
    for index, config in enumerate(QUANTIZATION_CONFIGS):
        share = index / len(QUANTIZATION_CONFIGS)
        on_progress(share * _QUANTIZATION_ENDS + (1 - share) * _CALIBRATION_ENDS * (index > 0))
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
    calls = [partial(graph.run, images.pixels[:1]) for graph in (float32, *(each.graph for each in candidates))]
    latencies_ms = _time_calls_ms(calls)
    trials = [
        Trial(candidate.config, CALIBRATIONS[0], candidate.size_bytes, latency_ms)
        for candidate, latency_ms in zip(candidates, latencies_ms[1:], strict=True)
    ]
    return Baseline(latencies_ms[0], _accuracy(logits, images), logits), sorted(trials, key=_latency_ms)


def _time_calls_ms(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Return the latency of each call, measured longer for the first one and for those that may be the fastest."""
    latencies_ms = measure_latencies_ms(calls, _BRIEF_S)
    limit_ms = _NEAR * min(latencies_ms[1:], default=0.0)
    near = [index for index, latency_ms in enumerate(latencies_ms) if index == 0 or latency_ms <= limit_ms]
    longer = measure_latencies_ms([calls[index] for index in near], _TIMED_S)
    for index, latency_ms in zip(near, longer, strict=True):
        latencies_ms[index] = latency_ms
    return latencies_ms


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
