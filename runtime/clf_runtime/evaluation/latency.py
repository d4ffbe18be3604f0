"""The latency of one image at a time, as a device sees it that classifies images as they come."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

from clf_runtime.classifier import Classifier
from clf_runtime.errors import ImageError
from clf_runtime.preprocess import pixels_from_image
from clf_runtime.sources import ImageSource

# Enough for a median; clf-bench measures percentiles, over several processes.
LATENCY_IMAGES = 30
_MAX_SECONDS = 3.0


@dataclass(frozen=True)
class Latency:
    """Medians over some images, each classified by itself with all cores.

    Attributes:
        images: How many images were measured; all medians are 0 without any.
        preprocess_ms: Reading, decoding and resizing.
        inference_ms: The graph.
    """

    images: int
    preprocess_ms: float
    inference_ms: float

    @property
    def total_ms(self) -> float:
        """The sum of both medians: the stages of an image that met a busy machine do not count."""
        return self.preprocess_ms + self.inference_ms


def measure_latency(classifier: Classifier, sources: Iterable[ImageSource]) -> Latency:
    """Classify readable images one at a time, for at most 3 seconds; the first one is a warm-up.

    Args:
        classifier: With one worker, so that one image uses all cores.
        sources: The images.

    Raises:
        MachineError: The device fails.
    """
    preprocess_ms: list[float] = []
    inference_ms: list[float] = []
    started = time.perf_counter()
    for source in sources:
        before = time.perf_counter()
        if isinstance(source.content, ImageError):
            continue
        try:
            pixels = pixels_from_image(source.content, classifier.spec.preprocess)
        except ImageError:
            continue  # it was readable a moment ago
        decoded = time.perf_counter()
        classifier.run(pixels[None])
        finished = time.perf_counter()
        preprocess_ms.append(1000 * (decoded - before))
        inference_ms.append(1000 * (finished - decoded))
        if finished - started > _MAX_SECONDS:
            break
    # With a single image, its warm-up is all there is.
    preprocess_ms, inference_ms = preprocess_ms[1:] or preprocess_ms, inference_ms[1:] or inference_ms
    medians = (statistics.median(values or [0.0]) for values in (preprocess_ms, inference_ms))
    return Latency(len(preprocess_ms), *medians)
