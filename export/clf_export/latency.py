"""How long one image takes, several ways beside each other: in turn, so that a noisy machine is noisy for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

# Each way's turn is some calls in a row, and the first is not counted: it brings back into the cache the weights that
# the others pushed out. On a device a model runs alone, and those of a small one stay there.
_IN_A_ROW = 3
_FEWEST, _MOST = 3, 100  # turns


def medians_ms(calls: Sequence[Callable[[], object]], seconds: float = 0.5) -> list[float]:
    """Give the median milliseconds of each call, all of them taken in turn, in about so many seconds for each."""
    for call in calls:
        call()  # the first allocates
    started = time.perf_counter()
    for call in calls:
        call()
    of_a_round = (time.perf_counter() - started) * (1 + _IN_A_ROW)
    rounds = min(_MOST, max(_FEWEST, int(seconds * len(calls) / max(of_a_round, 1e-9))))
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, times in zip(calls, taken, strict=True):
            call()
            times += [_ms(call) for _ in range(_IN_A_ROW)]
    return [statistics.median(times) for times in taken]


def _ms(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000
