"""How long one picture takes, several ways beside each other: in turn, so that a noisy machine is noisy for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

_FEWEST, _MOST = 7, 200


def medians_ms(calls: Sequence[Callable[[], object]], seconds: float = 0.5) -> list[float]:
    """Give the median milliseconds of each call, all of them taken in turn, in about so many seconds for each."""
    for call in calls:
        call()  # the first allocates
    started = time.perf_counter()
    for call in calls:
        call()
    of_a_round = time.perf_counter() - started
    rounds = min(_MOST, max(_FEWEST, int(seconds * len(calls) / max(of_a_round, 1e-9))))
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, times in zip(calls, taken, strict=True):
            started = time.perf_counter()
            call()
            times.append((time.perf_counter() - started) * 1000)
    return [statistics.median(times) for times in taken]
