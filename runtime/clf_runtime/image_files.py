"""Image files before they are decoded: their formats, how they are opened, and what can be wrong with them.

Imports neither numpy nor Pillow: `clf-run --server` reads images and leaves decoding to the service.
"""

from __future__ import annotations

import io
import os
import stat
from typing import IO

from clf_runtime.errors import ImageError, format_reason

# The memory that decoding and resizing one image may take, by default.
MAX_IMAGE_BYTES = 512_000_000

# Pillow reads a few bytes at a time, which took 30 of the 88 us of an MNIST image; smaller files are read at once.
_READ_AT_ONCE_BYTES = 1 << 20

# First bytes → Pillow's name of the format and of its plugin. No other plugin is tried on a file.
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG", "JpegImagePlugin"),
    (b"\x89PNG\r\n\x1a\n", "PNG", "PngImagePlugin"),
    (b"GIF87a", "GIF", "GifImagePlugin"),
    (b"GIF89a", "GIF", "GifImagePlugin"),
    (b"BM", "BMP", "BmpImagePlugin"),
    (b"II*\x00", "TIFF", "TiffImagePlugin"),
    (b"MM\x00*", "TIFF", "TiffImagePlugin"),
    (b"RIFF", "WEBP", "WebPImagePlugin"),
    *((b"P%d" % kind, "PPM", "PpmImagePlugin") for kind in range(1, 7)),
)
HEAD_BYTES = 12
FORMATS = tuple(sorted({name for _, name, _ in _SIGNATURES}))
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".pnm")
)


def detect_format(head: bytes) -> tuple[str, str] | None:
    """Return Pillow's names of the format and of its plugin, by the first HEAD_BYTES of a file; None if unsupported."""
    for magic, name, plugin in _SIGNATURES:
        if head.startswith(magic) and (name != "WEBP" or head[8:HEAD_BYTES] == b"WEBP"):
            return name, plugin
    return None


def open_binary(image: str | os.PathLike[str] | bytes | IO[bytes]) -> IO[bytes]:
    """Open an image file, or the bytes of one. Raises ImageError, OSError."""
    if isinstance(image, bytes):
        return io.BytesIO(image)
    if not isinstance(image, (str, os.PathLike)):
        if not hasattr(image, "read"):
            raise TypeError(f"expected one image (path, bytes, file, PIL image or array), found {type(image).__name__}")
        return io.BytesIO(image.read())
    # Before opening: opening a pipe waits for a writer that may never come.
    try:
        status = os.stat(image)  # noqa: PTH116 (creating a Path takes longer than the call)
    except ValueError:  # the name has a zero byte or a lone surrogate
        raise ImageError("not-found", "no file can have this name") from None
    if stat.S_ISDIR(status.st_mode):
        raise ImageError("not-a-file", "a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("not-a-file", "a device, pipe or socket, not a regular file")
    if not status.st_size:
        # Not opened: some files in /proc block forever.
        raise ImageError("empty", "the file has zero bytes")
    file = io.FileIO(image)
    if status.st_size > _READ_AT_ONCE_BYTES:
        return io.BufferedReader(file)
    with file:
        return io.BytesIO(file.readall())


def image_error_from_os_error(error: OSError) -> ImageError:
    """Return the ImageError for a file that could not be opened or read."""
    kind = {FileNotFoundError: "not-found", PermissionError: "no-permission"}.get(type(error), "unreadable")
    return ImageError(kind, format_reason(error))
