"""The progress of an export on stderr."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from clf_runtime.command import say
from clf_runtime.errors import escape
from clf_runtime.progress import format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clf_export.record import ExportedFile
    from clf_export.stages import Clock, Stage

_SECONDS_BETWEEN_LINES = 60  # without a progress bar
_BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}|{postfix}"


class Progress:
    """A progress bar at a terminal, and elsewhere a line for each stage.

    Implements `clf_export.callbacks.ExportCallbacks`.

    Attributes:
        exported: the files that are finished.
    """

    def __init__(self) -> None:
        self.exported: Sequence[ExportedFile] = ()
        self._bar: Any = None
        self._clock: Clock | None = None
        self._printed = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def on_start(self, stages: Sequence[Stage]) -> None:
        """See ExportCallbacks."""
        from clf_export.stages import Clock

        self._clock = Clock(stages)
        if sys.stderr.isatty():
            from tqdm import tqdm

            # The bar is removed at the end: the table follows.
            self._bar = tqdm(total=1.0, bar_format=_BAR_FORMAT, dynamic_ncols=True, leave=False)

    def on_stage(self) -> None:
        """See ExportCallbacks."""
        assert self._clock is not None
        self._clock.start_stage()
        if self._bar is None:
            self._say_progress(self._clock.stage.description)
        else:
            self._bar.set_description_str(self._clock.stage.description, refresh=False)
            self._draw()

    def on_progress(self, share: float) -> None:
        """See ExportCallbacks."""
        assert self._clock is not None
        self._clock.advance(share)
        if self._bar is not None:
            self._draw()
        elif time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._say_progress(f"{100 * self._clock.estimate_share():.0f} % of the export done")

    def on_message(self, message: str) -> None:
        """See ExportCallbacks."""
        if self._bar is not None:
            self._bar.write(escape(message), file=sys.stderr)
        else:
            say(message)

    def on_exported(self, exported: Sequence[ExportedFile]) -> None:
        """See ExportCallbacks."""
        self.exported = tuple(exported)

    def _say_progress(self, line: str) -> None:
        left = self._format_left()
        say(f"{line}, {left}" if left else line)
        self._printed = time.monotonic()

    def _format_left(self) -> str:
        assert self._clock is not None
        left_s = self._clock.estimate_left_s()
        return "" if left_s is None else f"about {format_duration(max(1, round(left_s)))} left"

    def _draw(self) -> None:
        assert self._clock is not None
        # A bar that ran backwards would look broken.
        self._bar.n = max(self._bar.n, self._clock.estimate_share())
        self._bar.set_postfix_str(self._format_left())
