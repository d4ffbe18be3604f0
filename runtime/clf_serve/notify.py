"""Reports that the service is ready, alive or stopping: to systemd, or to the process that supervises this one."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Protocol


class Watcher(Protocol):
    """Whoever watches over this process."""

    def ready(self, lines: Sequence[str]) -> None:
        """Say that requests are answered; `lines` describe the service."""

    def alive(self) -> None:
        """Say that this process works; called about once a second."""

    def stopping(self) -> None:
        """Say that no more connections are accepted."""

    def stopped(self) -> None:
        """Say that all accepted requests were answered."""


class Systemd:
    """systemd watches over the only process."""

    def __init__(self, log: Callable[[str], None]) -> None:
        """Store what prints lines."""
        self._log = log

    def ready(self, lines: Sequence[str]) -> None:
        """Print the lines, and say READY=1."""
        for line in lines:
            self._log(line)
        notify("READY=1")

    def alive(self) -> None:
        """Say WATCHDOG=1."""
        notify("WATCHDOG=1")

    def stopping(self) -> None:
        """Say STOPPING=1."""
        notify("STOPPING=1")

    def stopped(self) -> None:
        """Print a line."""
        self._log("stopped; all accepted requests were answered")


def notify(state: str) -> None:
    """Send a state to the socket that `NOTIFY_SOCKET` names; see sd_notify(3).

    Nothing happens unless systemd (Type=notify) asks for it.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(state.encode(), address)
