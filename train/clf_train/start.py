"""The entry points of `clf-train` and `clf-import`."""

from __future__ import annotations

from clf_runtime.start import start


def clf_train() -> None:
    """Run `clf-train`."""
    start("clf_train.cli")


def clf_import() -> None:
    """Run `clf-import`."""
    start("clf_train.cli_import")
