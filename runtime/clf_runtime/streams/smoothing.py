"""Labels that change when the scene does, not with every frame: smoothing over time, and hysteresis.

docs/streams.md explains the mathematics.
"""

from __future__ import annotations

import math

import numpy as np

from clf_runtime.session import Float32Array

# By how much another label must be better, and the score worse than the threshold, before the label changes.
HYSTERESIS = 0.1


class Smoother:
    """Exponential smoothing of probabilities, by the time between frames."""

    def __init__(self, time_constant_s: float) -> None:
        """Store the time constant; 0 leaves the probabilities as they are."""
        self._time_constant_s = time_constant_s
        self._smoothed: Float32Array | None = None
        self._time = 0.0

    def add(self, probabilities: Float32Array, time: float) -> Float32Array:
        """Add the probabilities of a frame, (classes,), at a time in seconds; return the smoothed ones."""
        elapsed_s, self._time = time - self._time, time
        if self._smoothed is None or not self._time_constant_s or not np.isfinite(self._smoothed).all():
            self._smoothed = probabilities
        else:
            weight = np.float32(-math.expm1(-elapsed_s / self._time_constant_s))
            self._smoothed = self._smoothed + weight * (probabilities - self._smoothed)
        return self._smoothed


class LabelSwitch:
    """The label of a stream, which changes only if another one is clearly better."""

    def __init__(self, threshold: float, hysteresis: float = HYSTERESIS) -> None:
        """Store the lowest score of a label, and by how much a new label must be better."""
        self._threshold = threshold
        self._hysteresis = hysteresis
        self.index: int | None = None  # None below the threshold

    def update(self, scores: Float32Array) -> int | None:
        """Return the class for these scores, (classes,), or None for unknown."""
        best = int(scores.argmax())
        limit = max(float(scores[best]), self._threshold) - self._hysteresis
        if self.index is None or not scores[self.index] >= limit:
            self.index = best if scores[best] >= self._threshold else None
        return self.index
