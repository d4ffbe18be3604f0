"""uvicorn's HTTP protocol with what it lacks: deadlines and limits for requests that do not arrive.

uvicorn closes an idle connection, but waits forever for the rest of a request, and its parser keeps headers of any
size.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from clf_serve.options import RequestLimits

# What a request may take beside its body: request line, headers, and the framing of a chunked body, at most eight bytes
# for each byte (an honest chunk of one byte takes five more).
_MAX_HEAD_BYTES = 65_536
_MAX_FRAMING = 8


class Connections:
    """All open connections, and what they may do."""

    def __init__(self, limits: RequestLimits) -> None:
        """Store the limits."""
        self.limits = limits
        self.open: set[GuardedProtocol] = set()

    def expire(self) -> None:
        """Close the connections whose request does not arrive in time."""
        oldest = time.monotonic() - self.limits.timeout_s
        for connection in tuple(self.open):
            connection.close_if_slow(oldest)

    def protocol(self) -> Callable[..., asyncio.Protocol]:
        """Return what creates the protocol of a connection."""
        return partial(GuardedProtocol, self)


class GuardedProtocol(HttpToolsProtocol):
    """One connection, with a deadline for each request and a limit for everything that is not its body."""

    def __init__(self, guarded: Connections, *args: Any, **kwargs: Any) -> None:
        """Store the set of all connections; the other arguments are uvicorn's."""
        super().__init__(*args, **kwargs)
        self._guarded = guarded
        self._arriving_since: float | None = None  # while a request has begun and is not complete
        self._received_bytes = 0  # of this request
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, or close it if there are too many."""
        super().connection_made(transport)
        self._arriving_since = time.monotonic()
        self._guarded.open.add(self)
        if len(self._guarded.open) > self._guarded.limits.connections:
            self._refuse(b"503 Service Unavailable", b"retry-after: 1\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._guarded.open.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first byte of a request, also of one that never gets to its headers."""
        if self._arriving_since is None:
            self._arriving_since = time.monotonic()
        self._received_bytes += len(data)
        super().data_received(data)
        if self._received_bytes > _MAX_HEAD_BYTES + (1 + _MAX_FRAMING) * self._body_bytes:
            self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """Let the application ask whether the client has left."""
        super().on_message_begin()
        self.scope["state"]["is_gone"] = self.transport.is_closing

    def on_body(self, body: bytes) -> None:
        """Count the bytes of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the clock."""
        self._arriving_since = None
        self._received_bytes = self._body_bytes = 0
        super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also if the client does not read its last answer."""
        self.transport.abort()

    def close_if_slow(self, oldest: float) -> None:
        """Close the connection if its request began to arrive before a moment and is not complete."""
        if self._arriving_since is not None and self._arriving_since < oldest:
            self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes, header: bytes = b"") -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(b"HTTP/1.1 %b\r\n%bcontent-length: 0\r\nconnection: close\r\n\r\n" % (status, header))
        self.transport.close()
