"""Where one frame ends, for each kind of frame: a JPEG by its segments, a PNG by its chunks, others by their part.

A walker is called again with more bytes until it finds the end, and continues where it stopped. Searching for FF D9
instead would find the end of a thumbnail.
"""

from __future__ import annotations

import re
from typing import Protocol

# A camera of 64 megapixels writes JPEGs of 30 MB.
MAX_FRAME_BYTES = 64_000_000

JPEG = b"\xff\xd8\xff"
PNG = b"\x89PNG\r\n\x1a\n"

# ITU T.81, table B.1. In compressed data, FF is followed by 00 or by the number of a restart.
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD8)))
_WITH_LENGTH = frozenset(range(0xC0, 0xFF)) - _WITHOUT_LENGTH - {0xD8, _END_OF_IMAGE}
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")

# Length and type of a PNG chunk, and its checksum.
_CHUNK_HEADER_BYTES, _CHUNK_OVERHEAD_BYTES = 8, 12
# A damaged length is noticed after as many bytes: in longer chunks the next frame is searched.
_TRUSTED_CHUNK_BYTES = 1 << 20


class DamageError(Exception):
    """The bytes are no frame from `position` on."""

    def __init__(self, position: int, message: str) -> None:
        """Store where the search for the next frame begins, and what is wrong, in one line."""
        super().__init__(message)
        self.position = position


class Walker(Protocol):
    """Finds the end of one frame."""

    def find_end(self, data: bytearray) -> int | None:
        """Return the length of the frame with which `data` begins, or None if it needs more bytes.

        Raises:
            DamageError: It is no frame.
        """


class JpegWalker:
    """Walks the segments of a JPEG, those of thumbnails included, and the scans between them."""

    def __init__(self) -> None:
        """Begin after the start-of-image marker."""
        self._position = 2
        self._is_in_scan = False

    def find_end(self, data: bytearray) -> int | None:
        """Return the length of the JPEG. Raises DamageError."""
        while self._is_in_scan or len(data) >= self._position + 2:
            if self._is_in_scan:
                self._find_marker(data)
            elif data[self._position] != 0xFF:
                raise DamageError(self._position, f"the JPEG has no marker at its byte {self._position:,}")
            elif data[self._position + 1] == _END_OF_IMAGE:
                return self._position + 2
            elif not self._skip_segment(data):
                return None
            if self._is_in_scan and len(data) <= self._position + 1:
                return None
        return None

    def _find_marker(self, data: bytearray) -> None:
        found = _NEXT_MARKER.search(data, self._position)
        self._is_in_scan = found is None
        # The last byte may be the first one of a marker.
        self._position = max(self._position, len(data) - 1) if found is None else found.start()

    def _skip_segment(self, data: bytearray) -> bool:
        """Skip one segment; return whether its length is there already."""
        marker = data[self._position + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            self._position += 1 if marker == 0xFF else 2
            return True
        if marker not in _WITH_LENGTH:
            raise DamageError(self._position, f"the JPEG breaks off after {self._position:,} bytes")
        if len(data) < self._position + 4:
            return False
        length = int.from_bytes(data[self._position + 2 : self._position + 4], "big")
        if length < 2:
            raise DamageError(self._position + 2, f"the JPEG has a segment of {length} bytes")
        self._position += 2 + length
        self._is_in_scan = marker == _START_OF_SCAN
        return True


class PngWalker:
    """Walks the chunks of a PNG."""

    def __init__(self) -> None:
        """Begin after the signature."""
        self._position = len(PNG)
        self._searched = 0

    def find_end(self, data: bytearray) -> int | None:
        """Return the length of the PNG. Raises DamageError."""
        while len(data) >= self._position + _CHUNK_HEADER_BYTES:
            length = int.from_bytes(data[self._position : self._position + 4], "big")
            kind = data[self._position + 4 : self._position + _CHUNK_HEADER_BYTES]
            end = self._position + _CHUNK_OVERHEAD_BYTES + length
            if not kind.isalpha() or length > MAX_FRAME_BYTES or (kind == b"IEND" and length):
                raise DamageError(self._position, f"the PNG has no chunk at its byte {self._position:,}")
            if length > _TRUSTED_CHUNK_BYTES:
                self._check_length(data, end)
            if len(data) < end:
                return None
            if kind == b"IEND":
                return end
            self._position = end
        return None

    def _check_length(self, data: bytearray, end: int) -> None:
        found = data.find(PNG, max(self._position, self._searched), end)
        self._searched = len(data) - len(PNG)
        if found >= 0:
            raise DamageError(found, f"the PNG breaks off after {found:,} bytes")


class PartWalker:
    """Finds the end of a part of a multipart stream by its Content-Length, or by the boundary after it."""

    def __init__(self, boundary: bytes, length: int | None) -> None:
        """Store the boundary, with its two hyphens, and the Content-Length, if the part has one."""
        self._delimiter = b"\n" + boundary
        self._length = length
        self._searched = 0

    def find_end(self, data: bytearray) -> int | None:
        """Return the length of the part. Raises DamageError."""
        found = data.find(self._delimiter, self._searched, self._length)
        self._searched = max(0, len(data) - len(self._delimiter))
        if self._length is None and found >= 0:
            return found - int(data[:found].endswith(b"\r"))
        if found >= 0:
            raise DamageError(found + 1, f"the part has {found:,} bytes, expected {self._length:,}")
        return self._length if self._length is not None and len(data) >= self._length else None
