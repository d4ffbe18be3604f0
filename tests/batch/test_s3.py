"""An object store that fails: a real S3 server behind a proxy that answers 503 and cuts bodies short.

Run by `make test-batch`; it takes minutes.
"""

from __future__ import annotations

import http.client
import http.server
import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

pytest.importorskip("pyarrow", reason="the extra [batch] is not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")
pytest.importorskip("moto", reason="moto is not installed")
from batch_runs import rows_of, run_here

from clf_batch.inputs import remote
from clf_batch.inputs.find import find_units
from clf_batch.options import InputOptions
from clf_runtime.errors import MachineError

# aiobotocore and moto warn about themselves.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

_NOT_PASSED_ON = ("connection", "transfer-encoding", "content-length", "date", "server")


@dataclass
class Faults:
    """What the proxy does to requests.

    Attributes:
        share: How many of them fail.
        refuses: Whether all of them are answered with 403.
        counts: How many failed in which way.
    """

    share: float = 0.0
    refuses: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    generator: random.Random = field(default_factory=lambda: random.Random(5))


def failing_proxy(upstream: tuple[str, int], faults: Faults) -> type[http.server.BaseHTTPRequestHandler]:
    """Return a handler that passes requests on, and lets some of them fail."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if faults.refuses:
                self._answer(403, {}, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
                return
            fault = faults.generator.choice(("503", "truncated")) if faults.generator.random() < faults.share else ""
            if fault == "503":
                faults.counts[fault] += 1
                self._answer(503, {}, b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>")
                return
            connection = http.client.HTTPConnection(*upstream)
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            content, headers = response.read(), dict(response.getheaders())
            connection.close()
            sent = len(content)
            if fault == "truncated" and self.command == "GET" and len(content) > 20:
                faults.counts[fault] += 1
                sent, self.close_connection = sent // 2, True
            self._answer(response.status, headers, content, sent)

        def _answer(self, status: int, headers: dict[str, str], content: bytes, sent: int | None = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in _NOT_PASSED_ON:
                    self.send_header(name, value)
            length = {name.lower(): value for name, value in headers.items()}.get("content-length", "0")
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[:sent])

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

        def log_message(self, *_: object) -> None:
            pass

    return Proxy


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[str, Faults]]:
    """The address of a proxy in front of moto's S3 server, and the faults of the proxy."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    faults = Faults()
    handler = failing_proxy(server.get_host_and_port(), faults)
    front = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=front.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{front.server_address[1]}", faults
    front.shutdown()
    front.server_close()
    server.stop()


@pytest.fixture
def bucket(store, monkeypatch):
    """The file system of a store with an empty bucket, and its faults. The environment leads there."""
    address, faults = store
    settings = {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}
    for name, value in (settings | {"ENDPOINT_URL": address}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    remote._file_system.cache_clear()
    files, _ = remote.file_system("s3://bucket")
    if files.exists("bucket"):
        files.rm("bucket", recursive=True)
    files.mkdir("bucket")
    yield files, faults
    faults.share, faults.refuses = 0.0, False
    remote._file_system.cache_clear()


def find(url: str, recursive: bool = False) -> list[str]:
    return [unit.name for unit in find_units(InputOptions((url,), recursive, None, 10, ""))]


def test_a_store_that_fails_now_and_then_changes_nothing(bucket, options, digits, tmp_path):
    files, faults = bucket
    paths = sorted(digits.rglob("*.png"))
    for path in paths:
        files.pipe_file(f"bucket/images/{path.parent.name}/{path.name}", path.read_bytes())
    run_here(options(*paths, output=str(tmp_path / "local"), shard_size=60))
    faults.share = 0.2
    run_here(options("s3://bucket/images", output="s3://bucket/results", shard_size=60))
    faults.share = 0.0
    print(f"failed requests: {dict(faults.counts)}")
    assert min(faults.counts["503"], faults.counts["truncated"]) > 10
    files.get("bucket/results/", str(tmp_path / "fetched"), recursive=True)
    fetched, here = rows_of(tmp_path / "fetched"), rows_of(tmp_path / "local")
    assert [row["path"].removeprefix("s3://bucket/images") for row in fetched] == [
        row["path"].removeprefix(str(digits)) for row in here
    ]
    assert [row | {"path": ""} for row in fetched] == [row | {"path": ""} for row in here]


def test_a_bucket_is_listed_in_order_with_and_without_subfolders(bucket):
    files, _ = bucket
    for number in range(30):
        files.pipe_file(f"bucket/many/{number:02}.png", b"x")
    files.pipe_file("bucket/many/deep/x.png", b"x")
    assert find("s3://bucket/many/") == [f"s3://bucket/many/{number:02}.png" for number in range(30)]
    assert len(find("s3://bucket/many", recursive=True)) == 31
    assert len(find("s3://bucket/many/0*.png")) == 10
    assert find("s3://bucket/many/07.png") == ["s3://bucket/many/07.png"]


def test_a_missing_bucket_is_one_line(bucket):
    with pytest.raises(MachineError, match="s3://nothing/x: there is no such file, folder or bucket"):
        find("s3://nothing/x")


def test_a_missing_permission_is_one_line_for_inputs_and_results(bucket, options, samples):
    _, faults = bucket
    faults.refuses = True
    with pytest.raises(MachineError, match=r"s3://bucket/images/: access denied \(.*\); check the credentials"):
        find("s3://bucket/images/")
    with pytest.raises(MachineError, match=r"s3://bucket/results: access denied"):
        run_here(options(samples[0], output="s3://bucket/results"))


def test_missing_credentials_are_one_line(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    remote._file_system.cache_clear()
    remote.file_system("s3://bucket")[0].clear_instance_cache()
    remote._file_system.cache_clear()
    with pytest.raises(MachineError, match=r"s3://bucket/x: access denied \(Unable to locate credentials\)"):
        find("s3://bucket/x")
