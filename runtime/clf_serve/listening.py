"""The socket that the service listens on."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from clf_runtime.errors import MachineError, UsageError, format_reason
from clf_serve.options import Address

BACKLOG = 2048  # connections that wait to be accepted

_SOCKET_MODE = 0o660


def bind(address: Address) -> socket.socket:
    """Return a bound socket. Raises UsageError, MachineError."""
    return _bind_unix(address.unix) if address.unix is not None else _bind_tcp(address)


def describe(address: Address, bound: socket.socket) -> str:
    """Return the address as a URL, or as the path of the Unix socket."""
    if address.unix is not None:
        return f"unix:{address.unix}"
    host, port = bound.getsockname()[:2]
    scheme = "http" if address.tls_cert is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_local(address: Address, bound: socket.socket) -> bool:
    """Return whether only this machine can connect."""
    if address.unix is not None:
        return True
    host = bound.getsockname()[0]
    return bool(host == "::1" or host.startswith("127."))


def remove(address: Address) -> None:
    """Remove the file of a Unix socket."""
    if address.unix is not None:
        with contextlib.suppress(OSError):
            address.unix.unlink()


def _bind_tcp(address: Address) -> socket.socket:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UsageError(f"--host {address.host}: {format_reason(error)}; name an address of this machine") from None
    family, kind, protocol, _, target = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(target)
    except OSError as error:
        bound.close()
        raise MachineError(
            f"{address.host}:{address.port}: {format_reason(error)}; choose another --host or --port"
        ) from None
    return bound


def _bind_unix(path: Path) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_abandoned(path)
        previous = os.umask(0o777 & ~_SOCKET_MODE)
        try:
            bound.bind(str(path))
        finally:
            os.umask(previous)
    except OSError as error:
        bound.close()
        raise MachineError(f"{path}: {format_reason(error)}; choose another --unix") from None
    return bound


def _remove_abandoned(path: Path) -> None:
    """Remove the socket of a service that was killed. Raises OSError if another process listens on it."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
