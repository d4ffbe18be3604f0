"""Which images a seed splits off. Training splits by this rule, and evaluation finds its test split again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ANY_NAME = ("utf-8", "surrogateescape")  # names of files may have bytes that are not UTF-8


@dataclass(frozen=True)
class SplitRule:
    """How images are split off.

    Attributes:
        share: The share of each class, 0..1.
        seed: The seed.
        purpose: The split, so that two splits of one seed are independent.
        smallest: No image is split off a class with fewer images than this.
    """

    share: float
    seed: int
    purpose: str
    smallest: int


def select_split(groups: Sequence[str], targets: Sequence[int], rule: SplitRule) -> list[int]:
    """Select the same share of each class.

    An image's split depends only on the seed and its group, which is its name unless the user grouped images: it is the
    same on every machine, and new images move few of the others. At least one image of a class is split off, unless
    the class has fewer than `rule.smallest`, and at least one stays; with groups, as nearly as they allow it.

    Args:
        groups: The group (N,) of each image: its name, unless images were grouped.
        targets: Its class (N,).
        rule: The rule.

    Returns:
        The indices of the selected images, ascending.
    """
    totals = Counter(targets)
    goals = {
        target: min(max(1, round(rule.share * total)), total - 1) if total >= rule.smallest else 0
        for target, total in totals.items()
    }
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    ranks = {
        group: hashlib.sha256(f"{rule.seed}/{rule.purpose}/{group}".encode(*_ANY_NAME)).digest() for group in members
    }
    selected: set[int] = set()
    selection = _Selection(totals, goals)
    # Again for classes whose groups are all larger than what they lack; only the metrics need images of every class.
    for accept in (selection.comes_nearer, selection.fills_a_class)[: 2 if rule.purpose == "test" else 1]:
        for group in sorted(members, key=ranks.__getitem__):
            sizes = Counter(targets[index] for index in members[group])
            if members[group][0] not in selected and selection.leaves_some(sizes) and accept(sizes):
                selection.counts.update(sizes)
                selected.update(members[group])
    return sorted(selected)


class _Selection:
    """How many images of each class are selected, of how many, and how many there should be."""

    def __init__(self, totals: Mapping[int, int], goals: Mapping[int, int]) -> None:
        self.counts: Counter[int] = Counter()
        self._totals = totals
        self._goals = goals

    def leaves_some(self, sizes: Mapping[int, int]) -> bool:
        """Return whether images of each class are left if a group with these numbers of images is selected."""
        return all(self.counts[target] + size < self._totals[target] for target, size in sizes.items())

    def comes_nearer(self, sizes: Mapping[int, int]) -> bool:
        """Return whether such a group brings the counts nearer to the goals."""
        missing = {target: self._goals[target] - self.counts[target] for target in sizes}
        return sum(abs(missing[target] - size) - abs(missing[target]) for target, size in sizes.items()) < 0

    def fills_a_class(self, sizes: Mapping[int, int]) -> bool:
        """Return whether such a group has a class of which no image is selected, and one should be."""
        return any(self._goals[target] and not self.counts[target] for target in sizes)
