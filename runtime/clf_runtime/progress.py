"""What is shown on stderr while images are classified: failures, and a progress bar."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from clf_runtime.command import say
from clf_runtime.predictions import Failure, Result

if TYPE_CHECKING:
    from clf_runtime.run import RunOptions

_SECONDS_BETWEEN_UPDATES = 0.1
_BAR_CHARACTERS = 24


class TerminalCallbacks:
    """Prints warnings, prints failures if the output format omits them, and draws a bar on a terminal."""

    def __init__(self, options: RunOptions) -> None:
        """Store the options of the run."""
        self._options = options
        self._bar: ProgressBar | None = None

    def on_warning(self, message: str) -> None:
        """Print a warning."""
        say(f"clf-run: {message}")

    def on_start(self, resumed: int) -> None:
        """Start a bar, unless the results themselves are printed on the same screen."""
        if sys.stderr.isatty() and (self._options.output is not None or not sys.stdout.isatty()):
            from clf_runtime.run import count_images  # not above: clf-train uses this module without onnxruntime

            self._bar = ProgressBar(count_images(self._options), resumed)

    def on_result(self, result: Result) -> None:
        """Print a failure, and advance the bar."""
        if isinstance(result, Failure) and self._options.output_format == "text":
            self.clear()
            say(f"clf-run: {result}")
        if self._bar is not None:
            self._bar.advance()

    def clear(self) -> None:
        """Remove the bar from the screen."""
        if self._bar is not None:
            self._bar.clear()


class ProgressBar:
    """One line, redrawn in place: images done, images per second, and the time left."""

    def __init__(self, total: int, resumed: int = 0) -> None:
        """Store the number of images, and how many of them an interrupted run has classified; start the clock."""
        self._total = total
        self._resumed = resumed
        self._done = resumed
        self._started = self._update_due = time.monotonic()
        self._drawn_characters = 0

    def advance(self) -> None:
        """Count one more image, and redraw the bar if that is due."""
        self._done += 1
        now = time.monotonic()
        if now >= self._update_due or self._done == self._total:
            self._update_due = now + _SECONDS_BETWEEN_UPDATES
            self._draw(self._text(now - self._started))

    def clear(self) -> None:
        """Erase the line, so that something else can be printed."""
        if self._drawn_characters:
            self._draw("")

    def _text(self, elapsed_s: float) -> str:
        total = max(self._total, self._done)
        filled = _BAR_CHARACTERS * self._done // total
        rate = (self._done - self._resumed) / max(elapsed_s, 1e-9)
        remaining = format_duration((total - self._done) / rate)
        bar = f"[{'#' * filled:-<{_BAR_CHARACTERS}}]"
        return f"{bar} {self._done:,} of {total:,} images, {format_rate(rate)}, {remaining} left"

    def _draw(self, text: str) -> None:
        # A line that wraps could not be overwritten. A terminal of unknown width reports 0 columns.
        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        except OSError:  # the terminal is gone
            return
        text = text[: columns - 1]
        sys.stderr.write(f"\r{text:<{self._drawn_characters}}\r{text}")
        sys.stderr.flush()
        self._drawn_characters = len(text)


def format_rate(images_per_second: float) -> str:
    """Return a rate such as `0.12 images/s` or `1,234 images/s`."""
    return f"{images_per_second:,.0f} images/s" if images_per_second >= 10 else f"{images_per_second:.2g} images/s"


def format_duration(seconds: float) -> str:
    """Return a duration in at most two units.

    Examples:
        >>> [format_duration(seconds) for seconds in (4.21, 42, 192, 3900)]
        ['4.2 s', '42 s', '3 min 12 s', '1 h 05 min']
    """
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_of_hour = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes_of_hour:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
