"""Which images a seed splits off. Training splits by this rule, and evaluation finds its test split again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
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
    selected: set[int] = set()
    found = _Groups(groups, targets)
    ranks = {
        group: hashlib.sha256(f"{rule.seed}/{rule.purpose}/{group}".encode(*_ANY_NAME)).digest()
        for group in found.members
    }
    for target, total in sorted(Counter(targets).items()):
        count = max(1, round(rule.share * total)) if total >= rule.smallest else 0
        for group in sorted(found.of_class[target], key=ranks.__getitem__):
            if found.selected[target] >= min(count, total - 1):
                break
            if found.fits(group, target, count):
                selected.update(found.select(group))
    return sorted(selected)


class _Groups:
    """The groups of images, and how many images of each class are selected with the groups that are."""

    def __init__(self, groups: Sequence[str], targets: Sequence[int]) -> None:
        self.members: dict[str, list[int]] = {}
        self.of_class: dict[int, dict[str, int]] = {}  # class → group → images of the class in the group
        self.selected: Counter[int] = Counter()
        self._targets = targets
        self._totals = Counter(targets)
        self._taken: set[str] = set()
        for index, (group, target) in enumerate(zip(groups, targets, strict=True)):
            self.members.setdefault(group, []).append(index)
            sizes = self.of_class.setdefault(target, {})
            sizes[group] = sizes.get(group, 0) + 1

    def fits(self, group: str, target: int, count: int) -> bool:
        """Return whether a group brings a class nearer to `count` images and leaves some of each class."""
        if group in self._taken:
            return False
        classes = Counter(self._targets[index] for index in self.members[group])
        if any(self.selected[label] + size >= self._totals[label] for label, size in classes.items()):
            return False
        excess = self.selected[target] + classes[target] - count
        return not self.selected[target] or excess <= count - self.selected[target]

    def select(self, group: str) -> list[int]:
        """Select a group, and return its images."""
        self._taken.add(group)
        self.selected.update(self._targets[index] for index in self.members[group])
        return self.members[group]
