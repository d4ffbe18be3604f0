"""What people see while a run proceeds: one line that is redrawn on a terminal, plain lines otherwise."""

from __future__ import annotations

import os
import sys
import time

from clf_batch.manifest import Manifest
from clf_batch.results import PartRecord
from clf_runtime.command import say
from clf_runtime.errors import escape
from clf_runtime.progress import format_rate

_SECONDS_ON_TERMINAL = 0.2
_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts images, and shows how many there are every now and then."""

    def __init__(self) -> None:
        """Store where messages go."""
        self._is_terminal = sys.stderr.isatty()
        self._interval_s = _SECONDS_ON_TERMINAL if self._is_terminal else _SECONDS_BETWEEN_LINES
        self._started = time.monotonic()
        self._due = self._started + self._interval_s
        self._images = self._failures = self._parts = self._drawn = 0

    def on_start(self) -> None:
        """Start the clock: the first worker is ready."""
        self._started = time.monotonic()

    def on_part(self, part: PartRecord) -> None:
        """Count a part."""
        self._images += part.images
        self._failures += part.failures
        self._parts += 1
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._interval_s
            self._show(self.summary())

    def warn(self, message: str) -> None:
        """Print a warning."""
        self.clear()
        say(f"clf-batch: {message}")

    def summary(self) -> str:
        """Return the counts so far."""
        rate = format_rate(self._images / max(time.monotonic() - self._started, 1e-9))
        return f"{_format_counts(self._images, self._failures)}, {rate}"

    def finish(self, done: Manifest) -> None:
        """Print the counts of the complete run."""
        self.clear()
        if self._parts:
            say(f"clf-batch: {self.summary()}")
        else:
            say(f"clf-batch: {_format_counts(done.images, done.failures)}; the run was complete already")

    def clear(self) -> None:
        """Erase the line on the terminal."""
        if self._drawn:
            self._draw("")

    def _show(self, text: str) -> None:
        if self._is_terminal:
            self._draw(text)
        else:
            say(f"clf-batch: {text}")

    def _draw(self, text: str) -> None:
        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        except OSError:  # the terminal is gone
            return
        text = escape(text)[: columns - 1]
        sys.stderr.write(f"\r{text:<{self._drawn}}\r{text}")
        sys.stderr.flush()
        self._drawn = len(text)


def _format_counts(images: int, failures: int) -> str:
    return f"{images:,} {'image' if images == 1 else 'images'}, {failures:,} failed"
