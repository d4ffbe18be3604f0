"""Clients that are slow, broken or hostile, and how the service ends."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException

import pytest
from serving import RunningService, read_to_end, serving

HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\n"


def is_well(running: RunningService, image: bytes) -> bool:
    return running.request("/v1/classify", image).status == 200 and running.process.poll() is None


@pytest.mark.parametrize("clients", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_slow_clients_stop_nobody_and_are_sent_away(model, samples, clients):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, clients + 200)), hard))
    image = samples[0].read_bytes()
    with serving(model, "--timeout", "4s") as running, contextlib.ExitStack() as stack:
        request = HEAD + b"Content-Length: %d\r\n\r\n" % len(image) + image
        slow = [stack.enter_context(running.connect()) for _ in range(clients)]
        is_over = threading.Event()

        def trickle() -> None:
            position = 0
            while not is_over.wait(0.2):
                for connection in slow:
                    with contextlib.suppress(OSError):
                        connection.send(request[position : position + 1])
                position += 1

        sender = threading.Thread(target=trickle)
        sender.start()
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda _: is_well(running, image), range(40)))
        running.wait_until(lambda: running.metric("clf_connections") <= 1)
        is_over.set()
        sender.join()
        answers = [read_to_end(connection)[:12] for connection in slow]
        assert set(answers) <= {b"HTTP/1.1 408", b""}  # empty if its bytes met a closed connection
        assert is_well(running, image)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_malformed_requests_get_an_error_or_no_answer_and_do_no_harm(model, samples, count):
    generator = random.Random(0)
    image = samples[0].read_bytes()
    valid = [
        HEAD + b"Content-Length: %d\r\n\r\n" % len(image) + image,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(image) + image + b"\r\n0\r\n\r\n",
        b"POST /v1/classify/batch HTTP/1.1\r\nContent-Type: multipart/mixed; boundary=b\r\nContent-Length: 30\r\n\r\n"
        b"--b\r\n\r\n\r\nimage\r\n--b--\r\n      ",
        b"POST /v2/models/model/infer HTTP/1.1\r\nInference-Header-Content-Length: 14\r\nContent-Length: 16\r\n\r\n"
        b'{"inputs": []}xx',
        b"GET /v1/model?top=3&threshold=0.5 HTTP/1.1\r\nHost: x\r\n\r\n",
    ]

    def mutated() -> bytes:
        content = bytearray(generator.choice(valid))
        for _ in range(generator.randint(1, 6)):
            start = generator.randrange(len(content))
            end = start + generator.choice((0, 1, 1, 1, 8, len(content)))
            content[start:end] = generator.randbytes(generator.choice((0, 1, 1, 1, 8, 300)))
            content = content or bytearray(b"\r\n")
        return bytes(content)

    def send(content: bytes) -> bytes:
        with running.connect() as connection:
            with contextlib.suppress(OSError):
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
            return read_to_end(connection)

    with serving(model) as running, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, [mutated() for _ in range(count)]))
        assert is_well(running, image)
        running.stop()
    assert not [line for line in running.lines if "Traceback" in line]
    assert not [answer for answer in answers if answer[9:12] == b"500"]
    assert sum(answer.startswith(b"HTTP/1.1 ") for answer in answers) > count / 4


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEAD + b"Content-Length: 3\r\n\r\nlonger than it says\r\n\r\n", {b"415", b"400"}),
        (HEAD + b"Content-Length: -1\r\n\r\n", {b"400"}),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", {b"400"}),
        (HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n", {b"400"}),
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {b"400"}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", {b"400"}),
        (HEAD + b"X: " + b"x" * 500_000, {b"431"}),
        (b"GET /" + b"x" * 500_000, {b"431"}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 100_000, {b"431"}),
        (b"\r\n" * 100_000, {b"431", b"400"}),
        (b"SSH-2.0-OpenSSH\r\n", {b"400"}),
        (b"SSH-2.0-OpenSSH\r\n" + bytes(200_000), {b"400"}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {b"400"}),
    ],
)
def test_bodies_of_lying_lengths_and_endless_headers_are_refused(service, request_, status):
    with service.connect() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request_)
            connection.shutdown(socket.SHUT_WR)
        answer = read_to_end(connection)
    # If it was still sending, the connection may be reset before it can read the answer.
    assert answer[9:12] in (status if len(request_) < 100_000 else {*status, b""})


def test_clients_that_leave_before_their_answer_or_within_their_body_do_no_harm(service, samples):
    image = samples[0].read_bytes()
    for content in (image, image[:100]):
        for _ in range(50):
            with service.connect() as connection:
                connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(image) + content)
    service.wait_until(lambda: service.metric("clf_connections") <= 1)
    assert service.metric('clf_requests_total{endpoint="/v1/classify",status="499"}') >= 1
    assert is_well(service, image)


def test_idle_connections_are_closed(model):
    with serving(model, "--timeout", "1s") as running, running.connect() as used, running.connect() as unused:
        used.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_to_end(used).endswith(b"ok\n")
        assert read_to_end(unused).startswith(b"HTTP/1.1 408 ")


def test_connections_over_the_limit_are_answered_with_503(model):
    with serving(model, "--max-connections", 2) as running, running.connect(), running.connect():
        answer = running.send_raw(b"")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after" in answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_accepted_requests_are_answered_before_the_end(model, samples, tmp_path, number):
    options = ("--workers", 1, "--max-wait", "1s", "--timeout", "20s")
    with serving(model, *options) as running, ThreadPoolExecutor() as pool:
        waiting = pool.submit(running.request, "/v1/classify", samples[0].read_bytes())
        running.wait_until(lambda: running.metric("clf_queue_images") == 1)
        assert running.stop(number) == 0
        assert waiting.result().status == 200
    assert running.lines[-1] == "clf-serve: stopped; all accepted requests were answered\n"


def test_a_second_interrupt_ends_the_service_at_once(model, samples):
    options = ("--workers", 1, "--max-wait", "1min", "--timeout", "1min")
    with serving(model, *options) as running, ThreadPoolExecutor() as pool:
        waiting = pool.submit(running.request, "/v1/classify", samples[0].read_bytes())
        running.wait_until(lambda: running.metric("clf_queue_images") == 1)
        running.process.send_signal(signal.SIGINT)
        running.wait_until(lambda: cannot_connect(running))
        assert running.stop(signal.SIGINT) == 130
        with contextlib.suppress(ConnectionError, HTTPException):
            assert waiting.result().status == 500
    assert running.lines[-1] == "clf-serve: interrupted; requests in progress got no answer\n"


def cannot_connect(running: RunningService) -> bool:
    try:
        running.connect().close()
    except ConnectionError:
        return True
    return False


def test_a_large_body_is_refused_before_it_is_sent_if_the_client_asks(service):
    with service.connect() as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 99000000\r\n\r\n")
        assert read_to_end(connection).startswith(b"HTTP/1.1 413 ")


def test_systemd_is_told_that_it_is_ready_alive_and_stopping(model, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(60)
        with serving(model, "--timeout", "1s", NOTIFY_SOCKET=str(tmp_path / "notify")) as running:
            assert [listener.recv(100) for _ in range(2)] == [b"READY=1", b"WATCHDOG=1"]
            running.stop()
        received = listener.recv(100)
        while received == b"WATCHDOG=1":
            received = listener.recv(100)
        assert received == b"STOPPING=1"


def test_a_unix_socket_replaces_an_abandoned_one_but_not_one_in_use(model, tmp_path, command):
    path = tmp_path / "clf.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as abandoned:
        abandoned.bind(str(path))
    with serving(model, "--unix", path) as running:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        second = command("clf-serve", "--model", model, "--unix", path)
        assert (second.code, "address already in use" in second.error) == (4, True)
        assert path.exists()
        running.stop()
    assert not path.exists()


def test_an_address_that_cannot_be_used_is_one_line(model, service, command, tmp_path):
    taken = command("clf-serve", "--model", model, "--port", service.port)
    assert (taken.code, f"127.0.0.1:{service.port}: address already in use" in taken.error) == (4, True)
    assert command("clf-serve", "--model", model, "--host", "no.such.host.invalid").code == 2
    assert command("clf-serve", "--model", model, "--unix", tmp_path / "gone" / "s").code == 4
    assert command("clf-serve", "--timeout", "0s").code == 2
    assert "is not a time" in command("clf-serve", "--timeout", "soon").err


def test_an_open_address_without_tokens_is_warned_of(model):
    with serving(model, "--host", "0.0.0.0") as running:
        assert any("--token-file restricts it" in line for line in running.lines)
