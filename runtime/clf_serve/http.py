"""Requests and responses as the application sees them, above ASGI."""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from clf_serve.errors import ClientLeftError, RequestError, bad_request

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

# Of a body that is too large, so much is read and discarded: a client that is still writing may not read the answer.
_DISCARDED_BYTES = 64_000_000

_MOST_DIGITS = 18


@dataclass(frozen=True)
class Response:
    """An answer, complete.

    Attributes:
        status: The HTTP status.
        body: The content.
        content_type: Its media type.
        headers: Further headers, names in lower case.
    """

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Headers = ()

    async def send(self, send: Send) -> None:
        """Send it."""
        headers = [(b"content-type", self.content_type.encode()), (b"content-length", b"%d" % len(self.body))]
        start = {"type": "http.response.start", "status": self.status, "headers": [*headers, *self.headers]}
        await send(start)
        await send({"type": "http.response.body", "body": self.body})


class BodyBudget:
    """The memory that the bodies of all requests in progress may take."""

    def __init__(self, limit_bytes: int) -> None:
        """Store the limit."""
        self._limit_bytes = limit_bytes
        self._used_bytes = 0

    def take(self, count: int) -> None:
        """Count bytes that were received. Raises RequestError if all bodies together take too much."""
        self._used_bytes += count
        if self._used_bytes > self._limit_bytes:
            raise RequestError(503, "overloaded", "too many large requests are in progress; try again")

    def release(self, count: int) -> None:
        """Count bytes that are not needed any more."""
        self._used_bytes -= count


class Request:
    """One request.

    Attributes:
        method: For example `"POST"`.
        path: The path, decoded, without the query.
        headers: Name in lower case → value.
        parts: Name → value of the variable parts of the path.
        arrival_s: Seconds until the body was complete; None if it was not read.
    """

    def __init__(self, scope: Scope, receive: Receive, budget: BodyBudget) -> None:
        """Store what the server knows of it; the body is not read yet."""
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: Mapping[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        self.parts: Mapping[str, str | None] = {}
        self._query: bytes = scope["query_string"]
        self._receive = receive
        self._budget = budget
        self._held_bytes = 0
        self._started = time.monotonic()
        self.arrival_s: float | None = None
        self.is_gone: Callable[[], bool] = scope.get("state", {}).get("is_gone", lambda: False)

    @property
    def query(self) -> dict[str, str]:
        """The parameters behind the path. Raises RequestError if one is given twice."""
        if not self._query:
            return {}
        pairs = urllib.parse.parse_qsl(self._query.decode("latin-1"), keep_blank_values=True)
        parameters = dict(pairs)
        if len(parameters) < len(pairs):
            raise bad_request("a parameter is given twice")
        return parameters

    async def read_body(self, limit_bytes: int) -> bytes:
        """Return the complete body.

        Raises:
            RequestError: It is too large, compressed, or there are too many large bodies at once.
            ClientLeftError: The client has left before its end.
        """
        if self.headers.get("content-encoding", "identity") != "identity":
            raise RequestError(415, "unsupported", "a compressed body (Content-Encoding); send it uncompressed")
        declared = parse_size(self.headers.get("content-length", "0"))
        if declared is None or declared > limit_bytes:
            await self._discard()
            raise _too_large(limit_bytes)
        pieces: list[bytes] = []
        while True:
            piece, is_last = await self._read_piece()
            self._held_bytes += len(piece)
            self._budget.take(len(piece))
            if self._held_bytes > limit_bytes:
                pieces.clear()
                await self._discard(is_last)
                raise _too_large(limit_bytes)
            pieces.append(piece)
            if is_last:
                self.arrival_s = time.monotonic() - self._started
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def age_s(self) -> float:
        """Seconds since its headers were complete."""
        return time.monotonic() - self._started

    def release(self) -> None:
        """Return the memory of the body to the budget."""
        self._budget.release(self._held_bytes)
        self._held_bytes = 0

    async def _discard(self, is_last: bool = False) -> None:
        if "expect" in self.headers:
            return  # the client waits for our answer before it sends the body
        discarded = 0
        while not is_last and discarded < _DISCARDED_BYTES:
            piece, is_last = await self._read_piece()
            discarded += len(piece)

    async def _read_piece(self) -> tuple[bytes, bool]:
        """Return the next bytes, and whether they are the last ones."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        return message.get("body", b""), not message.get("more_body", False)


def parse_size(text: str) -> int | None:
    """Return a number of bytes or images in decimal digits; None if the text is something else, or far too large."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS else None


def _too_large(limit_bytes: int) -> RequestError:
    return RequestError(413, "too-large", f"more than {limit_bytes:,} bytes in one request; send a smaller image")
