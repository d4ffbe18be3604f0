"""Images in, results out: in order, on as many threads as there are cores, with a bounded number in progress."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

from clf_runtime.decoding import Decode, Decoder, DecoderPool, can_fork, decode_batch
from clf_runtime.errors import ImageError
from clf_runtime.preprocess import UInt8Array
from clf_runtime.sources import ImageSource

if TYPE_CHECKING:
    from concurrent.futures import Future

    from clf_runtime.sources import Content

Chunk = TypeVar("Chunk")
Item = TypeVar("Item")
Output = TypeVar("Output")

# In progress per thread: one chunk that runs and one that waits, so that no thread idles while results are consumed.
_CHUNKS_PER_THREAD = 2

# The mean size of the first images decides whether processes decode the rest: whether Python's share of the work,
# 0.05 ms for any image, is most of it.
_IMAGES_SAMPLED = 128
_SMALL_FILE_BYTES = 8 << 10
_SMALL_INPUT_BYTES = 64 * 64 * 3
_SMALL_CHUNK = 128  # files that a process decodes at a time


def run_pipeline(
    sources: Iterator[ImageSource],
    infer: Callable[[UInt8Array], Sequence[Output]],
    decoder: Decoder,
    threads: int,
    batch_size: int,
) -> Iterator[tuple[ImageSource, Output | ImageError]]:
    """Yield each source with its output, or with the error that it cannot be decoded, in order.

    A thread per core that does all of a chunk's work kept every core busy (0.98 of the limit); threads that decode for
    one that infers reached 0.55 to 0.92. Small images are decoded by as many processes as there are threads.

    Args:
        sources: The images; may be infinite.
        infer: Takes pixels, uint8 (n, height, width, channels) with n up to `batch_size`, and returns n outputs. It is
            called from several threads.
        decoder: The model's preprocessing, and what one image may take.
        threads: How many images are in progress at once.
        batch_size: How many images `infer` gets at once.
    """

    def process_chunk(chunk: list[ImageSource], decode: Decode) -> list[tuple[ImageSource, Output | ImageError]]:
        batch = decode([source.content for source in chunk])
        starts = range(0, len(batch.pixels), batch_size)
        outputs = chain.from_iterable(infer(batch.pixels[start : start + batch_size]) for start in starts)
        # An image that failed has an error at its position; every other one has the next output.
        return [
            (source, batch.errors[position] if position in batch.errors else next(outputs))
            for position, source in enumerate(chunk)
        ]

    decode_here: Decode = partial(decode_batch, decoder=decoder)
    may_fork = threads > 1 and math.prod(decoder.preprocess.shape) <= _SMALL_INPUT_BYTES and can_fork()
    first = _until_small(sources) if may_fork else sources
    yield from _map_chunks(partial(process_chunk, decode=decode_here), _chunks(first, batch_size), threads)
    if (following := next(sources, None)) is not None:
        rest = _chunks(chain([following], sources), max(batch_size, _SMALL_CHUNK))
        with DecoderPool(threads, decoder) as decoder_pool:
            # One thread more, so that no process waits while results are put together.
            yield from _map_chunks(partial(process_chunk, decode=decoder_pool), rest, threads + 1)


def _until_small(sources: Iterator[ImageSource]) -> Iterator[ImageSource]:
    """Yield the first images, and all others too unless the first ones were small."""
    sizes = []
    for source in islice(sources, _IMAGES_SAMPLED):
        yield source
        sizes.append(_size_bytes(source.content))
    if len(sizes) < _IMAGES_SAMPLED or sum(sizes) > _IMAGES_SAMPLED * _SMALL_FILE_BYTES:
        yield from sources


def _size_bytes(content: Content) -> float:
    """Return the size of an image file, or infinity for other images, which processes do not decode."""
    if not isinstance(content, str):
        return math.inf
    try:
        return os.stat(content).st_size  # noqa: PTH116 (a Path takes twice as long)
    except (OSError, ValueError):
        return 0


def _chunks(sources: Iterator[ImageSource], size: int) -> Iterator[list[ImageSource]]:
    while chunk := list(islice(sources, size)):
        yield chunk


def _map_chunks(
    process: Callable[[Chunk], list[Item]], chunks: Iterator[Chunk], threads: int
) -> Generator[Item, None, None]:
    """Yield what `process` returns for each chunk, in order; one thread does all of a chunk's work."""
    if threads == 1:
        for chunk in chunks:
            yield from process(chunk)
        return
    from concurrent.futures import ThreadPoolExecutor  # 4 ms that one image does not need

    pool = ThreadPoolExecutor(threads, thread_name_prefix="clf")
    pending: deque[Future[list[Item]]] = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(process, chunk))
            if len(pending) >= threads * _CHUNKS_PER_THREAD:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
