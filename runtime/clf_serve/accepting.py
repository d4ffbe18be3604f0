"""Accepts connections from a socket that other processes accept from, too, so that each gets its share.

Without this, a process that is awake accepts everything before another one has woken up.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

from clf_serve.listening import BACKLOG
from clf_serve.member import Member

_ADVANTAGE_S = 0.005  # for the process with the fewest connections
_UNTIL_RETRY_S = 1.0  # after an error, such as too many open files; asyncio's own value


class Acceptor:
    """Accepts as long as this process has no more connections than another one, and later otherwise.

    uvicorn takes it for a server of asyncio.
    """

    def __init__(
        self,
        bound: socket.socket,
        member: Member,
        create_protocol: Callable[[], asyncio.Protocol],
        ssl_context: ssl.SSLContext | None,
        count: Callable[[], int],
    ) -> None:
        """Store what to accept; `count` returns how many connections are open."""
        self._bound = bound
        self._member = member
        self._create_protocol = create_protocol
        self._ssl_context = ssl_context
        self._count = count
        self._is_closed = False
        self._connecting: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Listen."""
        self._bound.setblocking(False)
        self._bound.listen(BACKLOG)
        asyncio.get_running_loop().add_reader(self._bound, self._on_waiting)

    def close(self) -> None:
        """Accept no more connections."""
        self._is_closed = True
        asyncio.get_running_loop().remove_reader(self._bound)

    async def wait_closed(self) -> None:
        """Wait for the connections whose encryption is being negotiated."""
        await asyncio.gather(*self._connecting)

    def _on_waiting(self) -> None:
        """Accept a connection; also called when another process will be faster."""
        if self._member.has_more_connections(self._count() + len(self._connecting)):
            self._pause(_ADVANTAGE_S)
        else:
            self._accept()

    def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._bound)
        loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if not self._is_closed:
            asyncio.get_running_loop().add_reader(self._bound, self._on_waiting)
            self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._bound.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # another process was faster, or the client has left
        except OSError:
            self._pause(_UNTIL_RETRY_S)
            return
        connection.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._connect(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # the client does not speak TLS
            await loop.connect_accepted_socket(self._create_protocol, connection, ssl=self._ssl_context)
