"""Ctrl-C and SIGTERM during training: the current step is finished first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from clf_runtime.errors import EXIT_TERMINATED


class Interruption:
    """A request to stop that arrived during training."""

    def __init__(self) -> None:
        self._signal: int | None = None

    @property
    def is_requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._signal is not None

    def record(self, number: int, frame: FrameType | None) -> None:
        """Remember the first request. The second one stops at once: the user does not want to wait.

        Raises:
            KeyboardInterrupt: this is the second request.
        """
        if self._signal is not None:
            raise KeyboardInterrupt("the last checkpoint is kept; --resume continues from it")
        self._signal = number

    def stop(self, message: str) -> None:
        """Stop as requested.

        Raises:
            KeyboardInterrupt: with the message, after Ctrl-C.
            SystemExit: after SIGTERM.
        """
        if self._signal == signal.SIGTERM:
            raise SystemExit(EXIT_TERMINATED)
        raise KeyboardInterrupt(message)


@contextlib.contextmanager
def defer_signals() -> Iterator[Interruption]:
    """Record SIGINT and SIGTERM inside the block, which checks for them where it can stop."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption  # only the main thread receives signals
        return
    handlers = {number: signal.signal(number, interruption.record) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
