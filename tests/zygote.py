"""Run clf-train, clf-import and clf-export without their four seconds of imports: each run is a fork of this process.

Reads one JSON line per run, {"argv", "cwd", "env", "out", "err", "kill_at", "kill_with", "kill_after_s"}, and answers
with one line, the process id and the exit code.

`kill_at` sends a signal just before the change of a file with that number: SIGKILL, like a power failure, or SIGINT.
`kill_after_s` ends the run after that many seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

# The audit events of Python that change a folder.
_CHANGES = frozenset(("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"))


def _import_commands() -> dict[str, object]:
    import sklearn.datasets  # noqa: F401 (clf-train imports it later, for the digits; it takes 0.7 s)

    import clf_export.cli
    import clf_export.exporting
    import clf_train.cli
    import clf_train.cli_import
    import clf_train.importing
    import clf_train.training

    # No command imports the ONNX exporter before it is needed.
    with contextlib.suppress(ImportError):
        import torch.onnx._internal.exporter._core  # noqa: F401
    return {
        "clf-train": clf_train.cli.main,
        "clf-import": clf_train.cli_import.main,
        "clf-export": clf_export.cli.main,
    }


def _run(request: dict, mains: dict) -> int:
    for number, path in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = request["argv"]
    if request["kill_after_s"] is not None:
        # SIGALRM has no handler, so it ends the process at once.
        signal.setitimer(signal.ITIMER_REAL, request["kill_after_s"])
    if request["kill_at"] is not None:
        sys.addaudithook(_create_killer(request["kill_at"], request["kill_with"], request["cwd"]))
    try:
        mains[Path(sys.argv[0]).name]()
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _create_killer(kill_at: int, kill_with: int, folder: str):
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in _CHANGES) or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        if os.path.realpath(os.fsdecode(arguments[0])).startswith(os.path.realpath(folder)):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), kill_with)

    return hook


def main() -> None:
    mains = _import_commands()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            code = 70
            try:
                code = _run(json.loads(line), mains)
            finally:
                os._exit(code)
        _, status = os.waitpid(process, 0)
        print(process, os.waitstatus_to_exitcode(status), file=answers, flush=True)


if __name__ == "__main__":
    main()
