"""What a run says about a picture: a prediction, or why there is none. And how that is written down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

FORMATS = ("text", "jsonl", "json", "csv")

# A tab or a line break in a name would tear a record of the text format apart.
_ESCAPES = {ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}
_CSV_HEADER = ("path", "rank", "label", "index", "score", "provider", "error_kind", "error_message")


@dataclass(frozen=True)
class Score:
    """One label and its probability, 0..1."""

    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture; `top` is in falling order and begins with the answer itself."""

    path: str | None
    label: str
    index: int  # of the label, in the model's output order
    score: float  # probability, 0..1
    top: tuple[Score, ...]
    provider: str  # the execution provider that ran, by onnxruntime's name

    def record(self) -> dict[str, Any]:
        """Give what jsonl and json write."""
        return {
            "path": self.path,
            "label": self.label,
            "index": self.index,
            "score": round(self.score, 6),
            "top": [{"label": each.label, "score": round(each.score, 6)} for each in self.top],
            "provider": self.provider,
        }


@dataclass(frozen=True)
class Failure:
    """A picture that got no answer; `kind` is a key of `clf_runtime.errors.PICTURE_FAULTS`."""

    path: str | None
    kind: str
    message: str

    def record(self) -> dict[str, Any]:
        """Give what jsonl and json write."""
        return {"path": self.path, "error": {"kind": self.kind, "message": self.message}}

    def __str__(self) -> str:
        return f"{_escaped(self.path)}: {self.kind}: {self.message}"


Result = Prediction | Failure


def lines(results: Iterator[Result], output_format: str) -> Iterator[str]:
    """Give the output piece by piece as results arrive, each piece with its line end.

    In text a failure has no line: it belongs to stderr. The other formats keep it in its place.
    """
    if output_format == "jsonl":
        return (json.dumps(result.record()) + "\n" for result in results)
    if output_format == "json":
        return _json(results)
    if output_format == "csv":
        return _csv(results)
    return (_text(result) for result in results if isinstance(result, Prediction))


def _text(prediction: Prediction) -> str:
    scores = "\t".join(f"{_escaped(each.label)}\t{each.score:.3f}" for each in prediction.top)
    return f"{_escaped(prediction.path)}\t{scores}\n"


def _json(results: Iterator[Result]) -> Iterator[str]:
    separator = "[\n"
    for result in results:
        yield separator + json.dumps(result.record())
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def _csv(results: Iterator[Result]) -> Iterator[str]:
    """A row per picture and rank; a failure has one row, of rank 0."""
    yield _row(_CSV_HEADER)
    for result in results:
        if isinstance(result, Failure):
            yield _row((result.path, 0, "", "", "", "", result.kind, result.message))
            continue
        for rank, each in enumerate(result.top, 1):
            index = result.index if rank == 1 else ""
            yield _row((result.path, rank, each.label, index, f"{each.score:.6f}", result.provider, "", ""))


def _row(values: tuple[object, ...]) -> str:
    import csv
    import io

    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow(values)
    return row.getvalue()


def _escaped(text: str | None) -> str:
    return (text or "").translate(_ESCAPES)
