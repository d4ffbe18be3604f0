"""The entry point of `clf-batch`."""

from __future__ import annotations

from clf_runtime.start import start


def clf_batch() -> None:
    """Run `clf-batch`."""
    start("clf_batch.cli")
