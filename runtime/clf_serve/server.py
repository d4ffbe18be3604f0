"""Runs the service: from its options to its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import signal
import socket
import ssl
from collections.abc import Callable, Generator
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from clf_runtime.errors import UsageError, format_reason
from clf_serve import listening
from clf_serve.app import Application
from clf_serve.notify import Systemd, Watcher
from clf_serve.options import RequestLimits, ServeOptions
from clf_serve.service import Service, create_service

if TYPE_CHECKING:
    from clf_serve.member import Member

_KEEP_ALIVE_S = 60
_FILES_BESIDE_CONNECTIONS = 64


class _Server(uvicorn.Server):
    """uvicorn's server: says when it listens, reloads the model on SIGHUP, and ends the service when it ends."""

    def __init__(self, service: Service, bound: socket.socket, watcher: Watcher) -> None:
        super().__init__(_config(service, watcher))
        self._service = service
        self._bound = bound
        self._watcher = watcher

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals as uvicorn does, but do not raise them again at the end: they were obeyed."""
        handlers: dict[str, Any] = {"SIGINT": self.handle_exit, "SIGTERM": self.handle_exit, "SIGHUP": self._reload}
        numbers = {getattr(signal, name): handler for name, handler in handlers.items() if hasattr(signal, name)}
        previous = {number: signal.signal(number, handler) for number, handler in numbers.items()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            raise KeyboardInterrupt("requests in progress got no answer")
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        member = self._service.member
        await super().startup(sockets if member is None else [])
        if member is not None:
            self._accept(member)
        self._watcher.ready(_describe(self._service, self._bound))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._watcher.stopping()
        await super().shutdown(sockets)
        self._service.close()
        self._watcher.stopped()

    def _accept(self, member: Member) -> None:
        from clf_serve.accepting import Acceptor  # one process alone does not need it

        def create_protocol() -> asyncio.Protocol:
            create: Any = self.config.http_protocol_class
            protocol: asyncio.Protocol = create(self.config, self.server_state, self.lifespan.state)
            return protocol

        connections = self._service.connections.open
        acceptor = Acceptor(self._bound, member, create_protocol, self.config.ssl, lambda: len(connections))
        acceptor.start()
        self.servers.append(cast(Any, acceptor))

    def _reload(self, sig: int, frame: FrameType | None) -> None:
        self._service.live.request_reload()


def serve(options: ServeOptions, log: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that were accepted get their answers first.

    Raises:
        InvalidModelError: The model cannot be loaded, or it fails its self-test.
        MachineError: The device or the address cannot be used.
        UsageError: An option has a value that cannot be used.
        KeyboardInterrupt: A second Ctrl-C came before all answers.
        OSError: A file cannot be read.
    """
    bound = listening.bind(options.address)
    try:
        _run(create_service(options, log), bound, Systemd(log))
    finally:
        bound.close()
        listening.remove(options.address)


def serve_as_member(options: ServeOptions, bound: socket.socket, member: Member) -> None:
    """Serve until SIGTERM in one of several processes that share a socket. Raises as `serve`."""
    service = create_service(options.of_member(member.place), member.log, member)
    _run(service, bound, member)


def _run(service: Service, bound: socket.socket, watcher: Watcher) -> None:
    _allow_open_files(service.options.limits)
    server = _Server(service, bound, watcher)
    gc.collect()
    gc.freeze()  # what is loaded now stays; collecting garbage need not look at it
    server.run([bound])


def _describe(service: Service, bound: socket.socket) -> list[str]:
    address, model = service.options.address, service.live.current
    classifier = model.classifier
    lines = [classifier.warning] if classifier.warning else []
    if service.tokens is None and not listening.is_local(address, bound):
        lines.append("anyone who reaches this address may use the service; --token-file restricts it")
    lines.append(
        f"{listening.describe(address, bound)} serves {classifier.file.path} ({classifier.file.sha256[:12]}) "
        f"on {classifier.provider}; self-test passed"
    )
    return lines


def _config(service: Service, watcher: Watcher) -> uvicorn.Config:
    def keep_alive() -> None:
        if not service.batcher.is_stalled:
            watcher.alive()

    address, limits = service.options.address, service.options.limits
    config = uvicorn.Config(
        cast(Any, Application(service, keep_alive)),
        http=cast(Any, service.connections.protocol()),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",  # it would write a line for each malformed request; ours are counted
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=min(_KEEP_ALIVE_S, math.ceil(limits.timeout_s)),
        timeout_graceful_shutdown=math.ceil(limits.timeout_s),
        ssl_certfile=address.tls_cert,
        ssl_keyfile=address.tls_key,
    )
    try:
        config.load()
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        raise UsageError(f"{address.tls_cert}: no certificate with its private key in PEM ({reason})") from None
    except OSError as error:
        raise UsageError(f"{address.tls_cert}, {address.tls_key}: {format_reason(error)}") from None
    return config


def _allow_open_files(limits: RequestLimits) -> None:
    """Raise the limit of open files to what the connections need, as far as this process may."""
    with contextlib.suppress(ImportError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = limits.connections + _FILES_BESIDE_CONNECTIONS
        if soft != resource.RLIM_INFINITY and soft < needed:
            allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
