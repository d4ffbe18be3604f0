"""What all commands share: options, one-line errors, exit codes, signals. Each `main` ends in `execute`."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Collection
from functools import partial
from typing import NoReturn

import click

from clf_runtime.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_MACHINE,
    EXIT_OK,
    EXIT_TERMINATED,
    ClfError,
    escape,
    format_os_error,
    format_reason,
)
from clf_runtime.image_files import MAX_IMAGE_BYTES

ARTIFACTS_OPTION = click.option(
    "--artifacts",
    "-a",
    metavar="DIR",
    envvar="CLF_ARTIFACTS",
    default="artifacts",
    show_default=True,
    show_envvar=True,
    help="Folder of one model, from training to deployment.",
)

MAX_IMAGE_BYTES_OPTION = click.option(
    "--max-image-bytes",
    type=click.IntRange(1),
    default=MAX_IMAGE_BYTES,
    show_default=True,
    metavar="N",
    help="Memory that decoding and resizing one image may take.",
)

REQUIRE_SIGNATURE_OPTION = click.option(
    "--require-signature",
    multiple=True,
    metavar="PUBLIC.pem",
    help="Open a model only if the owner of this key has signed it; repeat for several keys, any of which will do.",
)


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic from click 8.5 on
    """A number with a unit: ms, s or min."""

    name = "TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|min)", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a time; expected 500ms, 30s or 1min, for example.", param, ctx)
        return float(match[1]) * {"ms": 0.001, "s": 1, "min": 60}[match[2]]


def is_given(context: click.Context, name: str) -> bool:
    """Return whether a parameter is in the command line."""
    is_in_command_line = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    return is_in_command_line and context.params.get(name) != ()  # click 8.1.0 counts an empty list of arguments


def raise_if_given(context: click.Context, names: Collection[str], reason: str) -> None:
    """Raise click.UsageError for the first of these parameters that is in the command line."""
    for parameter in context.command.params:
        if parameter.name in names and is_given(context, parameter.name):
            shown = parameter.opts[0] if isinstance(parameter, click.Option) else "an IMAGE"
            raise click.UsageError(f"{shown} {reason}.")


# Import name → the extra that installs it.
_EXTRAS = {
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
    "watchdog": "watch",
    "uvicorn": "serve",
    "httptools": "serve",
    "prometheus_client": "serve",
    "cryptography": "verify",
    "model_signing": "sign",
    "OpenSSL": "sign",
    "ray": "batch",
    "pyarrow": "batch",
    "fsspec": "batch",
}

_UNTIL_REPEATED_S = 0.01  # a signal whose exception was ignored

_STDOUT = "stdout"  # in place of a file's name

# Errors of the machine, not of the input: the same call can succeed elsewhere, or after a clean-up.
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
    errno.ENOENT,
    errno.ELOOP,
    errno.ESTALE,
    errno.ENOMEM,
}


def execute(command: click.Command, *, exit_immediately: bool = False) -> NoReturn:
    """Run a command on `sys.argv`, and exit with the code that docs/commands.md lists.

    Args:
        command: The command.
        exit_immediately: Skip the shutdown of Python and onnxruntime, which takes a fifth of the time of one image. For
            commands that leave nothing to be done at exit.
    """
    program = command.name or "clf"
    if f"_{program.replace('-', '_').upper()}_COMPLETE" in os.environ:
        command.main(prog_name=program)  # shell completion; exits
    _open_closed_streams()
    # A name of any bytes, and a Δ where the terminal has none, are no reason to end.
    is_unbuffered = getattr(sys.stdout, "write_through", False)  # by python -u, or PYTHONUNBUFFERED
    sys.stdout = _Results(
        open(sys.stdout.fileno(), "wb", 0 if is_unbuffered else -1, closefd=False),  # noqa: SIM115 (for good)
        sys.stdout.encoding,
        "backslashreplace",
        line_buffering=sys.stdout.isatty(),
        write_through=is_unbuffered,
    )
    binary = open(sys.stderr.fileno(), "wb", closefd=False)  # noqa: SIM115 (for good)
    sys.stderr = _Messages(binary, sys.stderr.encoding, "backslashreplace", line_buffering=True)
    # What Pillow warns about is in the result of the image, or does not matter.
    warnings.filterwarnings("ignore", module="PIL")
    code = _invoke(command, program)
    _flush_stdout()
    if exit_immediately:
        os._exit(code)
    sys.exit(code)


class _Results(io.TextIOWrapper):
    """Stdout. Its errors name it: they say nothing about files."""

    def write(self, text: str) -> int:
        """Write a text."""
        try:
            return super().write(text)
        except OSError as error:
            error.filename = _STDOUT
            raise

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            super().flush()
        except OSError as error:
            error.filename = _STDOUT
            raise


class _Messages(io.TextIOWrapper):
    """Stderr. A full disk behind it, or a terminal that is gone, must not end the results."""

    def write(self, text: str) -> int:
        """Write a text if that is possible."""
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered if that is possible."""
        with contextlib.suppress(OSError):
            super().flush()


