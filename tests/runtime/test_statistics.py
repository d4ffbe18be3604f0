"""The interval of an accuracy, and the test for a difference between two models."""

from __future__ import annotations

import pytest
from scipy import stats

from clf_runtime.evaluation.statistics import mcnemar_p, wilson_interval


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (8, 10, 0.4901625, 0.9433178),
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (50, 100, 0.4038315, 0.5961685),
    ],
)
def test_the_interval_has_the_values_of_wilson_1927(correct: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("total", [1, 7, 153, 10_000])
def test_the_interval_equals_that_of_scipy(total: int) -> None:
    for correct in {0, 1, total // 3, total - 1, total}:
        expected = stats.binomtest(correct, total).proportion_ci(method="wilson")
        assert wilson_interval(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_without_images_the_interval_excludes_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("total", [1, 3, 10, 99, 1_000])
def test_an_interval_contains_the_accuracy_and_stays_between_0_and_1(total: int) -> None:
    for correct in range(total + 1):
        low, high = wilson_interval(correct, total)
        assert 0 <= low <= correct / total <= high <= 1


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (5, 5), (2, 10), (10, 2), (0, 20), (121, 59)])
def test_the_p_value_equals_that_of_the_binomial_test(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar_p(first, second) == pytest.approx(expected, rel=1e-9)


def test_models_without_a_difference_have_a_p_value_of_one() -> None:
    assert mcnemar_p(0, 0) == mcnemar_p(7, 7) == 1.0


def test_the_p_value_of_many_thousand_images_neither_overflows_nor_becomes_negative() -> None:
    assert mcnemar_p(10_000, 10_300) == pytest.approx(stats.binomtest(10_000, 20_300).pvalue, rel=1e-9)
    assert mcnemar_p(0, 5_000) == 0.0
