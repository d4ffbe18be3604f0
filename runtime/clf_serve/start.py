"""The entry point of `clf-serve`."""

from __future__ import annotations

from clf_runtime.start import start


def clf_serve() -> None:
    """Run `clf-serve`."""
    start("clf_serve.cli")
