"""From image files to one batch of pixels: in the thread that asks, or in processes made for small images.

Decoding a small image is mostly Python, of which a process runs one thread at a time: on 2 cores, with 10,000 MNIST
files and a tiny network, two threads reached 0.25 of what the processor allows, two processes 0.79.
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
from typing import BinaryIO

import numpy as np

from clf_runtime.errors import ImageError
from clf_runtime.preprocess import ImageInput, UInt8Array, pixels_from_image
from clf_runtime.spec import Preprocess

Content = ImageInput | ImageError

# The pixels of those that could be decoded, (n, H, W, C) in order, and what is wrong with the others, by position.
DecodedBatch = tuple[UInt8Array, dict[int, ImageError]]
Decode = Callable[[Sequence[Content]], DecodedBatch]


def decode_batch(sources: Sequence[Content], preprocess: Preprocess) -> DecodedBatch:
    """Decode some images into one array."""
    pixels = np.empty((len(sources), *preprocess.shape), np.uint8)
    refused: dict[int, ImageError] = {}
    for position, source in enumerate(sources):
        try:
            if isinstance(source, ImageError):
                raise source
            pixels[position - len(refused)] = pixels_from_image(source, preprocess)
        except ImageError as refusal:
            refused[position] = refusal
    return pixels[: len(sources) - len(refused)], refused


class DecoderPool:
    """Processes that decode, as many at once as there are of them. Safe to call from several threads."""

    def __init__(self, count: int, preprocess: Preprocess) -> None:
        """Start `count` processes. They end with `close`, or when this process ends in whatever way."""
        self._preprocess = preprocess
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._all: list[_Process] = []
        with contextlib.suppress(OSError):  # this machine lets us have no more of them
            for _ in range(count):
                self._all.append(_Process(preprocess, self._all))
                self._idle.put(self._all[-1])

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, sources: Sequence[Content]) -> DecodedBatch:
        """Decode some images into one array, in the next process that is free."""
        if not self._all:
            return decode_batch(sources, self._preprocess)
        process = self._idle.get()
        try:
            return process.decode_batch(sources)
        except (OSError, EOFError, pickle.UnpicklingError):
            # It was ended from outside, for want of memory most likely. This one lives, and can do it too.
            return decode_batch(sources, self._preprocess)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes, and wait until they have ended."""
        for process in self._all:
            process.close()


def can_fork() -> bool:
    """Say whether processes can be forked here: on Linux, while no other thread of Python's may hold a lock."""
    return sys.platform == "linux" and threading.active_count() == 1


class _Process:
    """One forked process, and the two pipes to it."""

    def __init__(self, preprocess: Preprocess, before: Sequence[_Process]) -> None:
        requests, self._requests = _pipe()
        self._answers, answers = _pipe()
        with requests, answers:  # the new process keeps its own
            try:
                self._id = _forked(lambda: _serve(requests, answers, preprocess, (*before, self)))
            except OSError:
                self.close_pipes()
                raise

    def decode_batch(self, sources: Sequence[Content]) -> DecodedBatch:
        pickle.dump(sources, self._requests, pickle.HIGHEST_PROTOCOL)
        self._requests.flush()
        answer: DecodedBatch = pickle.load(self._answers)
        return answer

    def close(self) -> None:
        self.close_pipes()
        os.waitpid(self._id, 0)

    def close_pipes(self) -> None:
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):  # what was to be written reaches nobody
                pipe.close()


def _forked(work: Callable[[], None]) -> int:
    """Do `work` in a process of its own, and give its number. Raises OSError."""
    us = os.getpid()
    # Ctrl-C is the first process's to answer, from the first moment on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of numpy's threads, which wait for matrices that nobody multiplies here.
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
        if process == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            work()
        return process
    finally:
        if os.getpid() != us:
            os._exit(0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pipe() -> tuple[BinaryIO, BinaryIO]:
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb"), os.fdopen(writing, "wb")


def _serve(requests: BinaryIO, answers: BinaryIO, preprocess: Preprocess, ends: Iterable[_Process]) -> None:
    """In a forked process: answer until nobody asks any more."""
    for process in ends:  # with a copy of them, nobody would see that the first process has ended
        process.close_pipes()
    while True:
        pickle.dump(decode_batch(pickle.load(requests), preprocess), answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()
