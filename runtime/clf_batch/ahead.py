"""An iterator that works ahead of its consumer, in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yield the items in order; up to `depth` of them are produced before they are asked for."""
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="clf-ahead")
    try:
        pending: deque[Future[T | object]] = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc] # it is not the end
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
