"""Calibration: the range of each activation of a float32 graph, from real images.

The ranges of minmax hold every value. Percentile and entropy cut values off, for finer steps; both start from the same
histograms, which are counted once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator
from onnxruntime.quantization.calibrate import HistogramCollector, TensorsData

from clf_export.exporters.module import INPUT
from clf_export.quantize.graph import run_for_inner_values
from clf_export.quantize.int8 import QUANTIZED_OPERATORS
from clf_export.quiet import quiet
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import Float32Array

CALIBRATIONS = ("minmax", "percentile", "entropy")

Int64Array = npt.NDArray[np.int64]

_BATCH = 8
# onnxruntime's defaults. Entropy has fewer bins, each of which is the sum of several.
_BINS, _ENTROPY_BINS, _PERCENTILE = 2048, 128, 99.999


class Calibration:
    """The ranges of one graph by each method; each is computed once, when it is needed."""

    def __init__(self, model: onnx.ModelProto, pixels: UInt8Array) -> None:
        """Store a float32 graph, and the images, uint8 (N, H, W, C)."""
        self._model = model
        self._pixels = pixels
        self._ranges: dict[str, Any] = {}

    def ranges(self, method: str) -> Any:
        """Return the range of each activation, in onnxruntime's own type; `method` is one of CALIBRATIONS."""
        if method not in self._ranges:
            self._ranges[method] = self._compute_minmax() if method == "minmax" else self._compute_from_counts(method)
        return self._ranges[method]

    def _compute_minmax(self) -> Any:
        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder, "model.onnx")
            onnx.save(self._model, path)
            calibrator = create_calibrator(
                path,
                sorted(QUANTIZED_OPERATORS),
                augmented_model_path=str(Path(folder, "augmented.onnx")),
                calibrate_method=CalibrationMethod.MinMax,
                # A one-sided range, as after a ReLU, must not spend a bit on the other side.
                extra_options={"symmetric": False},
            )
            calibrator.collect_data(_CalibrationImages(self._pixels))
            return calibrator.compute_data()

    def _compute_from_counts(self, method: str) -> Any:
        bins = _BINS if method == "percentile" else _ENTROPY_BINS
        collector = HistogramCollector(method, False, bins, _ENTROPY_BINS, _PERCENTILE, "same")
        for name, counts in self._counts.items():
            lowest, highest = self._limits[name]
            largest = np.maximum(-lowest, highest)
            edges = np.linspace(-largest, largest, bins + 1, dtype=np.float32)
            collector.histogram_dict[name] = (counts.reshape(bins, -1).sum(1), edges, lowest, highest, largest)
        is_percentile = method == "percentile"
        with quiet():
            computed = collector.compute_collection_result()
        return TensorsData(CalibrationMethod.Percentile if is_percentile else CalibrationMethod.Entropy, computed)

    @cached_property
    def _limits(self) -> Mapping[str, tuple[np.float32, np.float32]]:
        """The smallest and the largest value of each activation."""
        return {
            name: (np.float32(np.min(data.range_value[0])), np.float32(np.max(data.range_value[1])))
            for name, data in self.ranges("minmax").items()
        }

    @cached_property
    def _counts(self) -> dict[str, Int64Array]:
        """How many values of each activation are in each of _BINS bins of equal width around zero.

        np.histogram takes four times as long, and onnxruntime's collector calls it once for each method, on a histogram
        that grows with each larger value. Here the largest value is known before.
        """
        largest = {name: float(max(-lowest, highest)) for name, (lowest, highest) in self._limits.items()}
        counts = {name: np.zeros(_BINS, np.int64) for name in largest}
        for values_by_name in run_for_inner_values(self._model, list(largest), self._pixels):
            for name, values in values_by_name.items():
                counts[name] += count_in_bins(values, largest[name])
        return counts


def count_in_bins(values: Float32Array, largest: float) -> Int64Array:
    """Count values of any shape in _BINS bins of equal width from -largest to largest."""
    if largest == 0:
        return np.bincount([_BINS // 2], [values.size], _BINS).astype(np.int64)
    scaled = values.ravel() * np.float32(_BINS / (2 * largest))
    scaled += np.float32(_BINS / 2)
    # Truncation is the floor, since no value is negative but for rounding.
    indices = scaled.astype(np.intp)
    np.clip(indices, 0, _BINS - 1, out=indices)
    return np.bincount(indices, minlength=_BINS)


class _CalibrationImages(CalibrationDataReader):  # type: ignore[misc]
    """Batches of uint8 (N, H, W, C), as onnxruntime's calibrators read them."""

    def __init__(self, pixels: UInt8Array) -> None:
        self._batches = iter([pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH)])

    def get_next(self) -> dict[str, UInt8Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}
