"""The result for one image, a prediction or a failure, and the output formats for a stream of results."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

from clf_runtime.errors import escape

# The label of a prediction below the threshold. Its index is None, in case a model has a class of that name.
UNKNOWN = "unknown"

_CSV_HEADER = ("path", "rank", "label", "index", "score", "provider", "error_kind", "error_message")


@dataclass(frozen=True)
class Score:
    """One label and its probability.

    Attributes:
        label: The class name.
        score: The probability, 0..1.
        index: The position of the label in `ModelSpec.labels`.
    """

    label: str
    score: float
    index: int | None = None


@dataclass(frozen=True)
class Prediction:
    """The result for an image that was classified.

    Attributes:
        path: The path of the image, as given; None if the image was not given as a path.
        label: The label with the highest score, or `"unknown"` after `apply_threshold`.
        index: The position of the label in `ModelSpec.labels`; None if the label is `"unknown"`.
        score: The probability of the label with the highest score, 0..1.
        top: The highest scores in descending order, as many as requested.
        provider: onnxruntime's name of the execution provider that ran the model.
    """

    path: str | None
    label: str
    index: int | None
    score: float
    top: tuple[Score, ...]
    provider: str

    def apply_threshold(self, threshold: float) -> Prediction:
        """Replace the label by `"unknown"` if the score is below a threshold.

        Args:
            threshold: The lowest score that is accepted, 0..1.

        Returns:
            This prediction, or a copy with the label `"unknown"` and no index. `score` and `top` stay the same.

        Examples:
            >>> prediction = Prediction("a.png", "cat", 3, 0.6, (Score("cat", 0.6),), "CPUExecutionProvider")
            >>> prediction.apply_threshold(0.5).label
            'cat'
            >>> prediction.apply_threshold(0.8).label
            'unknown'
        """
        return self if self.score >= threshold else replace(self, label=UNKNOWN, index=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the record that the formats jsonl and json contain, with scores rounded to 6 digits.

        A score that is not a number, because the graph computed NaN, is None: JSON has no NaN.
        """
        return {
            "path": self.path,
            "label": self.label,
            "index": self.index,
            "score": _json_number(self.score),
            "top": [{"label": row.label, "score": _json_number(row.score)} for row in self.top],
            "provider": self.provider,
        }


@dataclass(frozen=True)
class Failure:
    """The result for an image that could not be read.

    Attributes:
        path: The path of the image, as given; None if the image was not given as a path.
        kind: One of the kinds of `ImageError`, such as `"not-found"` or `"damaged"`.
        message: What is wrong with the image, in one line.
    """

    path: str | None
    kind: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Return the record that the formats jsonl and json contain."""
        return {"path": self.path, "error": {"kind": self.kind, "message": self.message}}

    def __str__(self) -> str:
        return f"{_escape(self.path)}: {self.kind}: {self.message}"


Result = Prediction | Failure


class TextFormatter:
    """Text: one line per prediction. A failure has no line; it is printed on stderr."""

    def __init__(self, is_resumed: bool) -> None:
        """Store whether the output contains results of an earlier run already."""
        self._is_resumed = is_resumed

    def header(self) -> str:
        """Return what precedes the first result."""
        return ""

    def format(self, result: Result) -> str:
        """Return what the output contains for one result, with its line end."""
        if isinstance(result, Failure):
            return ""
        fields = [_escape(result.path), _escape(result.label), f"{result.score:.3f}"]
        for row in result.top[1:]:
            fields += [_escape(row.label), f"{row.score:.3f}"]
        return "\t".join(fields) + "\n"

    def footer(self) -> str:
        """Return what follows the last result."""
        return ""


class JsonLinesFormatter(TextFormatter):
    """JSON Lines: one record per line."""

    def format(self, result: Result) -> str:
        """Return the record of one result."""
        return json.dumps(result.to_dict()) + "\n"


class JsonFormatter(TextFormatter):
    """JSON: one list of all records, a line each."""

    def format(self, result: Result) -> str:
        """Return the record of one result, with what separates it from the one before."""
        separator = ",\n" if self._is_resumed else "[\n"
        self._is_resumed = True
        return separator + json.dumps(result.to_dict())

    def footer(self) -> str:
        """Return the end of the list."""
        return "\n]\n" if self._is_resumed else "[]\n"


class CsvFormatter(TextFormatter):
    """CSV: one row per image and rank; a failure has one row, of rank 0."""

    def header(self) -> str:
        """Return the row of column names."""
        return "" if self._is_resumed else _csv_row(_CSV_HEADER)

    def format(self, result: Result) -> str:
        """Return the rows of one result."""
        if isinstance(result, Failure):
            return _csv_row((result.path, 0, "", "", "", "", result.kind, result.message))
        rows = []
        for rank, row in enumerate(result.top, 1):
            label, index = (result.label, result.index) if rank == 1 else (row.label, row.index)
            rows.append(_csv_row((result.path, rank, label, index, f"{row.score:.6f}", result.provider, "", "")))
        return "".join(rows)


# Name of --format → its class.
FORMATTERS = {"text": TextFormatter, "jsonl": JsonLinesFormatter, "json": JsonFormatter, "csv": CsvFormatter}


def _json_number(score: float) -> float | None:
    return round(score, 6) if math.isfinite(score) else None


def _csv_row(values: tuple[object, ...]) -> str:
    import csv
    import io

    row = io.StringIO()
    csv.writer(row, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow(values)
    return row.getvalue()


def _escape(text: str | None) -> str:
    return escape(text or "")
