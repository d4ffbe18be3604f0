"""Which images a seed splits off."""

from __future__ import annotations

from collections import Counter

from clf_runtime.labeled.splits import SplitRule, select_split

RULE = SplitRule(share=0.25, seed=0, purpose="test", smallest=2)


def test_every_class_gives_its_share_and_keeps_an_image():
    targets = [0] * 40 + [1] * 3 + [2] * 2 + [3]
    selected = select_split([f"{number}.png" for number in range(46)], targets, RULE)
    assert Counter(targets[index] for index in selected) == {0: 10, 1: 1, 2: 1}
    assert selected == sorted(selected)


def test_the_split_of_an_image_does_not_depend_on_the_others():
    names = [f"{number}.png" for number in range(40)]
    before = {names[index] for index in select_split(names, [0] * 40, RULE)}
    after = {names[index] for index in select_split(names[:38], [0] * 38, RULE)}
    assert len(before ^ after) <= 3


def test_images_of_one_group_stay_together():
    groups = [f"day {number // 4}" for number in range(40)]
    selected = select_split(groups, [0] * 40, RULE)
    assert all(Counter(groups[index] for index in selected)[group] == 4 for group in {groups[i] for i in selected})
    assert 4 <= len(selected) <= 12


def test_a_group_with_all_images_of_a_class_is_not_split_off():
    groups = ["a"] * 2 + [f"{number}" for number in range(8)]
    targets = [0, 1, *[0] * 8]
    for seed in range(20):
        selected = select_split(groups, targets, SplitRule(0.5, seed, "test", 2))
        assert not {0, 1} & set(selected)
        assert len(selected) == 4


def test_a_group_of_several_classes_counts_once_for_each_of_them():
    groups = [*map(str, range(4)), *map(str, range(20))]
    targets = [0] * 4 + [1] * 20
    for seed in range(5):
        selected = select_split(groups, targets, SplitRule(0.5, seed, "test", 2))
        counts = Counter(targets[index] for index in selected)
        assert counts[1] == 10
        assert counts[0] in (2, 3)  # a group that class 1 needs may bring an image of class 0
        assert len(set(selected)) == len(selected)
