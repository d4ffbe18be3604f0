"""The entry point of `clf-export`."""

from __future__ import annotations

from clf_runtime.start import start


def clf_export() -> None:
    """Run `clf-export`."""
    start("clf_export.cli")
