"""Ctrl-C, and the system's request to end, while a network is trained: the step under way is finished first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from clf_runtime.errors import EXIT_TERMINATED


class Interruption:
    """What was asked for meanwhile."""

    def __init__(self) -> None:
        self._signal: int | None = None

    @property
    def asked(self) -> bool:
        """Whether this process was asked to end."""
        return self._signal is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember the first request; a second one is a person who does not want to wait."""
        if self._signal is not None:
            raise KeyboardInterrupt("what the last checkpoint holds is kept; --resume goes on from there")
        self._signal = number

    def end(self, message: str) -> None:
        """End as was asked. Raises KeyboardInterrupt with the message, or SystemExit."""
        if self._signal == signal.SIGTERM:
            raise SystemExit(EXIT_TERMINATED)
        raise KeyboardInterrupt(message)


@contextlib.contextmanager
def defer_signals() -> Iterator[Interruption]:
    """Within, SIGINT and SIGTERM are noted, to be answered where nothing is half done."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption  # only the main thread is told
        return
    before = {number: signal.signal(number, interruption.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
