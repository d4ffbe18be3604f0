"""What a person sees on stderr while images are classified: what failed, and how far it is."""

from __future__ import annotations

import os
import sys
import time

from clf_runtime.command import say
from clf_runtime.predictions import Failure, Result
from clf_runtime.run import RunOptions, count

_SECONDS_BETWEEN_DRAWINGS = 0.1
_BAR_CHARACTERS = 24


class Terminal:
    """Tells of failures where the output format has no place for them, and draws a bar where a person waits."""

    def __init__(self, options: RunOptions) -> None:
        self._order = options
        self._tells_failures = options.output_format == "text"
        self._bar: Bar | None = None

    def noticed(self, what: str) -> None:
        """Tell what the answers do not."""
        say(f"clf-run: {what}")

    def begun(self, before: int) -> None:
        """Begin a bar; where the answers themselves run over the screen, they are progress enough."""
        if sys.stderr.isatty() and (self._order.output is not None or not sys.stdout.isatty()):
            self._bar = Bar(count(self._order), before)

    def answered(self, result: Result) -> None:
        """Count an image."""
        if self._tells_failures and isinstance(result, Failure):
            self.clear()
            say(f"clf-run: {result}")
        if self._bar is not None:
            self._bar.step()

    def clear(self) -> None:
        """Leave an empty line."""
        if self._bar is not None:
            self._bar.clear()


class Bar:
    """One line, drawn again and again, with images done, images per second and the time left."""

    def __init__(self, total: int, before: int = 0) -> None:
        """Begin with `before` of `total` images done by a former run."""
        self._total = total
        self._before = before
        self._done = before
        self._started = self._due = time.monotonic()
        self._drawn = 0  # characters

    def step(self) -> None:
        """Count one more image."""
        self._done += 1
        now = time.monotonic()
        if now >= self._due or self._done == self._total:
            self._due = now + _SECONDS_BETWEEN_DRAWINGS
            self._draw(self._text(now - self._started))

    def clear(self) -> None:
        """Leave an empty line, for something else to be said."""
        if self._drawn:
            self._draw("")
            self._drawn = 0

    def _text(self, seconds: float) -> str:
        total = max(self._total, self._done)
        full = _BAR_CHARACTERS * self._done // total
        rate = (self._done - self._before) / max(seconds, 1e-9)
        left = duration((total - self._done) / rate)
        bar = f"[{'#' * full:-<{_BAR_CHARACTERS}}]"
        return f"{bar} {self._done:,} of {total:,} images, {per_second(rate)}, {left} left"

    def _draw(self, text: str) -> None:
        # A line that wraps could not be drawn over. A terminal that does not know its width says 0.
        text = text[: (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1]
        sys.stderr.write(f"\r{text:<{self._drawn}}\r{text}" if text else f"\r{'':<{self._drawn}}\r")
        sys.stderr.flush()
        self._drawn = len(text)


def per_second(rate: float) -> str:
    """Say how many images a second."""
    return f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"


def duration(seconds: float) -> str:
    """Say how long, in at most two units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
