"""Counts and latencies of a stream that may run for years, in constant memory."""

from __future__ import annotations

import math
import time
from collections import Counter

# Latencies are counted in classes whose limits differ by 2 %.
_CLASS_RATIO = math.log(1.02)


class Latencies:
    """A histogram of durations."""

    def __init__(self) -> None:
        """Begin without a duration."""
        self._counts: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[math.ceil(math.log(max(seconds, 1e-6)) / _CLASS_RATIO)] += 1

    def percentile(self, percent: float) -> float:
        """Return the duration that so many percent do not exceed, by nearest rank and at most 2 % too large."""
        rank = math.ceil(self._counts.total() * percent / 100)
        for number in sorted(self._counts):
            rank -= self._counts[number]
            if rank <= 0:
                return math.exp(number * _CLASS_RATIO)
        return 0.0


class StreamStatistics:
    """Counts of a stream in progress.

    Attributes:
        provider: onnxruntime's name of the execution provider.
        frames: Frames that were classified.
        dropped: Frames that were not, because a newer one was there.
        damaged: Frames that could not be split off the stream or decoded.
        latencies: From a frame's last byte to its result, written.
    """

    def __init__(self, provider: str) -> None:
        """Start counting; the clock starts with the first frame."""
        self.provider = provider
        self.frames = 0
        self.dropped = 0
        self.damaged = 0
        self.latencies = Latencies()
        self._first_arrived = 0.0
        self._last_written = 0.0

    def count(self, arrived: float) -> None:
        """Count a frame whose result is written now."""
        self._last_written = time.monotonic()
        if not self.frames:
            self._first_arrived = arrived
        self.frames += 1
        self.latencies.add(self._last_written - arrived)

    def rate(self) -> float:
        """Return the frames per second, from the arrival of the first one to the last result."""
        return self.frames / max(self._last_written - self._first_arrived, 1e-9)

    def __str__(self) -> str:
        parts = [
            f"{self.frames:,} {'frame' if self.frames == 1 else 'frames'}",
            f"{self.dropped:,} dropped",
            f"{self.damaged:,} damaged",
        ]
        if self.frames:
            p50_ms, p95_ms = (self.latencies.percentile(percent) * 1000 for percent in (50, 95))
            parts += [f"{self.rate():.3g} frames/s", f"latency {p50_ms:.3g} ms (p50), {p95_ms:.3g} ms (p95)"]
        return f"{', '.join(parts)}, on {self.provider}"
