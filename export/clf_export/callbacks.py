"""What a caller of an export learns while it runs; the command prints it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from clf_export.record import ExportedFile
from clf_export.stages import Stage


class ExportCallbacks(Protocol):
    """Called in the thread that exports."""

    def on_start(self, stages: Sequence[Stage]) -> None:
        """Called once, with everything that will be done."""

    def on_stage(self) -> None:
        """Called when the next stage begins."""

    def on_progress(self, share: float) -> None:
        """Called with the share of the stage that is done."""

    def on_message(self, message: str) -> None:
        """Called with what the user should know."""

    def on_exported(self, exported: Sequence[ExportedFile]) -> None:
        """Called when a file has its name, and when latencies were measured; with all files so far."""


class IgnoreCallbacks:
    """Ignores everything."""

    def on_start(self, stages: Sequence[Stage]) -> None:
        """See ExportCallbacks."""

    def on_stage(self) -> None:
        """See ExportCallbacks."""

    def on_progress(self, share: float) -> None:
        """See ExportCallbacks."""

    def on_message(self, message: str) -> None:
        """See ExportCallbacks."""

    def on_exported(self, exported: Sequence[ExportedFile]) -> None:
        """See ExportCallbacks."""
