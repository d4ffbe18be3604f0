"""What is shown on stderr while models are evaluated: warnings, and a progress bar on a terminal."""

from __future__ import annotations

import sys

from clf_runtime.command import say
from clf_runtime.progress import ProgressBar


class TerminalCallbacks:
    """Prints warnings, and draws a bar if stderr is a terminal."""

    def __init__(self) -> None:
        self._bar: ProgressBar | None = None

    def on_warning(self, message: str) -> None:
        """Print a warning."""
        say(f"clf-eval: {message}")

    def on_start(self, images: int) -> None:
        """Start a bar."""
        if sys.stderr.isatty():
            self._bar = ProgressBar(images)

    def on_image(self) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.advance()

    def clear(self) -> None:
        """Remove the bar from the screen."""
        if self._bar is not None:
            self._bar.clear()
