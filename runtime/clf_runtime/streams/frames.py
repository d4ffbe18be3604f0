"""From a stream of bytes to frames: JPEG and PNG files one after another, or the parts of a multipart stream.

Only the bytes of a frame that is not complete yet are kept. After damage, the stream continues with the next frame.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from clf_runtime.errors import ImageError
from clf_runtime.streams.walkers import (
    JPEG,
    MAX_FRAME_BYTES,
    PNG,
    DamageError,
    JpegWalker,
    PartWalker,
    PngWalker,
    Walker,
)

_PADDING = b"\0\t\r\n "
_PART, _HTTP = b"--", b"HTTP/"
STARTS = (JPEG, PNG, _PART, _HTTP)
_LONGEST_START_BYTES = max(map(len, STARTS))
_NEXT_START = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|--[\w'()+,./:=?-]|HTTP/")

_MAX_HEADER_BYTES = 8192
_TEXT = re.compile(rb"[\t\r\n -~]*")
_HEADERS_END = re.compile(rb"\r?\n\r?\n")
_HEADERS = re.compile(rb"(?:--[\w'()+,./:=?-]+|HTTP/[ -~]*)[ \t]*\r?\n(?:[\w-]+:[\t -~]*\r?\n)*\r?\n")
_CONTENT_LENGTH = re.compile(rb"^content-length:[ \t]*(\d{1,12})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)

FrameContent = bytes | ImageError


class FrameSplitter:
    """Splits a stream, given in pieces of any size."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        """Store the size of the largest frame."""
        self._max_frame_bytes = max_frame_bytes
        self._data = bytearray()
        self._walker: Walker | None = None
        self._boundary = b""  # of a multipart stream, with its two hyphens
        self._part: PartWalker | None = None  # of the part that begins, in case it is neither JPEG nor PNG
        # After damage, what looks like a frame may be a thumbnail: it counts only if another frame follows it.
        self._is_lost = False

    @property
    def is_in_frame(self) -> bool:
        """Whether the bytes so far end within a frame."""
        return self._walker is not None

    def feed(self, piece: bytes) -> Iterator[FrameContent]:
        """Yield the frames that end in a piece: the bytes of an image file, or what is wrong with a frame."""
        self._data += piece
        while (frame := self._next_frame()) is not None:
            yield frame

    def finish(self) -> Iterator[FrameContent]:
        """Yield what is left at the end of the stream."""
        if self._walker is not None:
            end = self._walker.find_end(self._data)  # complete if it has waited for what follows it
            yield self._take(end) if end is not None else _cut_off(self._data)
        elif self._data and (JPEG.startswith(self._data) or PNG.startswith(self._data)):
            yield _cut_off(self._data)

    def _next_frame(self) -> FrameContent | None:
        """Return the next frame, or None if it needs more bytes."""
        while True:
            try:
                end = self._find_end()
            except DamageError as damage:
                # What follows damage, or the image of a part, belongs to it up to the next start.
                is_new = self._walker is not None or not (self._is_lost or self._boundary)
                self._drop(damage.position)
                if is_new:
                    self._is_lost = True
                    return ImageError("damaged", str(damage))
                continue
            if end is None:
                return self._check_size()
            is_followed = self._is_followed(end) if self._is_lost else True
            if is_followed is None:
                return None
            content = self._take(end)
            if is_followed:
                self._is_lost = False
                return content

    def _find_end(self) -> int | None:
        if self._walker is None:
            self._walker = self._begin()
        return None if self._walker is None else self._walker.find_end(self._data)

    def _begin(self) -> Walker | None:
        """Return the walker of the frame with which the data begin, or None if that takes more bytes to know.

        Raises:
            DamageError: They begin with something else.
        """
        while self._skip_padding().startswith((_PART, _HTTP)):
            if not self._skip_headers():
                return None
        part, self._part = self._part, None
        if self._data.startswith(JPEG):
            return JpegWalker()
        if self._data.startswith(PNG):
            return PngWalker()
        if len(self._data) < _LONGEST_START_BYTES and (part or any(each.startswith(self._data) for each in STARTS)):
            self._part = part
            return None
        if part is not None:
            return part
        found = _NEXT_START.search(self._data, 1)
        position = found.start() if found else max(1, len(self._data) - _LONGEST_START_BYTES + 1)
        raise DamageError(position, "bytes between two frames are no image")

    def _skip_padding(self) -> bytearray:
        del self._data[: len(self._data) - len(self._data.lstrip(_PADDING))]
        return self._data

    def _skip_headers(self) -> bool:
        """Skip the headers of a part, or of the response of a server. Return False if they are not complete yet.

        Raises:
            DamageError: They are no headers.
        """
        head = bytes(self._data[:_MAX_HEADER_BYTES])
        if self._boundary and head.startswith(closing := self._boundary + b"--"):
            del self._data[: len(closing)]
            return True
        found = _HEADERS_END.search(head)
        headers = head if found is None else head[: found.end()]
        if found is None and len(head) < _MAX_HEADER_BYTES and _TEXT.fullmatch(head):
            return False
        if not _HEADERS.fullmatch(headers):
            raise DamageError(len(_PART), "a part of a multipart stream has no headers")
        if headers.startswith(_PART):
            self._boundary = headers.splitlines()[0].rstrip()
            length = _CONTENT_LENGTH.search(headers)
            # Without a header it may be a line within damage: it says nothing about what follows.
            is_part = headers.count(b":") > self._boundary.count(b":")
            self._part = PartWalker(self._boundary, int(length[1]) if length else None) if is_part else None
        del self._data[: len(headers)]
        return True

    def _check_size(self) -> ImageError | None:
        """Return an error if the incomplete frame is too large."""
        size_bytes = len(self._data)
        if size_bytes <= self._max_frame_bytes:
            return None
        self._drop(size_bytes)
        self._is_lost = True
        return ImageError("too-large", f"a frame has no end within {self._max_frame_bytes:,} bytes")

    def _is_followed(self, end: int) -> bool | None:
        """Return whether another frame follows this one, or None if that takes more bytes to know."""
        following = bytes(self._data[end : end + _MAX_HEADER_BYTES]).lstrip(_PADDING)
        if following.startswith(STARTS):
            return True
        return None if any(start.startswith(following) for start in STARTS) else False

    def _take(self, end: int) -> bytes:
        self._walker = None
        with memoryview(self._data) as view:
            content = bytes(view[:end])
        del self._data[:end]
        return content

    def _drop(self, size_bytes: int) -> None:
        self._walker = self._part = None
        del self._data[:size_bytes]


def _cut_off(data: bytearray) -> ImageError:
    return ImageError("damaged", f"the stream ends after {len(data):,} bytes of a frame")
