"""The table of the classes that clf-train prints before it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clf_runtime.labeled.images import Split
    from clf_train.data.findings import ClassCounts, DataFindings

_MAX_CLASSES = 30  # of more, only the largest and the smallest are listed
_MAX_WIDTH = 40
_NUMBER_WIDTH = 10
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def lines_from_findings(findings: DataFindings) -> Iterator[str]:
    """Yield the lines of the table: the images of each class and split, and what is used as which split."""
    counts = findings.counts
    rows = [_cells(row.label, row.train, row.validation, row.test) for row in _select(counts)]
    train, validation, test = (sum(getattr(row, split) for row in counts) for split in _SPLITS)
    width = min(_MAX_WIDTH, max(len("class"), *(len(row[0]) for row in rows)))
    yield _format_row(("class", "train", "validation", "test"), width)
    for place, row in enumerate(rows):
        yield _format_row(row, width)
        if len(counts) > _MAX_CLASSES and place == _MAX_CLASSES // 2 - 1:
            yield f"… {len(counts) - _MAX_CLASSES:,} more classes …"
    yield _format_row(_cells("total", train, validation, test), width)
    yield describe_splits(findings.origins)


def describe_splits(origins: Mapping[Split, str]) -> str:
    """Return which part of the data is used as which split."""
    train, validation, test = (origins.get(split) for split in _SPLITS)
    if test is None:
        return "splits: chosen by the seed, because the data has no test part (see --test-split)"
    if validation is None:
        return f"splits: {train} to train on, {test} as the test split; a part of {train} is the validation split"
    return f"splits: {train} to train on, {validation} for choices (validation), {test} for the report (test)"


def _select(counts: Sequence[ClassCounts]) -> Sequence[ClassCounts]:
    """Return all classes, or of many those with the most and those with the fewest training images."""
    if len(counts) <= _MAX_CLASSES:
        return counts
    ordered = sorted(counts, key=lambda row: -row.train)
    return [*ordered[: _MAX_CLASSES // 2], *ordered[-_MAX_CLASSES // 2 :]]


def _cells(label: str, *numbers: int) -> tuple[str, ...]:
    return label, *(f"{number:,}" for number in numbers)


def _format_row(cells: Sequence[str], width: int) -> str:
    label = cells[0] if len(cells[0]) <= width else f"{cells[0][: width - 1]}…"
    return label.ljust(width) + "".join(f"  {cell:>{_NUMBER_WIDTH}}" for cell in cells[1:])
