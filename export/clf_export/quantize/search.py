"""Which INT8 is taken: the fastest of all ways that keeps the answers, measured on this machine.

Of those that are as fast, the one that agrees most with float32; of those that agree as much, the smallest. How the
ranges are found does not change the speed, so the ways are timed with the first calibration, and the others are
tried for a way that loses too much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from clf_export.latency import medians_ms
from clf_export.quantize.bias_correction import measure_input_means
from clf_export.quantize.graph import Graph, fuse
from clf_export.quantize.int8 import CALIBRATIONS, QUANTIZATION_CONFIGS, QuantizationConfig, calibrate, int8_from_onnx
from clf_export.quantize.rewrite import rewrite_for_quantization
from clf_export.test_split import TestSplit
from clf_runtime.machine import usable_cores
from clf_runtime.session import Float32Array

# Of the images, so many must keep the label that they had. A network that is right for 80 % of them may answer
# the others differently without losing accuracy, but then it is another network.
MIN_AGREEMENT = 0.95

# Two medians that are nearer than this are the same time, and two shares of some hundred images the same share.
_AS_FAST = 1.05
_AS_MUCH = 0.005


@dataclass(frozen=True)
class Trial:
    """One way, and what was measured of it: on images that neither the network nor the calibration saw."""

    config: str
    calibration: str
    size_bytes: int
    latency_ms: float
    accuracy: float | None = None  # None: not measured, since a faster one was good enough
    agreement: float | None = None  # with float32, of labels


@dataclass(frozen=True)
class AcceptedTrial:
    """A way that is good enough."""

    content: bytes
    trial: Trial


class QuantizationSearch:
    """The ways of quantising one graph, fastest first."""

    def __init__(self, content: bytes, images: TestSplit, say: Callable[[str], object] = lambda message: None) -> None:
        """Quantise `content`, a float32 ONNX file without metadata, in every way, and time them beside it."""
        self._fused = fuse(content)
        self._quantizable = {
            ends: rewrite_for_quantization(self._fused, takes_pixels=ends == "int8") for ends in ("int8", "float")
        }
        self._images = images
        self._ranges: dict[str, Any] = {}
        say(
            f"calibrating INT8 on {len(images.calibration)} training images, "
            f"timing {len(QUANTIZATION_CONFIGS)} configurations"
        )
        self._means = measure_input_means(self._quantizable["int8"], images.calibration)
        floats = Graph(content, usable_cores())
        self._logits = floats.gather_logits(images.search_images.pixels)
        made = {
            config: bytes_
            for config in QUANTIZATION_CONFIGS
            if (bytes_ := self._made(config, CALIBRATIONS[0])) is not None
        }
        first = images.search_images.pixels[:1]
        graphs = [floats, *(Graph(each, usable_cores()) for each in made.values())]
        times = medians_ms([lambda graph=graph: graph.run(first) for graph in graphs])  # type: ignore[misc]
        self.float_ms = times[0]
        self.float_accuracy = self._accuracy(self._logits)
        timed = [
            (Trial(str(config), CALIBRATIONS[0], len(bytes_), ms), config)
            for (config, bytes_), ms in zip(made.items(), times[1:], strict=True)
        ]
        self._timed = sorted(timed, key=lambda each: each[0].latency_ms)
        self.seen: list[Trial] = []

    def candidates(self, max_drop: float) -> Iterator[AcceptedTrial]:
        """Give the ways within `max_drop` percentage points of accuracy and the agreement floor, the best first."""
        left = self._timed
        while left:
            as_fast = [each for each in left if each[0].latency_ms <= _AS_FAST * left[0][0].latency_ms]
            left = left[len(as_fast) :]
            trial = [self._good_enough(config, timed, max_drop) for timed, config in as_fast]
            yield from _best_first([each for each in trial if each is not None])

    def _good_enough(self, config: QuantizationConfig, timed: Trial, max_drop: float) -> AcceptedTrial | None:
        """Give a way with the first calibration that loses little enough."""
        for calibration in CALIBRATIONS if config.operators != "weights" else CALIBRATIONS[:1]:
            content = self._made(config, calibration)
            if content is None:
                continue
            logits = Graph(content).gather_logits(self._images.search_images.pixels)
            accuracy = self._accuracy(logits)
            agreement = float((logits.argmax(1) == self._logits.argmax(1)).mean())
            trial = Trial(timed.config, calibration, len(content), timed.latency_ms, accuracy, agreement)
            self.seen.append(trial)
            within = 100 * (self.float_accuracy - accuracy) <= max_drop + 1e-9
            if within and agreement >= MIN_AGREEMENT:
                return AcceptedTrial(content, trial)
        return None

    @property
    def table(self) -> list[Trial]:
        """All that was measured so far: the ways tried, then those that were only timed."""
        tried = {each.config for each in self.seen}
        return [*self.seen, *(timed for timed, _ in self._timed if timed.config not in tried)]

    def _made(self, config: QuantizationConfig, calibration: str) -> bytes | None:
        if calibration not in self._ranges:
            self._ranges[calibration] = calibrate(self._quantizable["int8"], self._images.calibration, calibration)
        try:
            model = self._fused if config.operators == "weights" else self._quantizable[config.ends]
            return int8_from_onnx(model, config, self._ranges[calibration], self._means)
        except Exception:  # the quantiser's own faults have no common base: a way that it cannot go is not a candidate
            return None

    def _accuracy(self, logits: Float32Array) -> float:
        return float((logits.argmax(1) == self._images.search_images.targets).mean())


def _best_first(good: list[AcceptedTrial]) -> Iterator[AcceptedTrial]:
    """Of those that agree with float32 as much as the best one left, the smallest comes first."""
    while good:
        most = max(each.trial.agreement or 0 for each in good)
        as_much = [each for each in good if (each.trial.agreement or 0) >= most - _AS_MUCH]
        best = min(as_much, key=lambda each: each.trial.size_bytes)
        good.remove(best)
        yield best


def lines(search: QuantizationSearch) -> Iterable[str]:
    """Give what was measured, as a table to print."""
    rows = [("way", "calibration", "size", "latency", "accuracy", "agreement")]
    rows.append(("float32", "", "", f"{search.float_ms:.2f} ms", f"{search.float_accuracy:.2%}", ""))
    for each in search.table:
        accuracy = "" if each.accuracy is None else f"{each.accuracy:.2%}"
        agreement = "" if each.agreement is None else f"{each.agreement:.2%}"
        size = f"{each.size_bytes / 1e6:.2f} MB"
        rows.append((each.config, each.calibration, size, f"{each.latency_ms:.2f} ms", accuracy, agreement))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
