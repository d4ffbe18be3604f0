"""Silence for library calls whose warnings, log messages and prints concern the library, not the model."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress

_STDOUT, _STDERR = 1, 2


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings, log messages and all that is printed inside the block, by any thread; exceptions pass.

    C and C++ code prints too, past Python, so the file descriptors of stdout and stderr are redirected as well.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            _redirect_descriptors(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _redirect_descriptors() -> Iterator[None]:
    """Redirect the descriptors of stdout and stderr to nowhere."""
    _flush()
    saved = []
    with suppress(OSError):  # closed: nothing can be printed there
        saved = [(number, os.dup(number)) for number in (_STDOUT, _STDERR)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number, _ in saved:
            os.dup2(nowhere, number)
        yield
    finally:
        _flush()  # what C code has printed is still in its buffer
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        ctypes.CDLL(None).fflush(None)
    except (AttributeError, OSError, TypeError):
        return  # another C library