def _open_closed_streams() -> None:
    """Open the standard streams that are closed, or the next file that is opened would take their place.

    Messages are discarded; results are not: stdout cannot be written to, and the first result fails.
    """
    for name, mode, flags in (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode, closefd=False))


def _flush_stdout() -> None:
    """Flush stdout. If that fails, the error was reported already, and must not occur again at shutdown."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(message: str) -> None:
    """Print a message on stderr, in one line and without escape sequences. Only results go to stdout."""
    click.echo(escape(message), err=True)


def _handle_signals() -> None:
    """Raise an exception at Ctrl-C and at SIGTERM, so that temporary files are removed."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _repeat_ignored_signal


def _repeat_ignored_signal(ignored: sys.UnraisableHookArgs) -> None:
    """Send a signal again whose exception is lost, because Python was in a place where it ignores exceptions.

    Each import has such a place, a callback of weakref.
    """
    number = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}.get(ignored.exc_type)
    if number is None:
        sys.__unraisablehook__(ignored)
        return
    import threading

    main = threading.main_thread().ident or 0
    # A signal that another thread receives does not interrupt what the main thread waits for.
    send = partial(signal.pthread_kill, main) if hasattr(signal, "pthread_kill") else signal.raise_signal
    threading.Timer(_UNTIL_REPEATED_S, send, (number,)).start()


def _stop_handling_signals() -> None:
    """End at once from now on: nothing is left to be removed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _terminate(signum: int, frame: object) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)


def _invoke(command: click.Command, program: str) -> int:
    """Run a command, report its error, and return the exit code."""
    try:
        return _run(command, program)
    finally:
        _stop_handling_signals()


def _run(command: click.Command, program: str) -> int:
    # Not command.main(), which exits with 1 if the output pipe is closed.
    try:
        _handle_signals()
        code = _call(command, program)
        sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_OK
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as wrong_usage:
        wrong_usage.message = escape(wrong_usage.message or "")  # type: ignore[misc,unused-ignore] # it quotes values
        wrong_usage.show()
        return wrong_usage.exit_code
    except (KeyboardInterrupt, click.Abort) as interrupt:
        detail = f"; {interrupt}" if str(interrupt) else ""
        say(f"{program}: interrupted{detail}")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_OK  # the reader needs no more
    except Exception as error:
        return _report(error, program)


def _call(command: click.Command, program: str) -> object:
    """Call a command with `sys.argv`, and return what it returns."""
    try:
        with command.make_context(program, sys.argv[1:]) as context:
            return command.invoke(context)
    except Exception as error:
        # Python (in __set_name__) and compiled modules (while they are imported) replace the exception of a signal by
        # an error of their own.
        if isinstance(error.__cause__, (KeyboardInterrupt, SystemExit)):
            raise error.__cause__ from None
        raise


def _report(error: Exception, program: str) -> int:
    """Print an error, and return the exit code."""
    if isinstance(error, ClfError):
        say(f"{program}: {error}")
        return error.exit_code
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _EXTRAS:
        package = (error.name or "").partition(".")[0]
        extra = "export" if program == "clf-export" and _EXTRAS[package] == "train" else _EXTRAS[package]
        alternative = " (or clf-edge[gpu] for CUDA)" if extra == "cpu" else ""
        say(f'{program}: {package} is not installed; pip install "clf-edge[{extra}]"{alternative}')
        return EXIT_MACHINE
    if isinstance(error, OSError) and error.filename == _STDOUT:
        is_closed = error.errno == errno.EBADF
        reason = "it is closed" if is_closed else format_reason(error)
        say(f"{program}: stdout: {reason}; the printed results are incomplete")
        return EXIT_MACHINE
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRNOS:
        say(f"{program}: {format_os_error(error)}; existing files are unchanged")
        return EXIT_MACHINE
    if isinstance(error, MemoryError):
        say(f"{program}: out of memory; existing files are unchanged")
        return EXIT_MACHINE
    import traceback

    traceback.print_exception(error)
    say(f"{program}: this is a bug in clf-edge; please report it with the lines above")
    return EXIT_BUG
