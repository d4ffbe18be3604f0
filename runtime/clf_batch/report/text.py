"""A report as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from clf_batch.report.compare import Comparison
from clf_batch.report.counts import BINS, Counts
from clf_batch.report.parts import CompleteRun
from clf_runtime.errors import escape
from clf_runtime.evaluation.formatting import format_images, format_percent, shorten

_MOST_ROWS = 30
_BAR = 40


def describe_run(run: CompleteRun, counts: Counts) -> Iterator[str]:
    """Yield the lines about one run."""
    failed = sum(counts.failures.values())
    yield f"{run.place}: {format_images(counts.images)}, {failed:,} failed, model {run.model[:12]}"
    yield ""
    yield from _table("label", counts.labels.items(), counts.images)
    if failed:
        yield ""
        yield from _table("failure", counts.failures.items(), counts.images)
    yield ""
    yield "score"
    most = max(*counts.histogram, 1)
    for position, count in enumerate(counts.histogram):
        bar = "#" * round(_BAR * count / most)
        yield f"  {position / BINS:.1f} to {(position + 1) / BINS:.1f}  {count:>12,}  {bar}".rstrip()


def describe_comparison(old: CompleteRun, comparison: Comparison) -> Iterator[str]:
    """Yield the lines about the differences from another run."""
    share = format_percent(comparison.changed / comparison.common if comparison.common else None)
    yield f"compared with {old.place}, model {old.model[:12]}"
    yield f"{comparison.changed:,} of {comparison.common:,} labels have changed ({share})"
    yield from describe_remainder(comparison)
    if comparison.changed:
        yield ""
        rows = ((f"{before} → {after}", count) for (before, after), count in comparison.transitions.items())
        yield from _table("change", rows, comparison.common)
        yield ""
        yield "most certain changes"
        for change in comparison.most_changed[:10]:
            scores = f"{change.old.label} {change.old.score:.3f} → {change.new.label} {change.new.score:.3f}"
            yield f"  {escape(change.path)}  {escape(scores)}"


def describe_remainder(comparison: Comparison) -> Iterator[str]:
    """Yield a line for each group of images that could not be compared."""
    for count, meaning in (
        (comparison.only_new, "only in this run"),
        (comparison.only_old, "only in the other run"),
        (comparison.now_unreadable, "could be read only by the other run"),
        (comparison.now_readable, "could be read only by this run"),
    ):
        if count:
            yield f"{format_images(count)} {meaning}"


def _table(title: str, rows: Iterable[tuple[str, int]], total: int) -> Iterator[str]:
    rows = list(rows)
    width = max([len(title), *(len(shorten(name)) for name, _ in rows[:_MOST_ROWS])])
    yield f"{title:<{width}}  {'images':>12}"
    for name, count in rows[:_MOST_ROWS]:
        yield f"{shorten(name):<{width}}  {count:>12,}  {format_percent(count / total)}"
    if len(rows) > _MOST_ROWS:
        yield f"{len(rows) - _MOST_ROWS:,} more; --format json has all"
