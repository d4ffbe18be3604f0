"""`clf-run --server`: a running service classifies, with the same output."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import BinaryIO

import pytest
from serving import serving

from clf_runtime.errors import MachineError, UsageError
from clf_runtime.predictions import Failure, Prediction, Result
from clf_runtime.remote import RemoteClassifier, connect
from clf_runtime.sources import ImageSource, find_images

LIMIT = 1_000_000


@pytest.fixture(scope="module")
def unix(model, tmp_path_factory) -> Iterator[str]:
    """The address of a service on a Unix socket."""
    path = tmp_path_factory.mktemp("run") / "clf.sock"
    with serving(model, "--unix", path):
        yield f"unix:{path}"


def test_the_output_is_that_of_clf_run_itself(unix, command, home, tmp_path):
    images = ("artifacts/samples", "gone.png", "artifacts/model.json")
    for options in (("--format", "text"), ("--format", "csv", "--top", 3, "--threshold", 0.9)):
        # One image at a time, as the service gets them: in a batch, the last digit may differ.
        here = command("clf-run", *images, *options, "--batch-size", 1, cwd=home)
        there = command("clf-run", *images, *options, "--server", unix, cwd=home)
        assert (there.code, there.out) == (here.code, here.out) == (1, here.out)
        summary = re.sub(r"[\d,.]+ images/s", "", here.err)
        assert re.sub(r"[\d,.]+ images/s", "", there.err) == summary


def test_nothing_heavy_is_imported_and_no_model_is_needed(unix, samples):
    code = (
        f"import sys; sys.argv = ['clf-run', '--server', {unix!r}, {str(samples[0])!r}]\n"
        "from clf_runtime.cli import command\ncommand.main(standalone_mode=False)\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\t")[1] == samples[0].name[0]
    assert not {name.partition(".")[0] for name in done.stdout.split()} & {"numpy", "PIL", "onnxruntime"}


def test_results_go_to_a_file_that_is_written_atomically_and_names_the_model(unix, command, samples, tmp_path):
    done = command("clf-run", "--server", unix, samples[0], "-o", "out.jsonl", "--format", "jsonl")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "out.jsonl").read_text())["path"] == str(samples[0])


@pytest.mark.parametrize("option", [("--model", "m"), ("--device", "cpu"), ("--threads", 1), ("--annotate", "x")])
def test_options_that_the_service_decides_are_usage_errors(command, option):
    done = command("clf-run", "--server", "unix:x", "img.png", *option)
    assert (done.code, f"{option[0]} does not go with --server" in done.err) == (2, True)


@pytest.mark.parametrize(
    "server", ["", "host:80", "unix:", "ftp://x", "http://", "http://x/path", "http://x:99999", "http://[x"]
)
def test_an_address_that_cannot_be_understood_is_a_usage_error(server):
    with pytest.raises(UsageError, match=re.escape(f"--server {server}: expected")):
        connect(server, LIMIT)


@pytest.mark.parametrize("server", ["http://127.0.0.1:1", "https://127.0.0.1:1", "unix:gone"])
def test_where_nothing_answers_is_an_error_of_the_machine(server, command):
    done = command("clf-run", "--server", server, "img.png")
    assert (done.code, done.error.endswith("is clf-serve running there?")) == (4, True)
    assert server in done.error


def test_images_are_read_and_large_or_odd_ones_are_failures(unix, samples, tmp_path):
    classifier = connect(unix, LIMIT)
    (tmp_path / "large.png").write_bytes(samples[0].read_bytes() + bytes(LIMIT))
    sources = [*find_images([str(samples[0]), str(tmp_path / "large.png"), str(tmp_path / "gone.png"), "@gone"], False)]
    sources.append(ImageSource("bytes", samples[1].read_bytes()))
    with closing(classifier):
        results = [result for _, result in classifier.predict_sources(sources, batch_size=8)]
    assert [each.label if isinstance(each, Prediction) else each.kind for each in results] == [
        samples[0].name[0],
        "too-large",
        "not-found",
        "not-found",
        samples[1].name[0],
    ]


def test_a_connection_that_the_service_closed_is_opened_again(model, samples):
    with serving(model) as running:
        classifier = connect(f"http://127.0.0.1:{running.port}", LIMIT)
        classifier._connection._connection.sock.shutdown(socket.SHUT_RDWR)
        (result,) = predict(classifier, str(samples[0]))
        assert result.label == samples[0].name[0]


def test_a_token_is_taken_from_the_environment(model, samples, command, tmp_path):
    (tmp_path / "tokens").write_text("correct-horse-battery")
    path = tmp_path / "s"
    with serving(model, "--token-file", tmp_path / "tokens", "--unix", path):
        refused = command("clf-run", "--server", f"unix:{path}", samples[0])
        assert (refused.code, "CLF_TOKEN" in refused.error) == (2, True)
        # run_command removes variables of this shell, not those that it is given.
        accepted = command("clf-run", "--server", f"unix:{path}", samples[0], CLF_TOKEN="correct-horse-battery")
        assert (accepted.code, accepted.out.split("\t")[1]) == (0, samples[0].name[0])


def predict(classifier: RemoteClassifier, image: str | bytes) -> list[Result]:
    with closing(classifier):
        return [result for _, result in classifier.predict_sources([ImageSource("a", image)], batch_size=1)]


def starts_request(stream: BinaryIO) -> bool:
    """Read a request, but of a large body only the first bytes. Return False at the end."""
    length = 0
    while (line := stream.readline()) not in (b"", b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    stream.read(min(length, 65536))
    return line == b"\r\n"


@pytest.fixture
def answering(tmp_path) -> Iterator[Callable[..., str]]:
    """A function that starts a server with these answers, one per request, and returns its address."""
    listeners, threads = [], []

    def start(*answers: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer() -> None:
            remaining = list(answers)
            while remaining:
                with suppress(OSError), listener.accept()[0] as connection:  # closed by the test, or by the client
                    requests = connection.makefile("rb")
                    while remaining and starts_request(requests):
                        connection.sendall(remaining.pop(0))
                if listener.fileno() < 0:
                    return

        threads.append(threading.Thread(target=answer))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener, thread in zip(listeners, threads, strict=True):
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # ends its accept()
        listener.close()
        thread.join()


def reply(status: str, body: bytes, headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


MODEL = reply("200 OK", b'{"sha256": "x", "provider": "y", "spec": {"labels": ["1", "7"]}}')


@pytest.mark.parametrize(
    "answer",
    [b"220 smtp ready\r\n", reply("200 OK", b"<html>"), reply("404 Not Found", b"{}"), reply("200 OK", b"{}")],
)
def test_a_server_of_another_kind_is_recognized(answering, answer):
    with pytest.raises(MachineError, match="clf-serve"):
        connect(answering(answer), LIMIT)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (reply("200 OK", b"[]"), "status 200: no record of clf-serve"),
        (reply("500 Internal", b'{"error": {"kind": "internal", "message": "a bug"}}'), "status 500: a bug"),
        (reply("502 Bad Gateway", b"<html>"), "status 502: no record"),
    ],
)
def test_an_answer_that_is_no_record_ends_the_run(answering, samples, answer, message):
    classifier = connect(answering(MODEL, answer), LIMIT)
    with pytest.raises(MachineError, match=message):
        predict(classifier, str(samples[0]))


def test_an_overloaded_service_is_asked_again(answering, samples, monkeypatch):
    record = b'{"label": "7", "index": 7, "score": null, "top": [{"label": "7", "score": 1}], "provider": "p"}'
    busy = reply("503 Service Unavailable", b"{}", "Retry-After: 0\r\n")
    classifier = connect(answering(MODEL, busy, busy, reply("200 OK", record)), LIMIT)
    (result,) = predict(classifier, str(samples[0]))
    assert (result.label, str(result.score)) == ("7", "nan")
    for answer in (busy, reply("503 Service Unavailable", b"", "Retry-After: soon\r\n")):
        monkeypatch.setattr("clf_runtime.remote._ATTEMPTS", 2)
        with pytest.raises(MachineError, match="status 503"):
            predict(connect(answering(MODEL, *[answer] * 2), LIMIT), str(samples[0]))


def test_the_reason_for_refusing_a_large_body_is_read_although_it_cannot_be_sent(answering):
    """The server answers after the first bytes, and closes the connection before the others are sent."""
    refused = reply("413 Too Large", b'{"error": {"kind": "too-large", "message": "smaller"}}', "Connection: close\r\n")
    classifier = connect(answering(MODEL, refused), 100_000_000)
    (result,) = predict(classifier, bytes(50_000_000))
    assert isinstance(result, Failure)
    assert result.kind == "too-large"
