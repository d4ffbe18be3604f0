"""What a run says about an image: a prediction, or why there is none. And how that is written down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

FORMATS = ("text", "jsonl", "json", "csv")

# The label of an answer that is not sure enough. Its index is None, should a model have a class of that name.
UNKNOWN = "unknown"

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
    """The answer for one image; `top` is in falling order and begins with the label of the highest score."""

    path: str | None
    label: str
    index: int | None  # of the label, in the model's output order; None where the label is UNKNOWN
    score: float  # probability, 0..1
    top: tuple[Score, ...]
    provider: str  # the execution provider that ran, by onnxruntime's name

    def known_from(self, threshold: float) -> Prediction:
        """Give the same answer, or one with the label UNKNOWN where its score is below `threshold`, 0..1.

        The score and `top` stay, and tell what it would have been.
        """
        return self if self.score >= threshold else replace(self, label=UNKNOWN, index=None)

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
    """An image that got no answer; `kind` is a key of `clf_runtime.errors.IMAGE_FAULTS`."""

    path: str | None
    kind: str
    message: str

    def record(self) -> dict[str, Any]:
        """Give what jsonl and json write."""
        return {"path": self.path, "error": {"kind": self.kind, "message": self.message}}

    def __str__(self) -> str:
        return f"{_escaped(self.path)}: {self.kind}: {self.message}"


Result = Prediction | Failure


def lines(results: Iterator[Result], output_format: str, continued: bool = False) -> Iterator[str]:
    """Give the output piece by piece as results arrive, each piece with its line end.

    In text a failure has no line: it belongs to stderr. The other formats keep it in its place.
    `continued` says that the output has results already.
    """
    if output_format == "jsonl":
        return (json.dumps(result.record()) + "\n" for result in results)
    if output_format == "json":
        return _json(results, continued)
    if output_format == "csv":
        return _csv(results, continued)
    return (_text(result) for result in results if isinstance(result, Prediction))


def _text(prediction: Prediction) -> str:
    answer = f"{_escaped(prediction.path)}\t{_escaped(prediction.label)}\t{prediction.score:.3f}"
    return answer + "".join(f"\t{_escaped(each.label)}\t{each.score:.3f}" for each in prediction.top[1:]) + "\n"


def _json(results: Iterator[Result], continued: bool) -> Iterator[str]:
    separator = ",\n" if continued else "[\n"
    for result in results:
        yield separator + json.dumps(result.record())
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def _csv(results: Iterator[Result], continued: bool) -> Iterator[str]:
    """A row per image and rank; a failure has one row, of rank 0."""
    if not continued:
        yield _row(_CSV_HEADER)
    for result in results:
        if isinstance(result, Failure):
            yield _row((result.path, 0, "", "", "", "", result.kind, result.message))
            continue
        yield "".join(_row(values) for values in _ranks(result))


def _ranks(prediction: Prediction) -> Iterator[tuple[object, ...]]:
    for rank, each in enumerate(prediction.top, 1):
        label, index = (prediction.label, prediction.index) if rank == 1 else (each.label, None)
        yield prediction.path, rank, label, index, f"{each.score:.6f}", prediction.provider, "", ""


def _row(values: tuple[object, ...]) -> str:
    import csv
    import io

    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow(values)
    return row.getvalue()


def _escaped(text: str | None) -> str:
    return (text or "").translate(_ESCAPES)
