"""Parts of the service in this process: what clients cannot make happen at will."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn.server
from serving import small_options

from clf_runtime.command import Duration
from clf_runtime.errors import ImageError, MachineError
from clf_serve import batching, http, inference, server
from clf_serve import notify as notifying
from clf_serve.app import Application
from clf_serve.batching import Output
from clf_serve.errors import RequestError
from clf_serve.http import BodyBudget, Request
from clf_serve.notify import Systemd, notify
from clf_serve.options import RequestLimits
from clf_serve.service import create_service

CHUNK = {"type": "http.request", "body": b"x" * 10, "more_body": True}
END = {"type": "http.request", "body": b"", "more_body": False}


@pytest.fixture
def parts(model):
    """A service without a socket."""
    service = create_service(small_options(model), lambda line: None)
    yield service
    service.close()


def request(path: str = "/", messages: list[dict[str, object]] | None = None, **headers: str) -> Request:
    remaining = list(messages or [])

    async def receive() -> dict[str, object]:
        return remaining.pop(0)

    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"method": "POST", "path": path, "headers": encoded, "query_string": b""}
    return Request(scope, receive, BodyBudget(100))


def answer(application: Application, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Send one request to the application itself."""
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async def receive() -> dict[str, object]:
        return END

    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
    asyncio.run(application(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (MachineError("the GPU has no memory"), 503, "device"),
        (MemoryError(), 503, "overloaded"),
        (KeyError("a bug"), 500, "internal"),
    ],
)
def test_whatever_goes_wrong_with_a_batch_its_requests_get_an_answer_and_the_next_one_runs(
    parts, samples, monkeypatch, capsys, error, status, kind
):
    async def classify() -> list[Output | ImageError]:
        return await parts.batcher.classify([samples[0].read_bytes()], request())

    def fail(pixels: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(parts.live.current.classifier, "run", fail)
        with pytest.raises(RequestError) as caught:
            asyncio.run(classify())
    assert (caught.value.status, caught.value.kind) == (status, kind)
    assert ("Traceback" in capsys.readouterr().err) == (status == 500)
    assert isinstance(asyncio.run(classify())[0], Output)


def test_a_batch_that_does_not_end_fails_the_health_check_and_its_requests_are_answered(parts, samples, monkeypatch):
    run, is_over = parts.live.current.classifier.run, []

    def stall(pixels: object) -> object:
        while not is_over:
            time.sleep(0.01)
        return run(pixels)

    async def classify() -> None:
        watch = asyncio.create_task(parts.watch_deadlines(lambda: None))
        with pytest.raises(RequestError, match="no answer within"):
            await parts.batcher.classify([samples[0].read_bytes()], request())
        while not parts.batcher.is_stalled:
            await asyncio.sleep(0.01)
        with pytest.raises(RequestError, match="does not end"):
            await inference.live(parts, request())
        watch.cancel()
        is_over.append(True)
        while parts.batcher.is_stalled:
            await asyncio.sleep(0.01)

    monkeypatch.setattr(parts.live.current.classifier, "run", stall)
    asyncio.run(classify())


def test_pixels_for_the_model_before_are_refused_by_the_one_that_runs_now(parts):
    async def classify() -> list[Output | ImageError]:
        return await parts.batcher.classify([np.zeros((1, 2, 3), np.uint8)], request())

    with pytest.raises(RequestError, match="pixels of shape"):
        asyncio.run(classify())


def test_more_images_than_the_queue_holds_are_refused(parts):
    async def classify() -> None:
        await parts.batcher.classify([b""] * 17, request())

    with pytest.raises(RequestError, match="17 images, expected at most 16"):
        asyncio.run(classify())


def test_an_endpoint_with_a_bug_answers_500_and_prints_the_traceback(parts, monkeypatch, capsys):
    application = Application(parts, lambda: None)
    monkeypatch.setattr(parts.live, "current", None)
    status, body = answer(application, "/readyz")
    assert (status, json.loads(body)["error"]["kind"]) == (500, "internal")
    assert "Traceback" in capsys.readouterr().err


def test_the_bodies_of_all_requests_together_are_limited():
    budget = BodyBudget(15)

    def reading(count: int) -> Request:
        each = request(messages=[CHUNK] * count + [END])
        each._budget = budget
        return each

    first = reading(1)
    assert asyncio.run(first.read_body(100)) == b"x" * 10
    second = reading(1)
    with pytest.raises(RequestError, match="too many large requests"):
        asyncio.run(second.read_body(100))
    first.release()
    second.release()
    assert asyncio.run(reading(1).read_body(100)) == b"x" * 10
    assert first.arrival_s is not None


def test_of_a_body_that_is_too_large_only_so_much_is_read(monkeypatch):
    monkeypatch.setattr(http, "_DISCARDED_BYTES", 25)
    endless = request(messages=[CHUNK] * 3, content_length="1000")
    with pytest.raises(RequestError, match="more than 5 bytes"):
        asyncio.run(endless.read_body(5))
    odd = request(messages=[CHUNK] * 3, content_length="²")
    with pytest.raises(RequestError):
        asyncio.run(odd.read_body(5))


def test_messages_to_systemd_reach_abstract_sockets_and_fail_silently(monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0clf-edge-test")
        monkeypatch.setenv("NOTIFY_SOCKET", "@clf-edge-test")
        notify("READY=1")
        assert listener.recv(100) == b"READY=1"
    notify("READY=1")


def test_an_outcome_for_a_request_that_has_expired_is_dropped():
    async def resolve() -> batching.Outcome:
        job = batching.Job(b"", request())
        batching._resolve(job, ImageError("empty", "first"))
        batching._resolve(job, ImageError("empty", "second"))
        return await job.future

    assert str(asyncio.run(resolve())) == "first"


def test_the_limit_of_open_files_is_raised_to_what_the_connections_need():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for limit, connections, allowed in ((200, 400, 464), (500, 400, 500)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            server._allow_open_files(RequestLimits(1, 1, connections))
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (allowed, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_warning_of_the_model_is_printed_and_a_stalled_service_stops_its_watchdog(parts, monkeypatch):
    monkeypatch.setattr(parts.live.current.classifier, "_warning", "--device auto uses the CPU")
    with socket.create_server(("127.0.0.1", 0)) as bound:
        assert server._describe(parts, bound)[0] == "--device auto uses the CPU"
    sent: list[str] = []
    monkeypatch.setattr(notifying, "notify", sent.append)
    on_check = server._config(parts, Systemd(print)).app._on_check
    on_check()
    monkeypatch.setattr(parts.batcher, "_running", {1: -1000.0})
    on_check()
    assert sent == ["WATCHDOG=1"]


def test_a_slow_request_behind_an_answer_in_progress_does_not_get_its_error_into_that_answer(parts):
    async def refuse(is_started: bool) -> bytes:
        near, far = socket.socketpair()
        with near, far:
            config, state = server._config(parts, Systemd(print)), uvicorn.server.ServerState()
            protocol = parts.connections.protocol()(config=config, server_state=state, app_state={})
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, near)
            protocol.cycle = SimpleNamespace(response_complete=False, response_started=is_started, more_body=True)
            protocol.cycle.message_event = asyncio.Event()
            protocol.close_if_slow(time.monotonic() + 1)
            transport.close()
            await asyncio.sleep(0)
            return far.recv(100)

    assert asyncio.run(refuse(False)).startswith(b"HTTP/1.1 408 ")
    assert asyncio.run(refuse(True)) == b""


def test_a_time_has_a_unit():
    convert: Callable[[object], float] = lambda text: Duration().convert(text, None, None)  # noqa: E731
    assert [convert(text) for text in ("2ms", "1.5s", "1min", 0.5)] == [0.002, 1.5, 60, 0.5]
