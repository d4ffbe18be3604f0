"""From the probabilities of the frames to what is said of each: its own label, or the smoothed one of the stream."""

from __future__ import annotations

from dataclasses import dataclass, replace

from clf_runtime.classifier import Classifier
from clf_runtime.predictions import UNKNOWN, Prediction
from clf_runtime.session import Float32Array
from clf_runtime.streams.smoothing import LabelSwitch, Smoother


@dataclass(frozen=True)
class LabelOptions:
    """Which labels a stream has."""

    top: int
    threshold: float  # 0..1
    smooth_s: float  # the time constant; 0 for the label of each frame
    only_changes: bool


class StreamLabels:
    """The predictions of a stream."""

    def __init__(self, classifier: Classifier, options: LabelOptions) -> None:
        """Store the model and the options."""
        self._classifier = classifier
        self._options = options
        self._smoother = Smoother(options.smooth_s)
        self._switch = LabelSwitch(options.threshold)
        self._has_label = False

    def update(self, probabilities: Float32Array, time_s: float) -> Prediction | None:
        """Add a frame.

        Args:
            probabilities: Those of the frame, (classes,).
            time_s: When it arrived.

        Returns:
            The prediction to write; None if only changes are, and the label is the same.
        """
        if not self._options.smooth_s and not self._options.only_changes:
            return self._rank(probabilities).apply_threshold(self._options.threshold)
        smoothed = self._smoother.add(probabilities, time_s)
        before, has_label = self._switch.index, self._has_label
        index = self._switch.update(smoothed)
        self._has_label = True
        if self._options.only_changes and has_label and index == before:
            return None
        prediction = self._rank(smoothed)
        if index is None:
            return replace(prediction, label=UNKNOWN, index=None)
        return replace(prediction, label=self._classifier.spec.labels[index], index=index, score=float(smoothed[index]))

    def _rank(self, probabilities: Float32Array) -> Prediction:
        return self._classifier.prediction(None, self._classifier.rank(probabilities[None], self._options.top)[0])
