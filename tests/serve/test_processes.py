"""Several processes serve one model: they are replaced when they end, and stop together."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from pathlib import Path

import pytest
from conftest import BIN
from serving import Answer, RunningService, serving

PROCESSES = ("--processes", 2)
STOPPED = "clf-serve: stopped; all accepted requests were answered\n"


def members(running: RunningService) -> list[int]:
    """The processes that the first one has forked."""
    number = running.process.pid
    return [int(process) for process in Path(f"/proc/{number}/task/{number}/children").read_text().split()]


def health(running: RunningService) -> str:
    answer = running.request("/healthz")
    assert answer.status == 200
    return answer.body.decode()


def wait_until_complete(running: RunningService) -> None:
    running.wait_until(lambda: health(running) == "ok\nprocesses: 2 of 2 ready\n")


def exists(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


class Load:
    """Clients that each send one request after the other, over a new connection."""

    def __init__(self, running: RunningService, image: bytes) -> None:
        self.answers: list[Answer] = []
        self.errors: list[Exception] = []
        self.is_over = threading.Event()
        self.clients = [threading.Thread(target=self.ask, args=(running, image)) for _ in range(4)]

    def ask(self, running: RunningService, image: bytes) -> None:
        while not self.is_over.is_set():
            try:
                self.answers.append(running.request("/v1/classify", image))
            except (OSError, HTTPException) as error:
                self.errors.append(error)

    def __enter__(self) -> Load:
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.is_over.set()
        for client in self.clients:
            client.join()


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_is_replaced_and_only_its_own_requests_fail(model, samples, kills):
    with serving(model, *PROCESSES) as running:
        wait_until_complete(running)
        shown: list[float] = []

        def watch() -> bool:
            shown.append(running.metric('clf_images_total{outcome="ok"}'))
            return "1 of 2" in health(running)

        with Load(running, samples[0].read_bytes()) as load:
            for kill in range(kills):
                os.kill(members(running)[0], signal.SIGKILL)
                running.wait_until(watch)
                wait_until_complete(running)
                assert running.metric("clf_process_restarts_total") == kill + 1
                assert running.metric('clf_processes{state="ready"}') == 2
        assert {answer.status for answer in load.answers} == {200}
        # Requests that the killed process had accepted. New connections are never refused.
        expected = {ConnectionResetError, RemoteDisconnected, BrokenPipeError, IncompleteRead}
        assert {type(error) for error in load.errors} <= expected
        assert len(load.errors) <= kills * len(load.clients)
        assert shown == sorted(shown)
        assert running.stop() == 0
    assert sum("was killed by SIGKILL; it is replaced" in line for line in running.lines) == kills
    assert running.lines[-1] == STOPPED


def test_connections_are_spread_over_the_processes(model):
    with serving(model, *PROCESSES) as running, contextlib.ExitStack() as stack:
        wait_until_complete(running)

        def sockets(process: int) -> int:
            found = 0
            for link in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
                    found += str(link.readlink()).startswith("socket:")
            return found

        for _ in range(40):
            stack.enter_context(running.connect())
        running.wait_until(lambda: running.metric("clf_connections") == 41)
        assert min(map(sockets, members(running))) >= 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_processes_answer_the_requests_that_they_have_accepted_before_the_end(model, samples, number):
    options = ("--threads", 2, "--workers", 2, "--max-wait", "2s", "--batch-size", 64, "--timeout", "20s")
    with serving(model, *PROCESSES, *options) as running, ThreadPoolExecutor(10) as pool:
        wait_until_complete(running)
        waiting = [pool.submit(running.request, "/v1/classify", samples[0].read_bytes()) for _ in range(10)]
        running.wait_until(lambda: running.metric("clf_queue_images") == 10)
        assert running.stop(number) == 0
        assert [each.result().status for each in waiting] == [200] * 10
    assert running.lines[-1] == STOPPED


def test_a_process_that_is_killed_while_it_stops_is_reported(model, samples):
    options = ("--workers", 1, "--max-wait", "1min", "--timeout", "1min")
    with serving(model, *PROCESSES, *options) as running, ThreadPoolExecutor() as pool:
        wait_until_complete(running)
        waiting = pool.submit(running.request, "/v1/classify", samples[0].read_bytes())
        running.wait_until(lambda: running.metric("clf_queue_images") == 1)
        running.process.send_signal(signal.SIGTERM)
        running.wait_until(lambda: len(members(running)) == 1)  # the idle one has stopped
        os.kill(members(running)[0], signal.SIGKILL)
        assert running.process.wait(60) == 0
        with pytest.raises((OSError, HTTPException)):
            waiting.result()
    assert re.match(r"clf-serve: process . was killed by SIGKILL; its requests got no answer", running.lines[-1])


def test_a_second_interrupt_ends_all_processes_at_once(model, samples):
    options = ("--workers", 1, "--max-wait", "1min", "--timeout", "1min")
    with serving(model, *PROCESSES, *options) as running, ThreadPoolExecutor() as pool:
        wait_until_complete(running)
        waiting = pool.submit(running.request, "/v1/classify", samples[0].read_bytes())
        running.wait_until(lambda: running.metric("clf_queue_images") == 1)
        processes = members(running)
        running.process.send_signal(signal.SIGINT)
        running.process.send_signal(signal.SIGTERM)  # changes nothing
        running.wait_until(lambda: sum(map(exists, processes)) < 2)  # the idle one has stopped
        assert running.stop(signal.SIGINT) == 130
        with pytest.raises((OSError, HTTPException)):
            waiting.result()
        assert not any(map(exists, processes))
    assert running.lines[-1] == "clf-serve: interrupted; requests in progress got no answer\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, 4)])
def test_the_service_ends_if_its_first_process_ends_before_it_is_ready(model, number, code):
    command = [BIN / "clf-serve", "--model", model, "--port", "0", "--processes", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        running = RunningService(process)
        running.wait_until(lambda: bool(members(running)))
        os.kill(members(running)[0] if code == 4 else process.pid, number)
        _, error = process.communicate()
        assert process.returncode == code
    expected = {143: "", 130: "clf-serve: interrupted\n"}
    killed = "clf-serve: process 1 was killed by SIGKILL; no process is ready, so the service ends\n"
    assert error == expected.get(code, killed)


def test_no_request_is_lost_while_the_model_is_replaced_in_all_processes(model, samples, tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copy(model, path)
    with serving(path, *PROCESSES) as running:
        wait_until_complete(running)
        with Load(running, samples[0].read_bytes()) as load:
            for reloads in (2, 4):
                running.process.send_signal(signal.SIGHUP)
                running.wait_until(lambda count=reloads: running.metric('clf_reloads_total{outcome="loaded"}') == count)
            shutil.copy(model, tmp_path / "new")
            (tmp_path / "new").replace(path)
            running.wait_until(lambda: running.metric('clf_reloads_total{outcome="loaded"}') == 6)
        assert not load.errors
        assert {answer.status for answer in load.answers} == {200}
        assert sum("process 2: loaded" in line for line in running.lines) == 3


def test_no_process_is_left_behind_by_one_that_is_killed(model):
    with serving(model, *PROCESSES) as running:
        wait_until_complete(running)
        processes = members(running)
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
        deadline = time.monotonic() + 60
        while any(map(exists, processes)):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_process_that_hangs_is_replaced(model):
    with serving(model, *PROCESSES, "--timeout", "1s") as running:
        wait_until_complete(running)
        hanging = members(running)[1]
        os.kill(hanging, signal.SIGSTOP)
        running.wait_until(lambda: not exists(hanging))
        wait_until_complete(running)
    assert "clf-serve: process 2 does nothing any more; it is killed\n" in running.lines


def test_a_model_that_cannot_be_served_is_one_line_and_no_loop(command, tmp_path, model):
    missing = command("clf-serve", "--model", "gone.onnx", "--port", 0, *PROCESSES)
    assert (missing.code, missing.err.count("\n"), "model not found" in missing.error) == (3, 1, True)
    (tmp_path / "no.pem").write_text("no certificate")
    wrong = command("clf-serve", "--model", model, "--port", 0, *PROCESSES, "--tls-cert", tmp_path / "no.pem")
    assert (wrong.code, "no certificate" in wrong.error) == (2, True)


def test_the_service_ends_if_no_process_can_be_started_any_more(model, tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copy(model, path)
    with serving(path, *PROCESSES) as running:
        wait_until_complete(running)
        path.unlink()
        for process in members(running):
            os.kill(process, signal.SIGKILL)
        assert running.process.wait(60) == 3
    assert "is replaced in 0.4 s" in "".join(running.lines)
    ends = [line for line in running.lines if "so the service ends" in line]
    assert len(ends) == 1
    assert re.match(r"clf-serve: process . ended with exit code 3; no process is ready", ends[0])


def test_systemd_is_told_by_the_first_process_only(model, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(60)
        with serving(model, *PROCESSES, NOTIFY_SOCKET=str(tmp_path / "notify")) as running:
            wait_until_complete(running)
            assert [listener.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            running.stop()
        received = [listener.recv(100)]
        while received[-1] == b"WATCHDOG=1":
            received.append(listener.recv(100))
        assert received[-1] == b"STOPPING=1"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.recv(100)


def test_processes_share_a_unix_socket_which_is_removed_at_the_end(model, tmp_path):
    path = tmp_path / "clf.sock"
    command = [BIN / "clf-serve", "--model", model, "--unix", path, "--processes", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "2 of 2" not in (line := process.stderr.readline()):
            assert line
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"2 of 2 ready" in client.recv(1000, socket.MSG_WAITALL)
        process.terminate()
        assert process.wait(60) == 0
        process.stderr.read()
    assert not path.exists()
