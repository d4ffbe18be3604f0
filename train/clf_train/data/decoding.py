"""Image files to pixels on all cores, through the runtime's own preprocessing.

Processes do it, not threads: with small images Python's lock is what counts (48,000 JPEG files of 32x32 took
two threads 18 s, one thread 7 s, two processes 4 s).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TypeVar

import numpy as np

from clf_runtime.errors import ImageError, MachineError
from clf_runtime.machine import usable_cores
from clf_runtime.preprocess import UInt8Array, image_error_from_os_error, pixels_from_image
from clf_runtime.spec import Preprocess
from clf_train.allocator import keep_freed_memory

_Given = TypeVar("_Given")
_Value = TypeVar("_Value")

# Below it, threads: to start the processes takes 0.5 s.
_MOST_FOR_THREADS = 512
_CHUNK = 64  # files handed to a process at a time; less costs more than the decoding of small ones
_FETCHED_BYTES = 256 << 10  # of each; the system reads on by itself in a file that is read from its start
_AHEAD = 4  # chunks under way for each process, so that none waits and the memory stays bounded


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be read: where it is, the kind of fault as in clf_runtime.errors, and what is wrong."""

    path: str
    kind: str
    message: str


@dataclass(frozen=True)
class Decoded:
    """Some image files, in order; passed one by one from process to process they would take a third longer."""

    pixels: UInt8Array  # (n, H, W, C): of those that can be read
    digests: list[bytes]  # the SHA-256 of each file's bytes; empty where it cannot be read
    faults: list[Unreadable | None]  # what is wrong with each


class Decoder:
    """Threads for a few images; for many, processes that end with this one, however it ends."""

    def __init__(self, images: int) -> None:
        """`images` says about how many there will be."""
        # torchrun says how many processes share this machine.
        self._count = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self._pool: Executor
        if images <= _MOST_FOR_THREADS:
            self._pool = ThreadPoolExecutor(self._count)
        else:
            # Not fork: a forked process inherits torch's threads' locks, but not its threads.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._count, context, initializer=_begin)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def decoded(self, paths: Iterable[str], preprocess: Preprocess, at_a_time: int = _CHUNK) -> Iterator[Decoded]:
        """Decode files, in their order, so many at a time in each process. Raises MachineError."""
        return self._map(_decoded, ((chunk, preprocess) for chunk in _chunks(paths, at_a_time)))

    def digests(self, paths: Iterable[str]) -> list[bytes | Unreadable]:
        """Give the SHA-256 of each file's bytes, or what is wrong with it. Raises MachineError."""
        return [digest for chunk in self._map(_digests_of_chunk, _chunks(paths, _CHUNK)) for digest in chunk]

    def _map(self, work: Callable[[_Given], _Value], items: Iterable[_Given]) -> Iterator[_Value]:
        """Give the result for each item, in order, a few ahead of the one asked for. Raises MachineError."""
        under_way: deque[Future[_Value]] = deque()
        try:
            for item in items:
                under_way.append(self._pool.submit(work, item))
                if len(under_way) > _AHEAD * self._count:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool:
            raise MachineError(
                "a process that decoded images was ended from outside (for want of memory, most likely); "
                "free some memory and try again"
            ) from None


def _chunks(paths: Iterable[str], size: int) -> Iterator[list[str]]:
    waiting = iter(paths)
    return iter(lambda: list(itertools.islice(waiting, size)), [])


def _begin() -> None:
    """In a worker: let the first process decide on Ctrl-C, and do not outlive it."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def follow() -> None:
        wait([sentinel])
        os._exit(0)

    threading.Thread(target=follow, daemon=True).start()


def _decoded(chunk: tuple[list[str], Preprocess]) -> Decoded:
    paths, preprocess = chunk
    _fetch(paths)
    pixels = np.empty((len(paths), *preprocess.shape), np.uint8)
    digests: list[bytes] = []
    faults: list[Unreadable | None] = []
    good = 0
    for path in paths:
        try:
            content = _content(path)  # read once, for the digest and the pixels
            pixels[good] = pixels_from_image(content, preprocess)
        except ImageError as refusal:
            digests.append(b"")
            faults.append(Unreadable(path, refusal.kind, str(refusal)))
        else:
            good += 1
            digests.append(hashlib.sha256(content).digest())
            faults.append(None)
    return Decoded(pixels[:good], digests, faults)


def _digests_of_chunk(paths: Sequence[str]) -> list[bytes | Unreadable]:
    _fetch(paths)
    return [_digest(path) for path in paths]


def _digest(path: str) -> bytes | Unreadable:
    try:
        return hashlib.sha256(_content(path)).digest()
    except ImageError as refusal:
        return Unreadable(path, refusal.kind, str(refusal))


def _fetch(paths: Sequence[str]) -> None:
    """Have the system read the files of a chunk all at once, as far as the beginning of each.

    Asked for one by one, each waits for the disk: 60,000 files of 1 kB took two processes 4.8 s, fetched so 1.0 s.
    """
    if not hasattr(os, "posix_fadvise"):
        return  # neither on macOS nor on Windows
    for path in paths:
        with contextlib.suppress(OSError):  # reading it will tell
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, _FETCHED_BYTES, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)


def _content(path: str) -> bytes:
    try:
        with io.FileIO(path) as file:  # unbuffered: half the time of Path.read_bytes
            return file.readall()
    except OSError as error:
        raise image_error_from_os_error(error) from None
