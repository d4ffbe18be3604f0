"""What a run found, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from clf_batch.report.parts import CompleteRun

BINS = 10  # of the histogram of scores


@dataclass(frozen=True)
class Counts:
    """The numbers of a run.

    Attributes:
        images: All rows.
        labels: Label → images, the most frequent first.
        failures: Kind of error → images.
        histogram: The number of scores in each tenth of 0..1.
    """

    images: int
    labels: dict[str, int]
    failures: dict[str, int]
    histogram: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as an object of JSON."""
        return {
            "images": self.images,
            "labels": self.labels,
            "failures": self.failures,
            "score_histogram": list(self.histogram),
        }


def count_results(run: CompleteRun) -> Counts:
    """Read the results of a run, one file at a time. Raises DataError, MachineError, OSError."""
    images = 0
    labels: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    histogram = np.zeros(BINS, np.int64)
    for table in run.tables(("label", "score", "error_kind")):
        images += table.num_rows
        for counter, column in ((labels, "label"), (failures, "error_kind")):
            for entry in table.column(column).drop_null().value_counts().to_pylist():
                counter[entry["values"]] += entry["counts"]
        histogram += np.histogram(table.column("score").drop_null().to_numpy(), BINS, (0.0, 1.0))[0]
    return Counts(images, dict(labels.most_common()), dict(failures.most_common()), tuple(histogram.tolist()))
