"""Whether a PNG has all of its pixels. Pillow leaves those black that come after an early end of the zlib stream.

Imported only if the last pixels are black, or may be anywhere because the image is interlaced.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import IO

from clf_runtime.errors import ImageError

_SIGNATURE_BYTES = 8
_PIECE_BYTES = 1 << 16
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel, by color type
# Adam7: the first column and row of each pass, and the steps to the next ones.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def check_is_complete(file: IO[bytes]) -> None:
    """Raise ImageError if the compressed pixels of a PNG that Pillow has decoded end before its last row."""
    expected = found = 0
    stream = zlib.decompressobj()
    for kind, content in _read_chunks(file):
        if kind == b"IHDR":
            expected = _count_bytes(content)
        elif kind == b"IDAT":
            while content and not stream.eof:
                found += len(stream.decompress(content, _PIECE_BYTES))
                content = stream.unconsumed_tail
        elif found:
            break
    if found < expected:
        raise ImageError(
            "damaged", f"the PNG data end after {found:,} of {expected:,} bytes of its pixels; save it again"
        )


def _read_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    file.seek(_SIGNATURE_BYTES)
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        yield kind, file.read(size)
        file.seek(4, 1)  # the checksum, which Pillow has compared


def _count_bytes(header: bytes) -> int:
    """Return how many bytes the pixels take, with the filter of each row."""
    width, height, depth, color, _, _, is_interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _SAMPLES[color]
    passes = _PASSES if is_interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - left) // right), -(-(height - top) // down)) for left, top, right, down in passes]
    return sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0 and rows > 0)
