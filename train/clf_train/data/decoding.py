"""Decode image files on all cores, through the runtime's own preprocessing.

Processes do it, not threads: with small images Python's lock dominates (48,000 JPEG files of 32x32 took two threads
18 s, one thread 7 s, two processes 4 s).
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
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TypeVar

import numpy as np

from clf_runtime.errors import ImageError, MachineError
from clf_runtime.image_files import image_error_from_os_error
from clf_runtime.labeled.images import ImageFile
from clf_runtime.labeled.members import Member
from clf_runtime.machine import usable_cores
from clf_runtime.preprocess import UInt8Array, open_image, pixels_from_image
from clf_runtime.spec import Preprocess
from clf_train import torchrun
from clf_train.allocator import keep_freed_memory
from clf_train.data.facts import ImageFacts, compute_hashes, empty_facts, has_damaged_exif

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Up to this many images are decoded by threads: starting the processes takes 0.5 s.
_MAX_IMAGES_FOR_THREADS = 512
_CHUNK = 64  # files per task of a process; smaller chunks cost more than the decoding of small images
_CHECK_S = 1.0  # how often a process that takes long is checked
_PREFETCH_BYTES = 256 << 10  # of each file; the system reads ahead by itself once a file is read from its start
_CHUNKS_AHEAD = 4  # per process, so that none waits and the memory stays bounded


@dataclass(frozen=True)
class UnreadableImage:
    """An image that cannot be read: its path, the kind of error as in clf_runtime.errors, and the message."""

    path: str
    kind: str
    message: str


@dataclass(frozen=True)
class DecodedChunk:
    """Some image files, in order; one file at a time between processes would take a third longer."""

    pixels: UInt8Array  # (n, H, W, C), only of the images that can be read
    digests: list[bytes]  # the SHA-256 of each file; empty if it cannot be read
    errors: list[UnreadableImage | None]  # one for each file
    facts: ImageFacts  # about each file


class Decoder:
    """A pool of threads for a few images; for many, of processes, which end with this process in any case."""

    def __init__(self, images: int) -> None:
        """Start a pool that suits about this number of images."""
        self._workers = max(1, usable_cores() // torchrun.get_local_world_size())
        self._pool: Executor
        if images <= _MAX_IMAGES_FOR_THREADS:
            self._pool = ThreadPoolExecutor(self._workers)
        else:
            # Not fork: a forked process inherits the locks of torch's threads, but not the threads.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, context, initializer=_initialize_worker)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def decode(
        self, files: Iterable[ImageFile], preprocess: Preprocess, chunk_size: int = _CHUNK
    ) -> Iterator[DecodedChunk]:
        """Decode files, in their order.

        Raises:
            MachineError: the system killed a process.
        """
        return self._map(_decode_chunk, ((chunk, preprocess) for chunk in _split_into_chunks(files, chunk_size)))

    def compute_digests(self, files: Iterable[ImageFile]) -> list[bytes | UnreadableImage]:
        """Return the SHA-256 of each file, or the reason why it cannot be read.

        Raises:
            MachineError: the system killed a process.
        """
        chunks = self._map(_compute_digests_of_chunk, _split_into_chunks(files, _CHUNK))
        return [digest for chunk in chunks for digest in chunk]

    def _map(self, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """Yield the result for each item, in order, while the pool works on a few items ahead."""
        pending: deque[Future[_Result]] = deque()
        try:
            for item in items:
                with _blocking_interrupts():
                    pending.append(self._pool.submit(work, item))
                if len(pending) > _CHUNKS_AHEAD * self._workers:
                    yield self._wait(pending.popleft())
            while pending:
                yield self._wait(pending.popleft())
        except BrokenProcessPool:
            raise MachineError(
                "a decoding process was killed (most likely because memory ran out); free some memory and try again"
            ) from None

    def _wait(self, future: Future[_Result]) -> _Result:
        """Return a result. Raises BrokenProcessPool if a process was killed."""
        while not futures.wait([future], _CHECK_S).done:
            # The executor notices a killed process, but not one that was killed while it sent a result: it reads on,
            # because this process could write the rest, too.
            processes = list((getattr(self._pool, "_processes", None) or {}).values())
            if not all(process.is_alive() for process in processes):
                for process in processes:
                    process.kill()
                self._pool._result_queue._writer.close()  # type: ignore[attr-defined]
        return future.result()


def _split_into_chunks(files: Iterable[ImageFile], size: int) -> Iterator[list[ImageFile]]:
    rest = iter(files)
    return iter(lambda: list(itertools.islice(rest, size)), [])


@contextlib.contextmanager
def _blocking_interrupts() -> Iterator[None]:
    """Start processes that Ctrl-C at a terminal does not reach, not even before they can ignore it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield  # Windows
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _initialize_worker() -> None:
    """Leave Ctrl-C to the parent process, and exit when it ends."""
    keep_freed_memory()
    warnings.filterwarnings("ignore", module="PIL")  # as in the parent process; the findings tell what matters
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def exit_with_parent() -> None:
        wait([sentinel])
        os._exit(0)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def _decode_chunk(chunk: tuple[list[ImageFile], Preprocess]) -> DecodedChunk:
    image_files, preprocess = chunk
    _prefetch(image_files)
    pixels = np.empty((len(image_files), *preprocess.shape), np.uint8)
    digests: list[bytes] = []
    errors: list[UnreadableImage | None] = []
    facts = empty_facts(len(image_files))
    readable: list[int] = []
    for index, file in enumerate(image_files):
        try:
            content = read_image_file(file)  # once, for the digest and the pixels
            image = open_image(io.BytesIO(content))
            size = image.size  # before a large JPEG is decoded at reduced size
            pixels[len(readable)] = pixels_from_image(image, preprocess)
        except ImageError as error:
            digests.append(b"")
            errors.append(UnreadableImage(str(file), error.kind, str(error)))
        else:
            readable.append(index)
            digests.append(hashlib.sha256(content).digest())
            errors.append(None)
            facts.sizes[index] = size
            facts.has_damaged_exif[index] = has_damaged_exif(image)
    pixels = pixels[: len(readable)]
    facts.hashes[readable] = compute_hashes(pixels)
    return DecodedChunk(pixels, digests, errors, facts)


def _compute_digests_of_chunk(image_files: Sequence[ImageFile]) -> list[bytes | UnreadableImage]:
    _prefetch(image_files)
    return [_compute_digest(file) for file in image_files]


def _compute_digest(file: ImageFile) -> bytes | UnreadableImage:
    try:
        return hashlib.sha256(read_image_file(file)).digest()
    except ImageError as error:
        return UnreadableImage(str(file), error.kind, str(error))


def _prefetch(image_files: Sequence[ImageFile]) -> None:
    """Let the system read the beginnings of all files of a chunk at once.

    One by one, each waits for the disk: 60,000 files of 1 kB took two processes 4.8 s, with this 1.0 s.
    """
    if not hasattr(os, "posix_fadvise"):
        return  # macOS and Windows
    for file in image_files:
        if isinstance(file, Member):
            continue  # the system reads ahead in an archive
        with contextlib.suppress(OSError):  # read_image_file reports it
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, _PREFETCH_BYTES, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)


def read_image_file(file: ImageFile) -> bytes:
    """Return the bytes of an image file.

    Raises:
        ImageError: it cannot be read.
    """
    if isinstance(file, Member):
        return file.read()
    try:
        with io.FileIO(file) as opened:  # unbuffered: half the time of Path.read_bytes
            return opened.readall()
    except OSError as error:
        raise image_error_from_os_error(error) from None
