"""The faults that are not ours, each with the exit code that the commands end with.

A message is one line: what, which file, what was found, what was expected, what to do.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_INVALID = 3
EXIT_MACHINE = 4
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class ClfError(Exception):
    """A fault that the user can mend; `exit_code` is what a command ends with."""

    exit_code = EXIT_BUG


class UsageError(ClfError, ValueError):
    """Options that contradict each other, or the model."""

    exit_code = EXIT_USAGE


class InvalidModelError(ClfError, ValueError):
    """The model is damaged, foreign, newer than this reader, or fails its proof."""

    exit_code = EXIT_INVALID


class DataError(ClfError, ValueError):
    """The images cannot be trained on, or are not those that the model was trained on."""

    exit_code = EXIT_INVALID


class MachineError(ClfError, RuntimeError):
    """This machine cannot do it: no CUDA, a missing package, no space, no permission."""

    exit_code = EXIT_MACHINE


class ImageError(ClfError, ValueError):
    """One image cannot be read; `kind` is one of the words in `IMAGE_FAULTS`."""

    exit_code = EXIT_SOME_FAILED

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        # It comes from processes that decode.
        return type(self), (self.kind, str(self))


# kind → what it means; records in jsonl, json and csv carry the kind.
IMAGE_ERROR_KINDS = {
    "not-found": "nothing has this name",
    "no-permission": "this user may not read it",
    "not-a-file": "a device, a pipe or a socket, not a file",
    "empty": "a file of zero bytes, or a folder without images",
    "not-an-image": "the first bytes are those of no supported image format",
    "unsupported": "an image, but of a kind that has no defined reading (float pixels, more than 16 bits)",
    "too-large": "more pixels than an image is allowed to have",
    "damaged": "starts like an image, but cannot be decoded to its end",
    "unreadable": "the file system failed to deliver it",
}
