"""Runs `clf-run ARGUMENTS` over and over, killed at its first change, at its second, …, and each time resumed.

usage: killing.py OUTPUT EXPECTED ARGUMENTS...     prints how many places it was killed at

A change is a file opened for writing, renamed or removed, and the writing of a line of the journal. Each run is a fork
of this process, which has imported everything and opened nothing.
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

output.SECONDS_BETWEEN_POINTS = 0.0


def forked(run: Callable[[], object]) -> int:
    """Run in a process of its own, and give how it ended."""
    process = os.fork()
    if process == 0:
        try:
            run()
        except SystemExit as exit_:
            os._exit(int(exit_.code or 0))
        finally:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed(arguments: list[str], at: int) -> None:
    """Run, until just before change number `at`."""
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

    def add_and_change(self: journal.Journal, point: journal.Point) -> None:
        change()
        add(self, point)

    sys.addaudithook(hook)
    journal.Journal.add = add_and_change  # type: ignore[method-assign]
    cli.command.main(arguments, standalone_mode=False)
    os._exit(0)


def main() -> None:
    answers, expected, *arguments = sys.argv[1:]
    at = 0
    while True:
        at += 1
        Path(answers).unlink(missing_ok=True)
        code = forked(partial(killed, arguments, at))
        if code != -signal.SIGKILL:
            break
        content = Path(answers).read_text() if Path(answers).exists() else None
        assert content in (None, Path(expected).read_text()), f"half a file after change {at}"
        code = forked(lambda: os._exit(cli.command.main([*arguments, "--resume"], standalone_mode=False)))
        assert code in (0, 1), f"resumed after change {at}: exit code {code}"
        assert Path(answers).read_text() == Path(expected).read_text(), f"other answers after change {at}"
        left = list(Path().glob("*.partial*"))
        assert not left, f"{left} after change {at}"
    print(at - 1)


if __name__ == "__main__":
    main()
