"""Exceptions with the exit code of each, and the kinds of image errors.

A message is one line: the file, what is wrong (found, expected), and what to do.
"""

from __future__ import annotations

import os

# A tab or a line break in a name would break a line of output; escape sequences would reach the terminal.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_ESCAPES |= {ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_INVALID = 3
EXIT_MACHINE = 4
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class ClfError(Exception):
    """Base class of all exceptions that clf-edge raises on purpose.

    The message is one line, meant for a user: the file, what is wrong, and what to do.

    Attributes:
        exit_code: The exit code of a command that ends with this exception.
    """

    exit_code = EXIT_BUG


class UsageError(ClfError, ValueError):
    """Options that contradict each other or the model. Exit code 2."""

    exit_code = EXIT_USAGE


class InvalidModelError(ClfError, ValueError):
    """The model file is missing, damaged, from another tool, too new, or does not match its spec. Exit code 3."""

    exit_code = EXIT_INVALID


class ModelChangedError(InvalidModelError):
    """The model file was replaced or changed while it was opened. Exit code 3; the next attempt can succeed."""


class DataError(ClfError, ValueError):
    """The data cannot be used, or is not the data that an earlier step used. Exit code 3."""

    exit_code = EXIT_INVALID


class MachineError(ClfError, RuntimeError):
    """This machine cannot do it: a device that does not work, a missing package, no space. Exit code 4."""

    exit_code = EXIT_MACHINE


class ImageError(ClfError, ValueError):
    """One image cannot be read. Exit code 1.

    Attributes:
        kind: One of the keys of `IMAGE_ERROR_KINDS`: `"not-found"`, `"no-permission"`, `"not-a-file"`, `"empty"`,
            `"not-an-image"`, `"unsupported"`, `"too-large"`, `"damaged"` or `"unreadable"`.
    """

    exit_code = EXIT_SOME_FAILED

    def __init__(self, kind: str, message: str) -> None:
        """Store `kind` beside the message.

        Args:
            kind: A key of `IMAGE_ERROR_KINDS`.
            message: What is wrong with the image, in one line without its name.
        """
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        # Decoder processes send it to the process that started them.
        return type(self), (self.kind, str(self))


# Kind → meaning. Results in jsonl, json and csv contain the kind.
IMAGE_ERROR_KINDS = {
    "not-found": "no file has this name",
    "no-permission": "this user may not read the file",
    "not-a-file": "a device, pipe or socket, not a regular file",
    "empty": "a file of zero bytes, or a folder without images",
    "not-an-image": "the first bytes match no supported image format",
    "unsupported": "an image with no defined interpretation (floating-point pixels, more than 16 bits)",
    "too-large": "more pixels, scans or memory than the limits allow",
    "damaged": "the file starts like an image but cannot be decoded to its end",
    "unreadable": "the file system failed to deliver the content",
}


def format_reason(error: OSError) -> str:
    """Return what the system says of an error, without the file."""
    return (error.strerror or str(error)).lower()


def format_os_error(error: OSError) -> str:
    """Return the file of an error, if it names one, and what the system says."""
    file = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
    return f"{file}{format_reason(error)}"


def escape(text: str) -> str:
    """Return text without control characters: as `\\t`, `\\n`, `\\r` or `\\xNN`."""
    return text.translate(_ESCAPES)
