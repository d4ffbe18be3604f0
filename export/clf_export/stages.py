"""The stages of an export, and how long the rest of them takes.

A stage costs as many times what one image costs in eager PyTorch, which the first stage measures, and some seconds that
do not depend on the network. The numbers are those of EfficientNet-Lite0 at 224 pixels on 2 cores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clf_export.formats import Target

_FLOAT64_COST = 5.0 * 32  # 32 images, each five times as expensive as in float32
# The parity check runs some images in four batch sizes.
_PARITY_IMAGES = 3 * 128
_ONNXRUNTIME_COST = 0.4  # of an image, relative to eager PyTorch
_SEARCH_IMAGES = 4500.0  # calibration and evaluation
_SEARCH_S = 10.0  # quantizing and timing
_FIRST_GRAPH_S, _FILE_S = 4.0, 1.5  # torch's exporter; the self-test and the latencies


@dataclass(frozen=True)
class Stage:
    """One stage, and what it costs."""

    description: str
    images: float  # in eager PyTorch, as many images take as long
    seconds: float  # of work that does not depend on the network


def plan_stages(folder: Path, targets: Sequence[Target], images: int, split: str) -> tuple[Stage, ...]:
    """Return the stages of an export: PyTorch's outputs for `images` images of a test split, then the files."""
    reference = f"running PyTorch on the test split ({images:,} images, {split})"
    stages = [Stage(reference, images + _FLOAT64_COST, 0.0)]
    for target in targets:
        cost = _ONNXRUNTIME_COST * (images + _PARITY_IMAGES)
        seconds = _FILE_S + (_FIRST_GRAPH_S if len(stages) == 1 else 0.0)
        if target.precision == "int8":
            cost, seconds = cost + _ONNXRUNTIME_COST * _SEARCH_IMAGES, seconds + _SEARCH_S
        stages.append(Stage(f"exporting {folder / target.file} and checking its parity", cost, seconds))
    return tuple(stages)


class Clock:
    """Estimates the time left from the stages and from the time since the start."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        """Store the stages; the first begins with `start_stage`."""
        self._stages = stages
        self._current = -1
        self._share = 0.0
        self._image_s: float | None = None  # of one image in eager PyTorch
        self._started = self._stage_started = time.monotonic()

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return self._stages[self._current]

    def start_stage(self) -> None:
        """Begin the next stage."""
        if self._current == 0:
            self.advance(1.0)
        self._current, self._share = self._current + 1, 0.0
        self._stage_started = time.monotonic()

    def advance(self, share: float) -> None:
        """Set the share of the current stage that is done. The first stage measures what an image costs."""
        self._share = share
        if self._current == 0 and share > 0:
            self._image_s = (time.monotonic() - self._stage_started) / (share * self.stage.images)

    def estimate_left_s(self) -> float | None:
        """Return the seconds left, or None while nothing was measured."""
        if self._image_s is None:
            return None
        current, *rest = (stage.images * self._image_s + stage.seconds for stage in self._stages[self._current :])
        return current * (1 - self._share) + sum(rest)

    def estimate_share(self) -> float:
        """Return the share of the whole export that is done, by time."""
        left_s = self.estimate_left_s()
        elapsed_s = time.monotonic() - self._started
        return 0.0 if left_s is None else elapsed_s / max(elapsed_s + left_s, 1e-9)
