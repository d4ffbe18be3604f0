"""From image files to one batch of pixels: in the calling thread, or in processes that are started for small images.

Decoding a small image is mostly Python code, of which a process runs one thread at a time. On 2 cores, with 10,000
MNIST files and a tiny network, two threads reached 0.25 of what the processor allows, and two processes 0.79.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from clf_runtime.errors import ImageError
from clf_runtime.image_files import MAX_IMAGE_BYTES
from clf_runtime.preprocess import UInt8Array, pixels_from_image
from clf_runtime.spec import Preprocess

if TYPE_CHECKING:
    from clf_runtime.sources import Content


class DecodedBatch(NamedTuple):
    """The images that could be decoded, in order, and what is wrong with the others."""

    pixels: UInt8Array  # (n, height, width, channels)
    errors: dict[int, ImageError]  # by position among all images


class Decoder(NamedTuple):
    """How images become pixels, and what one of them may take."""

    preprocess: Preprocess
    max_image_bytes: int = MAX_IMAGE_BYTES

    def decode(self, content: Content) -> UInt8Array:
        """Return the pixels of one image. Raises ImageError, also if the memory does not suffice."""
        if isinstance(content, ImageError):
            raise content
        try:
            return pixels_from_image(content, self.preprocess, self.max_image_bytes)
        except MemoryError:
            raise ImageError("too-large", "this machine has not enough memory to decode it; scale it down") from None


Decode = Callable[[Sequence["Content"]], DecodedBatch]


def decode_batch(contents: Sequence[Content], decoder: Decoder) -> DecodedBatch:
    """Decode several images into one array."""
    pixels = np.empty((len(contents), *decoder.preprocess.shape), np.uint8)
    errors: dict[int, ImageError] = {}
    for position, content in enumerate(contents):
        try:
            pixels[position - len(errors)] = decoder.decode(content)
        except ImageError as error:
            errors[position] = error
    return DecodedBatch(pixels[: len(contents) - len(errors)], errors)


class DecoderPool:
    """Processes that decode, as many batches at once as there are processes. Safe to call from several threads."""

    def __init__(self, count: int, decoder: Decoder) -> None:
        """Store how many processes `__enter__` starts."""
        self._count = count
        self._decoder = decoder
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._all: list[_Process] = []

    def __enter__(self) -> DecoderPool:
        """Start the processes. They end with the context, or when this process ends for whatever reason."""
        with contextlib.suppress(OSError):  # no more processes are allowed here; fewer do the work, or none
            for _ in range(self._count):
                self._all.append(_Process(self._decoder, self._all))
                self._idle.put(self._all[-1])
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._all:
            process.close()

    def __call__(self, contents: Sequence[Content]) -> DecodedBatch:
        """Decode several images into one array, in the next idle process."""
        # Only names are sent: open files cannot be, and bytes are faster decoded here.
        if not self._all or not all(isinstance(content, (str, ImageError)) for content in contents):
            return decode_batch(contents, self._decoder)
        process = self._idle.get()
        try:
            return process.decode_batch(contents)
        except (OSError, EOFError, pickle.UnpicklingError):
            # Something ended the process, most likely a lack of memory. This process can decode too.
            return decode_batch(contents, self._decoder)
        finally:
            self._idle.put(process)


def can_fork() -> bool:
    """Return whether processes can be forked: on Linux, while no other Python thread may hold a lock."""
    return sys.platform == "linux" and hasattr(os, "fork") and threading.active_count() == 1


class _Process:
    """One forked process and the two pipes to it."""

    def __init__(self, decoder: Decoder, earlier: Sequence[_Process]) -> None:
        requests, self._requests = _open_pipe()
        self._replies, replies = _open_pipe()
        with requests, replies:  # the forked process has its own copies
            try:
                self._id = _fork(lambda: _serve(requests, replies, decoder, (*earlier, self)))
            except OSError:
                self.close_pipes()
                raise

    def decode_batch(self, contents: Sequence[Content]) -> DecodedBatch:
        pickle.dump(contents, self._requests, pickle.HIGHEST_PROTOCOL)
        self._requests.flush()
        batch: DecodedBatch = pickle.load(self._replies)
        return batch

    def close(self) -> None:
        """End the process, and wait until it has ended."""
        self.close_pipes()
        os.waitpid(self._id, 0)

    def close_pipes(self) -> None:
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):  # buffered bytes have no reader any more
                pipe.close()


def _fork(work: Callable[[], None]) -> int:
    """Run `work` in a forked process and return its process id. Raises OSError."""
    parent = os.getpid()
    # Only the first process reacts to Ctrl-C, from the moment of the fork on.
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns about numpy's threads; they are idle, because nobody multiplies matrices here.
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
        if process == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            work()
        return process
    finally:
        if os.getpid() != parent:
            os._exit(0)
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def _open_pipe() -> tuple[BinaryIO, BinaryIO]:
    reading_end, writing_end = os.pipe()
    return os.fdopen(reading_end, "rb"), os.fdopen(writing_end, "wb")


def _serve(requests: BinaryIO, replies: BinaryIO, decoder: Decoder, others: Iterable[_Process]) -> None:
    """In a forked process: decode until the pipe of requests is closed."""
    for process in others:  # with a copy of these ends, no forked process would notice that the first one has ended
        process.close_pipes()
    while True:
        pickle.dump(decode_batch(pickle.load(requests), decoder), replies, pickle.HIGHEST_PROTOCOL)
        replies.flush()
