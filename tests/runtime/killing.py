"""Runs `clf-run ARGUMENTS` repeatedly, killed at its first change, at its second, …, and resumed each time.

usage: killing.py OUTPUT EXPECTED ARGUMENTS...     prints the number of changes at which it was killed

A change is a file that is opened for writing, renamed or removed, or a new line of the journal. Each run is a fork of
this process, which has imported everything and opened nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnxruntime  # noqa: F401 (once, for all runs)

from clf_runtime import cli
from clf_runtime.sinks import (
    annotate,  # noqa: F401 (once, for all runs)
    journal,
    output,
)

output.SECONDS_BETWEEN_CHECKPOINTS = 0.0


def run_forked(run: Callable[[], object]) -> int:
    """Run in a forked process, and return its exit code."""
    process = os.fork()
    if process == 0:
        try:
            run()
        except SystemExit as exit_:
            os._exit(int(exit_.code or 0))
        finally:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run_until(arguments: list[str], at: int) -> None:
    """Run clf-run, and kill it just before change number `at`."""
    seen = 0
    folder, add = Path.cwd(), journal.Journal.add

    def change() -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, values: tuple) -> None:
        writes = event == "open" and isinstance(values[2], int) and values[2] & (os.O_WRONLY | os.O_RDWR)
        inside = (
            values and isinstance(values[0], (str, os.PathLike)) and Path(values[0]).absolute().is_relative_to(folder)
        )
        if inside and (writes or event in ("os.rename", "os.remove")):
            change()

    def add_and_change(self: journal.Journal, checkpoint: journal.Checkpoint) -> None:
        change()
        add(self, checkpoint)

    sys.addaudithook(hook)
    journal.Journal.add = add_and_change  # type: ignore[method-assign]
    cli.command.main(arguments, standalone_mode=False)
    os._exit(0)


def main() -> None:
    results, expected, *arguments = sys.argv[1:]
    at = 0
    while True:
        at += 1
        Path(results).unlink(missing_ok=True)
        code = run_forked(partial(run_until, arguments, at))
        if code != -signal.SIGKILL:
            break
        content = Path(results).read_text() if Path(results).exists() else None
        assert content in (None, Path(expected).read_text()), f"an incomplete file after change {at}"
        code = run_forked(lambda: os._exit(cli.command.main([*arguments, "--resume"], standalone_mode=False)))
        assert code in (0, 1), f"resumed after change {at}: exit code {code}"
        assert Path(results).read_text() == Path(expected).read_text(), f"different results after change {at}"
        left = list(Path().glob("*.partial*"))
        assert not left, f"{left} after change {at}"
    print(at - 1)


if __name__ == "__main__":
    main()
