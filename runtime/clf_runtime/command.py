"""What every command shares: one-line errors, exit codes, signals. The three `cli.py` end in `execute`."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import warnings
from typing import NoReturn

import click

from clf_runtime.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_MACHINE,
    EXIT_OK,
    EXIT_TERMINATED,
    ClfError,
)

ARTIFACTS_OPTION = click.option(
    "--artifacts",
    "-a",
    metavar="DIR",
    envvar="CLF_ARTIFACTS",
    default="artifacts",
    show_default=True,
    show_envvar=True,
    help="The folder of one model, from training to device.",
)

# Import name → the extra that brings it.
_EXTRA_OF = {
    "torch": "train",
    "torchvision": "train",
    "sklearn": "train",
    "tqdm": "train",
    "jinja2": "train",
    "safetensors": "train",
    "clf_train": "train",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "onnxruntime": "cpu",
}

# Faults of the machine, not of the input: the same call can succeed elsewhere or after a clean-up.
_MACHINE_ERRNOS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EMFILE,
    errno.ENFILE,
    errno.ETXTBSY,
    errno.EBUSY,
    errno.EIO,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ENOMEM,
}


def execute(command: click.Command, *, leave_at_once: bool = False) -> NoReturn:
    """Run `command` on `sys.argv` and exit with the code that DESIGN gives to how it went.

    `leave_at_once` spares Python and onnxruntime to take themselves apart, a fifth of the time of one answer: for
    commands that leave nothing to be done at exit.
    """
    program = command.name or "clf"
    if f"_{program.replace('-', '_').upper()}_COMPLETE" in os.environ:
        command.main(prog_name=program)  # shell completion; exits
    signal.signal(signal.SIGTERM, _terminated)
    # What Pillow warns of, in lines of its own, a record says or does not matter.
    warnings.filterwarnings("ignore", module="PIL")
    code = _exit_code(command, program)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to be tidied up
    if leave_at_once:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # what was wrong with it is told already
                stream.flush()
        os._exit(code)
    sys.exit(code)


def say(message: str) -> None:
    """Tell the person at the terminal; results go to stdout, all else comes here."""
    click.echo(message, err=True)


def _terminated(signum: int, frame: object) -> NoReturn:
    # As an exception, so that temporary files are removed on the way out.
    raise SystemExit(EXIT_TERMINATED)


def _exit_code(command: click.Command, program: str) -> int:
    # Not command.main(): that one answers a closed pipe with exit code 1.
    try:
        with command.make_context(program, sys.argv[1:]) as context:
            code = command.invoke(context)
        sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_OK
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as wrong_usage:
        wrong_usage.show()
        return wrong_usage.exit_code
    except (KeyboardInterrupt, click.Abort) as interrupt:
        say(f"{program}: interrupted{_detail(interrupt)}")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough. What is still buffered must not complain at shutdown.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:
        return _report(error, program)


def _report(error: Exception, program: str) -> int:
    if isinstance(error, ClfError):
        say(f"{program}: {error}")
        return error.exit_code
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _EXTRA_OF:
        package = (error.name or "").partition(".")[0]
        extra = "export" if program == "clf-export" and _EXTRA_OF[package] != "cpu" else _EXTRA_OF[package]
        alternative = " (or clf-edge[gpu] for CUDA)" if extra == "cpu" else ""
        say(f'{program}: {package} is not installed; pip install "clf-edge[{extra}]"{alternative}')
        return EXIT_MACHINE
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRNOS:
        where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        say(f"{program}: {where}{(error.strerror or str(error)).lower()}; what was there before is still there")
        return EXIT_MACHINE
    if isinstance(error, MemoryError):
        say(f"{program}: out of memory; what was there before is still there")
        return EXIT_MACHINE
    import traceback

    traceback.print_exception(error)
    say(f"{program}: this is a bug of clf-edge; please report it with the lines above")
    return EXIT_BUG


def _detail(interrupt: BaseException) -> str:
    return f"; {interrupt}" if str(interrupt) else ""
