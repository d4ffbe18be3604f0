"""Which INT8 is taken: the fastest of all ways that keeps the answers, measured on this machine.

Of those that are as fast, the one that agrees most with float32; of those that agree as much, the smallest. How the
ranges are found does not change the speed, so the ways are timed with the first calibration, and the others are
tried for a way that loses too much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from clf_export.bias_correction import means_of
from clf_export.graphs import Graph, fused
from clf_export.held_out import HeldOut
from clf_export.int8_from_onnx import CALIBRATIONS, WAYS, Way, int8_from_onnx, ranges_of
from clf_export.latency import medians_ms
from clf_export.quantizable import quantizable
from clf_runtime.machine import usable_cores
from clf_runtime.session import Float32Array

# Of the pictures, so many must keep the label that they had. A network that is right for 80 % of them may answer
# the others differently without losing accuracy, but then it is another network.
AGREEMENT_FLOOR = 0.95

# Two medians that are nearer than this are the same time, and two shares of some hundred pictures the same share.
_AS_FAST = 1.05
_AS_MUCH = 0.005


@dataclass(frozen=True)
class Judged:
    """One way, and what was measured of it: on pictures that neither the network nor the calibration saw."""

    way: str
    calibration: str
    size_bytes: int
    latency_ms: float
    accuracy: float | None = None  # None: not measured, since a faster one was good enough
    agreement: float | None = None  # with float32, of labels


@dataclass(frozen=True)
class Candidate:
    """A way that is good enough."""

    content: bytes
    judged: Judged


class Search:
    """The ways of quantising one graph, fastest first."""

    def __init__(self, content: bytes, pictures: HeldOut, say: Callable[[str], object] = lambda message: None) -> None:
        """Quantise `content`, a float32 ONNX file without metadata, in every way, and time them beside it."""
        self._fused = fused(content)
        self._quantizable = {ends: quantizable(self._fused, takes_pixels=ends == "int8") for ends in ("int8", "float")}
        self._pictures = pictures
        self._ranges: dict[str, Any] = {}
        say(f"calibrating INT8 on {len(pictures.calibration)} training pictures, and timing {len(WAYS)} ways of it")
        self._means = means_of(self._quantizable["int8"], pictures.calibration)
        floats = Graph(content, usable_cores())
        self._logits = floats.all_logits(pictures.judging.pixels)
        made = {way: bytes_ for way in WAYS if (bytes_ := self._made(way, CALIBRATIONS[0])) is not None}
        first = pictures.judging.pixels[:1]
        graphs = [floats, *(Graph(each, usable_cores()) for each in made.values())]
        times = medians_ms([lambda graph=graph: graph.logits(first) for graph in graphs])  # type: ignore[misc]
        self.float_ms = times[0]
        self.float_accuracy = self._accuracy(self._logits)
        timed = [
            (Judged(str(way), CALIBRATIONS[0], len(bytes_), ms), way)
            for (way, bytes_), ms in zip(made.items(), times[1:], strict=True)
        ]
        self._timed = sorted(timed, key=lambda each: each[0].latency_ms)
        self.seen: list[Judged] = []

    def candidates(self, max_drop: float) -> Iterator[Candidate]:
        """Give the ways within `max_drop` percentage points of accuracy and the agreement floor, the best first."""
        left = self._timed
        while left:
            as_fast = [each for each in left if each[0].latency_ms <= _AS_FAST * left[0][0].latency_ms]
            left = left[len(as_fast) :]
            judged = [self._good_enough(way, timed, max_drop) for timed, way in as_fast]
            yield from _best_first([each for each in judged if each is not None])

    def _good_enough(self, way: Way, timed: Judged, max_drop: float) -> Candidate | None:
        """Give a way with the first calibration that loses little enough."""
        for calibration in CALIBRATIONS if way.operators != "weights" else CALIBRATIONS[:1]:
            content = self._made(way, calibration)
            if content is None:
                continue
            logits = Graph(content).all_logits(self._pictures.judging.pixels)
            accuracy = self._accuracy(logits)
            agreement = float((logits.argmax(1) == self._logits.argmax(1)).mean())
            judged = Judged(timed.way, calibration, len(content), timed.latency_ms, accuracy, agreement)
            self.seen.append(judged)
            within = 100 * (self.float_accuracy - accuracy) <= max_drop + 1e-9
            if within and agreement >= AGREEMENT_FLOOR:
                return Candidate(content, judged)
        return None

    @property
    def table(self) -> list[Judged]:
        """All that was measured so far: the ways tried, then those that were only timed."""
        tried = {each.way for each in self.seen}
        return [*self.seen, *(timed for timed, _ in self._timed if timed.way not in tried)]

    def _made(self, way: Way, calibration: str) -> bytes | None:
        if calibration not in self._ranges:
            self._ranges[calibration] = ranges_of(self._quantizable["int8"], self._pictures.calibration, calibration)
        try:
            model = self._fused if way.operators == "weights" else self._quantizable[way.ends]
            return int8_from_onnx(model, way, self._ranges[calibration], self._means)
        except Exception:  # the quantiser's own faults have no common base: a way that it cannot go is not a candidate
            return None

    def _accuracy(self, logits: Float32Array) -> float:
        return float((logits.argmax(1) == self._pictures.judging.targets).mean())


def _best_first(good: list[Candidate]) -> Iterator[Candidate]:
    """Of those that agree with float32 as much as the best one left, the smallest comes first."""
    while good:
        most = max(each.judged.agreement or 0 for each in good)
        as_much = [each for each in good if (each.judged.agreement or 0) >= most - _AS_MUCH]
        best = min(as_much, key=lambda each: each.judged.size_bytes)
        good.remove(best)
        yield best


def lines(search: Search) -> Iterable[str]:
    """Give what was measured, as a table to print."""
    rows = [("way", "calibration", "size", "latency", "accuracy", "agreement")]
    rows.append(("float32", "", "", f"{search.float_ms:.2f} ms", f"{search.float_accuracy:.2%}", ""))
    for each in search.table:
        accuracy = "" if each.accuracy is None else f"{each.accuracy:.2%}"
        agreement = "" if each.agreement is None else f"{each.agreement:.2%}"
        size = f"{each.size_bytes / 1e6:.2f} MB"
        rows.append((each.way, each.calibration, size, f"{each.latency_ms:.2f} ms", accuracy, agreement))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
