"""Reads the frames of a stream: each in turn, or the newest one whenever the model is free."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from clf_runtime.errors import DataError, ImageError
from clf_runtime.streams.frames import STARTS, FrameContent, FrameSplitter

_PIECE_BYTES = 1 << 16  # what a pipe holds

# A stream in which nothing looks like a frame for as long is something else, such as H.264.
_HEAD_BYTES = 16
_MAX_BYTES_BEFORE_FIRST_FRAME = 16_000_000


ReadFrame = tuple[FrameContent, float]  # with the time at which its last byte was read


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


class FrameSource(Protocol):
    """Where the threads take their frames from.

    Attributes:
        dropped: How many frames were not taken because a newer one was there.
        damaged: How many frames could not be split off the stream.
    """

    dropped: int
    damaged: int

    def begin(self, frames: Iterator[ReadFrame]) -> None:
        """Take them from what `read_frames` returns."""

    def take(self) -> Frame | None:
        """Wait for a frame. Return None at the end of the stream."""

    def close(self) -> None:
        """End the stream."""

    def check(self) -> None:
        """Raise the error with which the stream ended, if it did."""


class EveryFrame:
    """Each frame in turn, read by the thread that takes it: the camera waits for the model. See `FrameSource`."""

    def __init__(self) -> None:
        """Begin without a frame."""
        self._frames: Iterator[ReadFrame] = iter(())
        self._number = 0
        self._is_closed = False
        self._error: Exception | None = None
        self.dropped = 0
        self.damaged = 0

    def begin(self, frames: Iterator[ReadFrame]) -> None:
        """Store where to read them."""
        self._frames = frames

    def take(self) -> Frame | None:
        """Read the next frame; by one thread at a time."""
        try:
            content, arrived = next(self._frames)
        except StopIteration:
            return None
        except Exception as error:  # kept for the main thread, which raises it after the earlier frames are written
            self._error = error
            return None
        if self._is_closed:
            return None
        self._number += 1
        self.damaged += isinstance(content, ImageError)
        return Frame(self._number, content, arrived, self.dropped, self.damaged)

    def close(self) -> None:
        """End the stream with the frame that is read now, which is not returned."""
        self._is_closed = True

    def check(self) -> None:
        """Raise the error with which the stream ended, if it did."""
        if self._error is not None:
            raise self._error


class LatestFrame:
    """The newest frame, read by a thread: it replaces an earlier one that waits for the model. See `FrameSource`.

    A damaged frame that waits for its report replaces only another damaged one.
    """

    def __init__(self) -> None:
        """Begin without a frame."""
        self._waiting: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._error: Exception | None = None
        self._number = 0
        self.dropped = 0
        self.damaged = 0

    def begin(self, frames: Iterator[ReadFrame]) -> None:
        """Start a thread that reads to the end of the stream. It never keeps the process from ending."""

        def run() -> None:
            try:
                for content, arrived in frames:
                    self.put(content, arrived)
            except Exception as error:  # kept for the main thread, which raises it
                self._error = error
            self.close()

        threading.Thread(target=run, name="clf-stream", daemon=True).start()

    def put(self, content: FrameContent, arrived: float) -> None:
        """Add a frame that has arrived. After `close`, it does not count any more."""
        with self._changed:
            if self._is_closed:
                return
            is_damaged = isinstance(content, ImageError)
            replaced = [frame for frame in self._waiting if isinstance(frame.content, ImageError) == is_damaged]
            for frame in replaced:
                self._waiting.remove(frame)
            self._number += 1
            self.damaged += is_damaged
            self.dropped += 0 if is_damaged else len(replaced)
            self._waiting.append(Frame(self._number, content, arrived, self.dropped, self.damaged))
            self._changed.notify_all()

    def take(self) -> Frame | None:
        """Wait for a frame. Return None at the end of the stream."""
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            return self._waiting.popleft() if self._waiting else None

    def close(self) -> None:
        """End the stream with the frames that wait."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def check(self) -> None:
        """Raise the error with which the stream ended, if it did."""
        if self._error is not None:
            raise self._error


def read_descriptor(descriptor: int) -> Callable[[], bytes]:
    """Return a function that waits for the next bytes of a file or pipe, and returns none at its end."""
    os.set_blocking(descriptor, True)  # the process before us in the pipe may have changed that
    return lambda: os.read(descriptor, _PIECE_BYTES)


def read_frames(read: Callable[[], bytes], splitter: FrameSplitter) -> Iterator[ReadFrame]:
    """Yield the frames of a stream, and when the last byte of each was read, by `time.monotonic`.

    Args:
        read: Waits for the next bytes of the stream, and returns none at its end.
        splitter: Splits them.

    Raises:
        DataError: The stream contains no frames.
        OSError: It cannot be read.
    """
    head, bytes_read, has_images = b"", 0, False
    while piece := read():
        head, bytes_read = head or piece[:_HEAD_BYTES], bytes_read + len(piece)
        arrived = time.monotonic()
        for content in splitter.feed(piece):
            has_images = has_images or not isinstance(content, ImageError)
            yield content, arrived
        if bytes_read > _MAX_BYTES_BEFORE_FIRST_FRAME and not splitter.is_in_frame and not has_images:
            raise DataError(f"stdin: no frame in the first {bytes_read:,} bytes; {_describe(head)}")
    for content in splitter.finish():
        has_images = has_images or not isinstance(content, ImageError)
        yield content, time.monotonic()
    if not head:
        raise DataError("stdin: empty, expected frames; see what the program before clf-run printed")
    if not has_images and not head.startswith(STARTS):
        raise DataError(f"stdin: no frame; {_describe(head)}")


def _describe(head: bytes) -> str:
    return (
        f"it starts with {head!r}, expected JPEG or PNG images one after another, or a multipart stream; "
        "convert it with ffmpeg -i SOURCE -f mjpeg -"
    )
