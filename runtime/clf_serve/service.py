"""What the endpoints share: the model, the queue, the metrics, the limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clf_serve.batching import Batcher
from clf_serve.errors import RequestError
from clf_serve.live_model import LiveModel
from clf_serve.metrics import Metrics
from clf_serve.options import ServeOptions
from clf_serve.protocol import Connections
from clf_serve.tokens import Tokens

if TYPE_CHECKING:
    from clf_serve.member import Member

_MOST_SECONDS_BETWEEN_CHECKS = 1.0


@dataclass(frozen=True)
class Service:
    """The parts of a running service."""

    options: ServeOptions
    live: LiveModel
    batcher: Batcher
    metrics: Metrics
    connections: Connections
    tokens: Tokens | None
    member: Member | None = None  # if there are several processes

    def check_health(self) -> None:
        """Raise RequestError if the process does not work any more: a batch does not end."""
        if self.batcher.is_stalled:
            raise RequestError(503, "stalled", "a batch does not end; restart the service")

    def describe_processes(self) -> str:
        """Return a line on how many processes are ready; an empty text if there is only this one."""
        if self.member is None:
            return ""
        shared = self.member.shared
        return f"processes: {shared.ready} of {shared.places} ready\n"

    def close(self) -> None:
        """End the threads; call it when no request is left."""
        self.batcher.close()
        self.live.close()

    async def watch_deadlines(self, on_check: Callable[[], None]) -> None:
        """Close slow connections and answer images that wait for too long, until cancelled."""
        while True:
            await asyncio.sleep(min(_MOST_SECONDS_BETWEEN_CHECKS, self.options.limits.timeout_s / 4))
            self.connections.expire()
            self.batcher.expire()
            on_check()


def create_service(options: ServeOptions, log: Callable[[str], None], member: Member | None = None) -> Service:
    """Load the model and start the worker threads.

    Raises:
        InvalidModelError: The model cannot be loaded, or it fails its self-test.
        MachineError: The device does not work.
        UsageError: The device is unknown, or the file of tokens has none.
        OSError: A file cannot be read.
    """
    tokens = None if options.token_file is None else Tokens.read(options.token_file)
    metrics = Metrics()
    live = LiveModel(options.model, options.batch.workers, metrics, log)
    live.load()
    connections = Connections(options.limits)
    metrics.watch("clf_connections", "Open connections.", lambda: len(connections.open))
    batcher = Batcher(live, options.batch, options.limits.timeout_s, metrics)
    batcher.start()
    if member is not None:
        metrics.pool(member)
    return Service(options, live, batcher, metrics, connections, tokens, member)
