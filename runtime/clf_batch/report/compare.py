"""Two runs over the same images: which labels have changed."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from clf_batch.report.parts import CompleteRun
from clf_batch.results import PartRecord

MOST_CHANGED = 60
_COLUMNS = ("path", "label", "score")


class Answer(NamedTuple):
    """What one model says about an image; the label is None if the image could not be read."""

    label: str | None
    score: float | None


@dataclass(frozen=True)
class Change:
    """An image whose label has changed.

    Attributes:
        path: The image.
        old: The answer before.
        new: The answer now.
    """

    path: str
    old: Answer
    new: Answer

    @property
    def weight(self) -> float:
        """How sure both models are: the lower of the two scores."""
        return min(self.old.score or 0.0, self.new.score or 0.0)


@dataclass(frozen=True)
class Comparison:
    """How two runs differ.

    Attributes:
        common: Images that both runs have classified.
        changed: Those with another label.
        transitions: (Old label, new label) → images, the most frequent first.
        most_changed: The changes of which both models are most sure, first the one that weighs most.
        only_old: Images that only the old run has.
        only_new: Images that only the new run has.
        now_unreadable: Images that could be read before, and cannot now.
        now_readable: The opposite.
    """

    common: int
    changed: int
    transitions: dict[tuple[str, str], int]
    most_changed: tuple[Change, ...]
    only_old: int
    only_new: int
    now_unreadable: int
    now_readable: int

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as an object of JSON."""
        return {
            "common": self.common,
            "changed": self.changed,
            "transitions": [{"old": old, "new": new, "images": n} for (old, new), n in self.transitions.items()],
            "most_changed": [
                {"path": change.path, "old": change.old._asdict(), "new": change.new._asdict()}
                for change in self.most_changed
            ],
            "only_old": self.only_old,
            "only_new": self.only_new,
            "now_unreadable": self.now_unreadable,
            "now_readable": self.now_readable,
        }


def compare_runs(old: CompleteRun, new: CompleteRun) -> Comparison:
    """Compare two runs. Files with the same names are read in pairs; what remains is compared in memory.

    Raises:
        DataError: A file is missing or damaged.
        MachineError: A file cannot be read.
        OSError: Likewise.
    """
    tally = _Tally()
    before = {part.names: part for part in old.manifest.parts}
    unpaired = []
    for part in new.manifest.parts:
        counterpart = before.pop(part.names, None)
        if counterpart is None or counterpart.images != part.images:
            unpaired.append(part)
            before |= {} if counterpart is None else {part.names: counterpart}
            continue
        for (path, answer), (_, former) in zip(_rows(new, [part]), _rows(old, [counterpart]), strict=True):
            tally.add(path, former, answer)
    former_rows = dict(_rows(old, before.values()))
    only_new = 0
    for path, answer in _rows(new, unpaired):
        match = former_rows.pop(path, None)
        if match is None:
            only_new += 1
        else:
            tally.add(path, match, answer)
    return tally.finish(len(former_rows), only_new)


def _rows(run: CompleteRun, parts: Iterable[PartRecord]) -> Iterator[tuple[str, Answer]]:
    for part in parts:
        table = run.read(part, _COLUMNS)
        paths, labels, scores = (table.column(name).to_pylist() for name in _COLUMNS)
        yield from zip(paths, map(Answer, labels, scores), strict=True)


class _Tally:
    """Counts changes, and keeps those that weigh most."""

    def __init__(self) -> None:
        self._common = self._now_unreadable = self._now_readable = 0
        self._transitions: Counter[tuple[str, str]] = Counter()
        self._heap: list[tuple[float, str, Change]] = []

    def add(self, path: str, old: Answer, new: Answer) -> None:
        if old.label is None or new.label is None:
            self._now_unreadable += old.label is not None
            self._now_readable += new.label is not None
            return
        self._common += 1
        if old.label == new.label:
            return
        self._transitions[old.label, new.label] += 1
        change = Change(path, old, new)
        entry = (change.weight, path, change)
        if len(self._heap) < MOST_CHANGED:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def finish(self, only_old: int, only_new: int) -> Comparison:
        return Comparison(
            common=self._common,
            changed=self._transitions.total(),
            transitions=dict(self._transitions.most_common()),
            most_changed=tuple(change for *_, change in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)),
            only_old=only_old,
            only_new=only_new,
            now_unreadable=self._now_unreadable,
            now_readable=self._now_readable,
        )
