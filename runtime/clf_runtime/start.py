"""The entry points of `clf-run`, `clf-bench` and `clf-eval`, and what starts every command."""

from __future__ import annotations

# Not signal: its enums take 3 ms to import, in which Ctrl-C would still print a traceback.
import _signal as signal  # type: ignore[import-not-found,unused-ignore]


def start(module: str) -> None:
    """Import the module of a command, and run its `main`.

    Until the command handles Ctrl-C, it ends the process at once: the traceback of an import would mean nothing to the
    user, and there is nothing to clean up yet.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a command in the background ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from importlib import import_module  # after that, because it imports more

    import_module(module).main()


def clf_run() -> None:
    """Run `clf-run`."""
    start("clf_runtime.cli")


def clf_bench() -> None:
    """Run `clf-bench`."""
    start("clf_runtime.bench.cli")


def clf_eval() -> None:
    """Run `clf-eval`."""
    start("clf_runtime.evaluation.cli")
