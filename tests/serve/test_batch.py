"""`POST /v1/classify/batch`: several images in one request."""

from __future__ import annotations

import json
import subprocess

import pytest

from clf_serve.batch import Part, split_lengths, split_multipart
from clf_serve.errors import RequestError


def with_lengths(images: list[bytes]) -> bytes:
    return b"".join(len(image).to_bytes(4, "big") + image for image in images)


def test_records_are_in_the_order_of_the_images_with_failures_in_their_place(service, samples):
    images = [path.read_bytes() for path in samples[:6]]
    images[2] = b"GIF89a"
    answer = service.request("/v1/classify/batch?top=2", with_lengths(images))
    assert answer.headers["content-type"] == "application/x-ndjson"
    records = [json.loads(line) for line in answer.body.splitlines()]
    single = [service.request("/v1/classify?top=2", image).json for image in images]
    assert records[2] == {"path": None, "error": {"kind": "damaged", "message": records[2]["error"]["message"]}}
    assert [record.get("label") for record in records] == [record.get("label") for record in single]
    assert [len(record["top"]) for record in records if "top" in record] == [2] * 5


def test_curl_sends_files_as_parts_and_gets_their_names_back(service, samples):
    files = [argument for path in samples[:3] for argument in ("-F", f"images=@{path}")]
    url = f"http://127.0.0.1:{service.port}/v1/classify/batch"
    done = subprocess.run(["curl", "-sS", *files, url], capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["path"] for record in records] == [path.name for path in samples[:3]]
    assert all(record["label"] == record["path"][0] for record in records)


def test_too_many_images_and_broken_bodies_are_errors(service):
    assert service.request("/v1/classify/batch", b"").body == b""
    assert service.request("/v1/classify/batch", with_lengths([b"x"] * 257)).error == (413, "too-large")
    assert service.request("/v1/classify/batch", b"\0\0\0\5abc").error == (400, "bad-request")
    parts = service.request("/v1/classify/batch", b"--x--", Content_Type="multipart/mixed")
    assert parts.error == (400, "bad-request")


def test_images_with_lengths_are_split():
    images = [b"", b"one", bytes(70_000)]
    assert split_lengths(with_lengths(images), 3) == [Part(None, image) for image in images]
    for broken in (b"\0", b"\0\0\0\1", b"\xff\xff\xff\xffx", with_lengths([b"a"] * 4)):
        with pytest.raises(RequestError):
            split_lengths(broken, 3)


def test_the_parts_of_a_multipart_body_are_split():
    first = b'Content-Type: image/png\r\nContent-Disposition: form-data; name="x"; filename="a \xc3\xa4.png"\r\n\r\n'
    body = b"ignored\r\n--b\r\n" + first + b"\r\n--c\r\n--b \r\n\r\nsecond\r\n--b--\r\nignored"
    assert split_multipart(body, b"b", 2) == [Part("a ä.png", b"\r\n--c"), Part(None, b"second")]
    assert split_multipart(b"--b--", b"b", 0) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b\r\n",
        b"--b\r\n\r\nno end",
        b"--b junk\r\n\r\n\r\nx\r\n--b--",
        b"--b\r\nno end of headers\r\n--b--",
        b"--b\r\n" + b"x" * 5000 + b"\r\n\r\n\r\n--b--",
        b"--b\r\n\r\n1\r\n--b\r\n\r\n2\r\n--b--",
    ],
)
def test_a_broken_multipart_body_is_an_error(body):
    with pytest.raises(RequestError):
        split_multipart(body, b"b", 1)
