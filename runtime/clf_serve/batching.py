"""Images of different requests, put together in batches and classified by worker threads.

One process with a thread per core: Pillow and onnxruntime release Python's lock while they decode and infer, so there
is one model in memory, one queue and one set of metrics. A thread does all of a batch's work, as in
`clf_runtime.pipeline`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from clf_runtime.errors import ImageError, MachineError
from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import Float32Array
from clf_serve.errors import ClientLeftError, RequestError
from clf_serve.http import Request
from clf_serve.live_model import LiveModel, LoadedModel
from clf_serve.metrics import Metrics
from clf_serve.options import BatchOptions

# A batch that runs for so many timeouts will not end: the health check fails.
_STALLED_TIMEOUTS = 3


class Output(NamedTuple):
    """What the graph computed for one image."""

    model: LoadedModel
    logits: Float32Array  # (classes,)
    probabilities: Float32Array  # (classes,)


Outcome = Output | ImageError | RequestError | ClientLeftError


@dataclass(eq=False)
class Job:
    """One image of a request.

    Attributes:
        content: An encoded image, or pixels, uint8 (height, width, channels).
        request: The request.
        future: Gets the outcome.
        submitted: When it was put into the queue.
    """

    content: bytes | UInt8Array
    request: Request
    future: asyncio.Future[Outcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    submitted: float = field(default_factory=time.monotonic)


class Batcher:
    """The queue and its worker threads.

    `submit` and `expire` are called in the thread of the event loop.
    """

    def __init__(self, live: LiveModel, options: BatchOptions, timeout_s: float, metrics: Metrics) -> None:
        """Store what runs; `start` starts the threads."""
        self._live = live
        self._options = options
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._pending: set[Job] = set()
        self._running: dict[int, float] = {}  # thread → when its batch started
        self._idle = 0
        self._is_closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"clf-worker-{number}", daemon=True)
            for number in range(options.workers)
        ]
        metrics.watch("clf_queue_images", "Images that wait for a worker.", lambda: len(self._queue))

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads after the batches in progress; call it when no request is left."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(self._timeout_s)

    @property
    def is_stalled(self) -> bool:
        """Whether a batch has been running for so long that it will not end."""
        oldest = min(tuple(self._running.values()), default=None)
        return oldest is not None and time.monotonic() - oldest > _STALLED_TIMEOUTS * self._timeout_s

    async def classify(self, contents: Sequence[bytes | UInt8Array], request: Request) -> list[Output | ImageError]:
        """Classify the images of one request.

        Args:
            contents: Encoded images, or pixels, uint8 (height, width, channels).
            request: The request.

        Returns:
            One output per image, or what is wrong with the image.

        Raises:
            RequestError: The queue is full, the time is over, or the device fails.
            ClientLeftError: The client has left.
        """
        jobs = [Job(content, request) for content in contents]
        self._submit(jobs)
        outcomes = [await job.future for job in jobs]
        for outcome in outcomes:
            if isinstance(outcome, RequestError | ClientLeftError):
                raise outcome
            self._metrics.count_image(outcome.kind if isinstance(outcome, ImageError) else "ok")
        return outcomes  # type: ignore[return-value]  # the others were raised

    def expire(self) -> None:
        """Answer the images that have waited for too long."""
        oldest = time.monotonic() - self._timeout_s
        for job in [job for job in self._pending if job.submitted < oldest]:
            _resolve(job, RequestError(503, "timeout", f"no answer within {self._timeout_s:g} s; try again"))
            self._pending.discard(job)

    def _submit(self, jobs: Sequence[Job]) -> None:
        if len(jobs) > self._options.queue:
            raise RequestError(413, "too-large", f"{len(jobs):,} images, expected at most {self._options.queue:,}")
        with self._changed:
            if len(self._queue) + len(jobs) > self._options.queue:
                raise RequestError(503, "overloaded", f"{len(self._queue):,} images are waiting already; try again")
            self._queue.extend(jobs)
            self._changed.notify(len(jobs))
        self._pending.update(jobs)

    def _work(self) -> None:
        thread = threading.get_ident()
        while jobs := self._take():
            self._running[thread] = time.monotonic()
            outcomes = self._run(jobs)
            del self._running[thread]
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                jobs[0].future.get_loop().call_soon_threadsafe(self._deliver, jobs, outcomes)

    def _take(self) -> list[Job]:
        """Wait for images, and return a batch of them; an empty one ends the thread."""
        with self._changed:
            self._idle += 1
            while not self._queue and not self._is_closing:
                self._changed.wait()
                self._wait_for_more()  # meanwhile another thread may take all of them
            self._idle -= 1
            # No more than its share, also while the others work: they are back soon, and nobody waits for a long batch.
            count = min(self._options.size, -(-len(self._queue) // self._options.workers))
            return [self._queue.popleft() for _ in range(count)]

    def _wait_for_more(self) -> None:
        """Wait until the batch is full, its first image has waited long enough, or another thread is idle."""
        while self._queue and len(self._queue) < self._options.size and self._idle == 1 and not self._is_closing:
            remaining = self._queue[0].submitted + self._options.max_wait_s - time.monotonic()
            if remaining <= 0 or not self._changed.wait(remaining):
                return

    def _run(self, jobs: list[Job]) -> list[Outcome]:
        started = time.monotonic()
        for job in jobs:
            self._metrics.queue.observe(started - job.submitted)
        outcomes: dict[Job, Outcome] = {}
        try:
            self._run_batch(jobs, outcomes)
        except MachineError as error:
            self._live.current.batches.failed += 1
            return [RequestError(503, "device", str(error))] * len(jobs)
        except MemoryError:
            self._live.current.batches.failed += 1
            return [RequestError(503, "overloaded", "out of memory; try again")] * len(jobs)
        except Exception:
            # A bug of ours must neither end the thread nor leave a client without an answer.
            self._live.current.batches.failed += 1
            traceback.print_exc()
            return [RequestError(500, "internal", "this is a bug in clf-edge; see the log of the service")] * len(jobs)
        return [outcomes[job] for job in jobs]

    def _run_batch(self, jobs: list[Job], outcomes: dict[Job, Outcome]) -> None:
        """Decode and classify a batch with the model that runs now."""
        model = self._live.current
        started = time.monotonic()
        decoded: list[Job] = []
        pixels = np.empty((len(jobs), *model.classifier.spec.preprocess.shape), np.uint8)
        for job in jobs:
            try:
                pixels[len(decoded)] = self._decode(job, model)
                decoded.append(job)
            except (ImageError, RequestError, ClientLeftError) as problem:
                outcomes[job] = problem
        self._metrics.decode.observe(time.monotonic() - started)
        if not decoded:
            return
        started = time.monotonic()
        logits, probabilities = model.classifier.run(pixels[: len(decoded)])
        self._metrics.infer.observe(time.monotonic() - started)
        self._metrics.batch_sizes.observe(len(decoded))
        model.batches.classified += 1
        for job, *rows in zip(decoded, logits, probabilities, strict=True):
            outcomes[job] = Output(model, *rows)

    def _decode(self, job: Job, model: LoadedModel) -> UInt8Array:
        if job.future.done() or job.request.is_gone():
            raise ClientLeftError
        if isinstance(job.content, bytes):
            return model.classifier.decoder.decode(job.content)
        expected = model.classifier.spec.preprocess.shape
        if job.content.shape != expected:
            raise RequestError(400, "bad-request", f"pixels of shape {job.content.shape}, expected {expected}")
        return job.content

    def _deliver(self, jobs: list[Job], outcomes: list[Outcome]) -> None:
        for job, outcome in zip(jobs, outcomes, strict=True):
            self._pending.discard(job)
            _resolve(job, outcome)


def _resolve(job: Job, outcome: Outcome) -> None:
    if not job.future.done():
        job.future.set_result(outcome)
