"""Latencies of several calls side by side, in turn, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

# A turn is some calls in a row. The first is not counted: it brings the weights back into the cache, which the other
# calls have displaced. On a device a model runs alone, and the weights of a small one stay in the cache.
_CALLS_PER_TURN = 3
_MIN_ROUNDS, _MAX_ROUNDS = 3, 100


def measure_latencies_ms(calls: Sequence[Callable[[], object]], seconds: float = 0.5) -> list[float]:
    """Return the median latency of each call in milliseconds.

    Args:
        calls: what is timed.
        seconds: about how long to time each of them.
    """
    for call in calls:
        call()  # the first one allocates
    started = time.perf_counter()
    for call in calls:
        call()
    round_s = (time.perf_counter() - started) * (1 + _CALLS_PER_TURN)
    rounds = min(_MAX_ROUNDS, max(_MIN_ROUNDS, int(seconds * len(calls) / max(round_s, 1e-9))))
    latencies_ms: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, measured in zip(calls, latencies_ms, strict=True):
            call()
            measured += [_time_ms(call) for _ in range(_CALLS_PER_TURN)]
    return [statistics.median(measured) for measured in latencies_ms]


def _time_ms(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000
