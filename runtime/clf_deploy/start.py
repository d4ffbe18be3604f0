"""The entry point of `clf-deploy`."""

from __future__ import annotations

from clf_runtime.start import start


def clf_deploy() -> None:
    """Run `clf-deploy`."""
    start("clf_deploy.cli")
