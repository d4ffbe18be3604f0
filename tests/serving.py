"""A running `clf-serve`, and requests to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import BIN

from clf_serve.options import Address, BatchOptions, ModelOptions, RequestLimits, ServeOptions


@dataclass(frozen=True)
class Answer:
    """The answer to a request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        """The status, and the kind of the error."""
        return self.status, self.json["error"]["kind"]


@dataclass
class RunningService:
    """A process that serves a model."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    port: int = 0
    _reader: threading.Thread | None = None

    def read_until_ready(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"https?://[^ ]+:(\d+) serves", line)
            self.port = int(found[1]) if found else self.port
            if "self-test passed" in line:
                self._reader = threading.Thread(target=self._read_rest)
                self._reader.start()
                return
        raise AssertionError("".join(self.lines))

    def _read_rest(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def request(self, path: str, body: bytes | None = None, method: str | None = None, **headers: str) -> Answer:
        """Send one request over a connection of its own. In the names of headers, `_` stands for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method or ("GET" if body is None else "POST"), path, body, named)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def send_raw(self, content: bytes) -> bytes:
        """Send bytes, and return everything that comes back until the service closes the connection."""
        with self.connect() as connection:
            connection.sendall(content)
            return read_to_end(connection)

    def metric(self, name: str) -> float:
        text = self.request("/metrics").body.decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, (name, text)
        return float(found[1])

    def wait_until(self, is_true: Callable[[], bool]) -> None:
        """Ask until something is true; a minute is too long."""
        deadline = time.monotonic() + 60
        while not is_true():
            assert time.monotonic() < deadline, "".join(self.lines)
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the process, and return its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        if self._reader is not None:
            self._reader.join()
        return code


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


@contextlib.contextmanager
def serving(model: Path, *options: object, **variables: str) -> Iterator[RunningService]:
    """Run clf-serve on a free port, with all output read, until the end of the block."""
    with serving_by([BIN / "clf-serve", "--model", model, *options], **variables) as service:
        yield service


@contextlib.contextmanager
def serving_by(clf_serve: Sequence[object], **variables: str) -> Iterator[RunningService]:
    """Run a command line of clf-serve likewise."""
    command = [*map(str, clf_serve), "--port", "0"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("CLF_")} | variables
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    service = RunningService(process)
    try:
        service.read_until_ready()
        yield service
    finally:
        if process.poll() is None:
            service.stop()
        assert process.stderr is not None
        process.stderr.close()


def small_options(model: Path) -> ServeOptions:
    """Options for parts of a service in this process: one worker, a short queue, a short timeout."""
    return ServeOptions(
        Address("127.0.0.1", 0, None, None, None),
        ModelOptions(model, "model", "cpu", 1, 512_000_000),
        BatchOptions(1, 8, 0.0, 16),
        RequestLimits(1_000_000, 0.1, 16),
        None,
    )
