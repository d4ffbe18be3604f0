"""libtiff's own messages about damaged files, which it prints on stderr."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

_MAPS = Path("/proc/self/maps")


@functools.cache
def silence(maps: Path = _MAPS) -> None:
    """Let libtiff print nothing: Pillow raises an error where a file cannot be decoded, but does not silence libtiff.

    Args:
        maps: Where Linux lists the libraries of this process. On other systems libtiff goes on printing.
    """
    path = _find_library(maps)
    if path is None:
        return
    library = ctypes.CDLL(path)  # the one that Pillow has loaded
    for set_handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


def _find_library(maps: Path) -> str | None:
    try:
        lines = maps.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    columns = (line.split(maxsplit=5) for line in lines)  # the last one is the path
    return next((row[5] for row in columns if len(row) == 6 and Path(row[5]).name.startswith("libtiff")), None)
