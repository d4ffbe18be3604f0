"""A thread that reads the stream, and the frames that wait for the model: the newest one, or each in turn."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from clf_runtime.errors import DataError, ImageError
from clf_runtime.streams.frames import STARTS, FrameContent, FrameSplitter

_PIECE_BYTES = 1 << 16  # what a pipe holds

# A stream in which nothing looks like a frame for as long is something else, such as H.264.
_HEAD_BYTES = 16
_MAX_BYTES_BEFORE_FIRST_FRAME = 16_000_000


@dataclass(frozen=True)
class Frame:
    """A frame of the stream.

    Attributes:
        number: Its position in the stream, from 1 on; damaged frames have one, too.
        content: The bytes of an image file, or what is wrong with the frame.
        arrived: When its last byte was read, by `time.monotonic`.
        dropped: How many earlier frames were dropped.
        damaged: How many frames up to this one could not be split off the stream.
    """

    number: int
    content: FrameContent
    arrived: float
    dropped: int
    damaged: int


class FrameQueue:
    """At most one frame that waits for the model, and one damaged frame that waits for its report."""

    def __init__(self, keeps_latest: bool) -> None:
        """Store the policy.

        Args:
            keeps_latest: Whether a new frame replaces the one that waits. Otherwise, `put` waits until that is taken.
        """
        self._keeps_latest = keeps_latest
        self._waiting: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._error: Exception | None = None
        self.received = 0
        self.dropped = 0
        self.damaged = 0

    def put(self, content: FrameContent, arrived: float) -> None:
        """Add a frame that has arrived. After `close`, it does not count any more."""
        with self._changed:
            while not self._keeps_latest and self._waiting and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return
            is_damaged = isinstance(content, ImageError)
            replaced = [frame for frame in self._waiting if isinstance(frame.content, ImageError) == is_damaged]
            for frame in replaced:
                self._waiting.remove(frame)
            self.received += 1
            self.damaged += is_damaged
            self.dropped += 0 if is_damaged else len(replaced)
            self._waiting.append(Frame(self.received, content, arrived, self.dropped, self.damaged))
            self._changed.notify_all()

    def take(self) -> Frame | None:
        """Wait for a frame. Return None at the end of the stream."""
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            frame = self._waiting.popleft() if self._waiting else None
            self._changed.notify_all()
            return frame

    def has_images(self) -> bool:
        """Return whether any frame was not damaged."""
        return self.received > self.damaged

    def close(self, error: Exception | None = None) -> None:
        """End the stream, for the reason that `check` raises later."""
        with self._changed:
            self._is_closed = True
            self._error = self._error or error
            self._changed.notify_all()

    def check(self) -> None:
        """Raise the error with which the stream ended, if it did."""
        if self._error is not None:
            raise self._error


def read_descriptor(descriptor: int) -> Callable[[], bytes]:
    """Return a function that waits for the next bytes of a file or pipe, and returns none at its end."""
    os.set_blocking(descriptor, True)  # the process before us in the pipe may have changed that
    return lambda: os.read(descriptor, _PIECE_BYTES)


def start_reader(read: Callable[[], bytes], splitter: FrameSplitter, frames: FrameQueue) -> None:
    """Start a thread that reads to the end of the stream. It never keeps the process from ending."""

    def run() -> None:
        try:
            _read_frames(read, splitter, frames)
        except Exception as error:  # handed to the main thread, which raises it
            frames.close(error)
        else:
            frames.close()

    threading.Thread(target=run, name="clf-stream", daemon=True).start()


def _read_frames(read: Callable[[], bytes], splitter: FrameSplitter, frames: FrameQueue) -> None:
    head, bytes_read = b"", 0
    while piece := read():
        head, bytes_read = head or piece[:_HEAD_BYTES], bytes_read + len(piece)
        arrived = time.monotonic()
        for content in splitter.feed(piece):
            frames.put(content, arrived)
        if bytes_read > _MAX_BYTES_BEFORE_FIRST_FRAME and not splitter.is_in_frame and not frames.has_images():
            raise DataError(f"stdin: no frame in the first {bytes_read:,} bytes; {_describe(head)}")
    for content in splitter.finish():
        frames.put(content, time.monotonic())
    if not head:
        raise DataError("stdin: empty, expected frames; see what the program before clf-run printed")
    if not frames.has_images() and not head.startswith(STARTS):
        raise DataError(f"stdin: no frame; {_describe(head)}")


def _describe(head: bytes) -> str:
    return (
        f"it starts with {head!r}, expected JPEG or PNG images one after another, or a multipart stream; "
        "convert it with ffmpeg -i SOURCE -f mjpeg -"
    )
