"""What several processes share, within this process: memory, metrics, the socket."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from serving import small_options

from clf_runtime.errors import MachineError
from clf_serve import accepting, supervisor
from clf_serve.accepting import Acceptor
from clf_serve.member import Member
from clf_serve.pooled_metrics import PooledMetrics
from clf_serve.shared import ABSENT, READY, STARTING, SharedState
from clf_serve.supervisor import Supervisor


def test_a_snapshot_is_replaced_as_a_whole():
    shared = SharedState(2)
    assert shared.snapshot(1) == b""
    for content in (b"first", b"second, longer", b"3"):
        shared.publish(1, content)
        assert shared.snapshot(1) == content
    assert shared.snapshot(0) == b""
    with pytest.raises(ValueError, match="a snapshot of 200000 bytes"):
        shared.publish(1, b"x" * 200_000)
    assert shared.snapshot(1) == b"3"


def test_a_snapshot_that_is_replaced_while_it_is_read_is_read_again(monkeypatch):
    checksums: list[int] = []

    def checksum(content: bytes) -> int:
        checksums.append(zlib.crc32(content))
        return checksums[-1] if len(checksums) != 2 else 0

    monkeypatch.setattr("clf_serve.shared.crc32", checksum)
    shared = SharedState(1)
    shared.publish(0, b"content")
    assert shared.snapshot(0) == b"content"
    assert len(checksums) == 3


class Process:
    """The metrics of one process."""

    def __init__(self, shared: SharedState, place: int) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self.requests = Counter("requests", "Requests.", ("status",), registry=self.registry)
        self.seconds = Histogram("seconds", "Seconds.", buckets=(1, 2), registry=self.registry)
        self.queue = Gauge("queue", "Waiting.", registry=self.registry)
        Info("clf_model", "Model.", registry=self.registry).info({"sha256": "abc"})
        self.pooled = PooledMetrics(shared, place, self.registry)
        self.pooled.publish()
        shared.set_state(place, READY)

    def lines(self) -> list[str]:
        return generate_latest(self.pooled).decode().splitlines()


def test_metrics_are_the_sum_of_all_processes_and_survive_those_that_are_replaced():
    shared = SharedState(2)
    first, second = Process(shared, 0), Process(shared, 1)
    first.requests.labels("200").inc(3)
    second.requests.labels("200").inc()
    second.requests.labels("400").inc()
    for process, seconds in ((first, 0.5), (second, 1.5), (second, 5)):
        process.seconds.observe(seconds)
        process.queue.inc()
    second.pooled.publish()
    expected = [
        'requests_total{status="200"} 4.0',
        'requests_total{status="400"} 1.0',
        'seconds_bucket{le="1.0"} 1.0',
        'seconds_bucket{le="2.0"} 2.0',
        'seconds_bucket{le="+Inf"} 3.0',
        "seconds_count 3.0",
        "seconds_sum 7.0",
        'clf_model_info{sha256="abc"} 1.0',
    ]
    ready = ['clf_processes{state="wanted"} 2.0', 'clf_processes{state="ready"} 2.0', "clf_process_restarts_total 0.0"]
    for process in (first, second):
        lines = [line for line in process.lines() if line[0] != "#"]
        assert sorted(lines) == sorted([*expected, *ready, "queue 3.0"])

    shared.set_state(1, ABSENT)
    lines = first.lines()
    assert set(expected) <= set(lines)
    assert {"queue 1.0", 'clf_processes{state="ready"} 1.0'} <= set(lines)
    shared.count_restart()
    shared.set_state(1, STARTING)
    third = Process(shared, 1)
    third.requests.labels("200").inc()
    assert {'requests_total{status="200"} 5.0', 'requests_total{status="400"} 1.0', "queue 1.0"} <= set(third.lines())
    assert "clf_process_restarts_total 1.0" in first.lines()


def test_a_process_with_more_connections_than_another_one_lets_it_accept_first(monkeypatch):
    monkeypatch.setattr(accepting, "_ADVANTAGE_S", 0.05)
    monkeypatch.setattr(accepting, "_UNTIL_RETRY_S", 0.05)
    shared = SharedState(2)
    shared.set_state(1, READY)
    member = Member(shared, 0, os.getppid(), print)
    opened: list[asyncio.BaseTransport] = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            opened.append(transport)

    class Socket(socket.socket):
        error: OSError | None = None

        def accept(self) -> tuple[socket.socket, object]:
            if self.error is not None:
                error, self.error = self.error, None
                raise error
            return super().accept()

    async def accept() -> list[int]:
        counts = []
        with Socket(socket.AF_INET, socket.SOCK_STREAM) as bound, socket.socket() as first, socket.socket() as second:
            bound.bind(("127.0.0.1", 0))
            acceptor = Acceptor(bound, member, Protocol, None, lambda: len(opened))
            acceptor.start()
            for client in (first, second):
                client.connect(bound.getsockname())
                await asyncio.sleep(0.02)
                counts.append(len(opened))
            await asyncio.sleep(0.1)  # the other process has not accepted it
            counts.append(len(opened))
            shared.set_state(1, ABSENT)
            for error in (BlockingIOError(), OSError(errno.EMFILE, "too many open files")):
                bound.error = error
                with socket.create_connection(bound.getsockname()):
                    await asyncio.sleep(0.1)
                    counts.append(len(opened))
            shared.set_state(1, READY)
            with socket.create_connection(bound.getsockname()):
                await asyncio.sleep(0.02)
                acceptor.close()
                await asyncio.sleep(0.1)
                counts.append(len(opened))
            await acceptor.wait_closed()
            for transport in opened:
                transport.close()
            await asyncio.sleep(0)
        return counts

    assert asyncio.run(accept()) == [1, 1, 2, 3, 4, 4]


@pytest.fixture
def first_process(model: Path) -> Iterator[Supervisor]:
    with socket.socket() as bound:
        yield Supervisor(small_options(model), bound, lines.append)
    lines.clear()


lines: list[str] = []


def test_a_process_that_cannot_be_forked_ends_the_service_or_is_tried_again(first_process, monkeypatch):
    def fail() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fail)
    place = first_process._places[0]
    first_process._was_ready = True
    assert not first_process._fork(place)
    assert lines == ["process 1 cannot be started (resource temporarily unavailable); it is replaced"]
    first_process._was_ready = False
    place.due = 0
    assert first_process.run() is None
    with pytest.raises(SystemExit, match="4"):
        first_process.raise_for_exit()
    assert lines[1:] == [
        "process 1 cannot be started (resource temporarily unavailable); no process is ready, so the service ends"
    ]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, first_process._signals)


def test_what_does_not_stop_is_killed(first_process, monkeypatch):
    sent: list[int] = []
    monkeypatch.setattr(first_process, "_send", lambda number, places: sent.append(number))
    first_process._stop()
    first_process._check()
    first_process._deadline = 0.0
    first_process._check()
    first_process._check()
    assert sent == [signal.SIGTERM, signal.SIGKILL]
    assert lines == ["killing what did not stop within 1 s"]


def test_without_fork_there_is_one_process(model, monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(MachineError, match="leave --processes out"):
        supervisor.supervise(small_options(model), print)
