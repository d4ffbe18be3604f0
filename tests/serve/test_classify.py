"""`POST /v1/classify`, and what all endpoints share."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from serving import serving

from clf_runtime import Classifier


def test_the_answer_is_the_record_that_clf_run_prints(service, command, home, samples):
    arguments = [f"artifacts/samples/{path.name}" for path in samples]
    options = ("--top", 3, "--threshold", 0.9, "--format", "jsonl", "--batch-size", 1)
    printed = command("clf-run", *arguments, *options, cwd=home).out
    for path, line in zip(samples, printed.splitlines(), strict=True):
        answer = service.request("/v1/classify?top=3&threshold=0.9", path.read_bytes())
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json == json.loads(line) | {"path": None}


def jpeg(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (width, height)).save(content, "JPEG")
    return content.getvalue()


BOMB = b"P5 9400 9600 255\n"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", (400, "empty")),
        (b"<html>not found</html>", (415, "not-an-image")),
        (jpeg(100, 100)[:300], (422, "damaged")),
        (BOMB, (413, "too-large")),
        (b"--boundary\r\n\r\n", (415, "not-an-image")),
    ],
)
def test_a_body_that_is_no_image_is_an_error_of_one_kind(service, body, error):
    answer = service.request("/v1/classify", body)
    assert answer.error == error
    assert "\n" not in answer.json["error"]["message"]


@pytest.mark.parametrize(
    "query",
    ["top=0", "top=-1", "top=x", "top=", "top=1&top=2", "threshold=2", "threshold=nan", "threshold=", "size=3"],
)
def test_a_parameter_that_cannot_be_used_is_an_error(service, samples, query):
    assert service.request(f"/v1/classify?{query}", samples[0].read_bytes()).error == (400, "bad-request")


def test_paths_and_methods_that_do_not_exist_are_errors(service, samples):
    assert service.request("/etc/passwd").error == (404, "no-such-path")
    assert service.request("/../../etc/passwd").error == (404, "no-such-path")
    assert service.request("/%2e%2e/v1/classify").error == (404, "no-such-path")
    assert service.request("/v1/classify").error == (405, "method-not-allowed")
    assert service.request("/healthz", b"x").error == (405, "method-not-allowed")
    compressed = service.request("/v1/classify", samples[0].read_bytes(), Content_Encoding="gzip")
    assert compressed.error == (415, "unsupported")


def test_health_and_readiness_name_the_model_that_passed_its_self_test(service, model):
    digest = Classifier.load(model).file.sha256
    assert service.request("/healthz").body == b"ok\n"
    assert service.request("/readyz").body.decode() == f"ready: {digest}\n"
    assert service.request("/readyz", method="HEAD").body == b""
    described = service.request("/v1/model").json
    assert (described["sha256"], described["self_test"]["passed"]) == (digest, True)
    assert described["spec"]["labels"] == [str(digit) for digit in range(10)]


def test_metrics_count_requests_images_and_stages(service, samples):
    requests = 'clf_requests_total{endpoint="/v1/classify",status="200"}'
    service.request("/v1/classify", samples[0].read_bytes())
    before = service.metric(requests), service.metric('clf_images_total{outcome="ok"}')
    for _ in range(3):
        service.request("/v1/classify", samples[0].read_bytes())
    service.request("/v1/classify", b"GIF")
    assert (service.metric(requests), service.metric('clf_images_total{outcome="ok"}')) == (
        before[0] + 3,
        before[1] + 3,
    )
    assert service.metric('clf_images_total{outcome="not-an-image"}') >= 1
    for stage in ("arrival", "queue", "decode", "infer", "total"):
        assert service.metric(f'clf_stage_seconds_count{{stage="{stage}"}}') >= 3
    assert service.metric("clf_queue_images") == 0
    assert service.metric("clf_connections") >= 1


def test_one_bad_image_never_fails_the_images_of_other_requests(service, samples):
    expected = {path: service.request("/v1/classify", path.read_bytes()).json for path in samples}
    bad = jpeg(200, 200)[:300]

    def classify(number: int) -> bool:
        if number % 3 == 0:
            return service.request("/v1/classify", bad).error == (422, "damaged")
        path = samples[number % len(samples)]
        answer = service.request("/v1/classify", path.read_bytes()).json
        return answer["label"] == expected[path]["label"] and abs(answer["score"] - expected[path]["score"]) < 1e-5

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(classify, range(150)))


def test_requests_at_once_share_batches(model, samples):
    with serving(model, "--workers", 1, "--max-wait", "200ms", "--batch-size", 4) as running:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda path: running.request("/v1/classify", path.read_bytes()), samples[:8]))
        assert [answer.status for answer in answers] == [200] * 8
        assert running.metric("clf_batch_images_sum") == 8
        assert running.metric("clf_batch_images_count") <= 4


def test_a_full_queue_is_answered_at_once_with_retry_after(model, samples):
    with serving(
        model, "--workers", 1, "--max-wait", "1min", "--batch-size", 8, "--queue", 2, "--timeout", "1s"
    ) as one:
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda path: one.request("/v1/classify", path.read_bytes()), samples[:6]))
        # Two wait for a batch that never fills, until their deadline; the others are sent away.
        assert sorted(answer.error for answer in answers) == [(503, "overloaded")] * 4 + [(503, "timeout")] * 2
        assert {answer.headers["retry-after"] for answer in answers} == {"1"}


def test_a_body_over_the_limit_is_refused_by_its_length_or_when_it_gets_there(model, samples):
    with serving(model, "--max-body-bytes", 1000) as running:
        assert running.request("/v1/classify", bytes(1001)).error == (413, "too-large")
        chunked = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        answer = running.send_raw(chunked + b"3e8\r\n" + bytes(1000) + b"\r\n1\r\nx\r\n0\r\n\r\n")
        assert b" 413 " in answer.splitlines()[0]
        assert b"too-large" in answer
        assert running.request("/v1/classify", samples[0].read_bytes()[:1000]).status in (200, 422)


def test_tokens_are_required_except_for_probes(model, samples, tmp_path, command):
    token = "correct-horse-battery"
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{'another-token' * 2}\n{token}\n")
    with serving(model, "--token-file", tokens) as running:
        image = samples[0].read_bytes()
        assert running.request("/v1/classify", image).error == (401, "unauthorized")
        assert running.request("/v1/classify", image).headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer", "Bearer x", f"Basic {token}", f"Bearer {token}x", "Bearer \xff"):
            assert running.request("/v1/classify", image, Authorization=wrong).status == 401
        assert running.request("/v1/classify", image, Authorization=f"Bearer {token}").status == 200
        assert running.request("/metrics").status == 401
        assert [running.request(path).status for path in ("/healthz", "/readyz")] == [200, 200]
    for content in ("", "short\n"):
        tokens.write_text(content)
        refused = command("clf-serve", "--model", model, "--token-file", tokens)
        assert (refused.code, str(tokens) in refused.error) == (2, True)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    from conftest import run_checked

    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    request = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run_checked(*request, "-subj", "/CN=localhost", "-keyout", key, "-out", cert)
    return cert, key


def test_tls_and_what_is_wrong_with_its_files(model, samples, certificate, command):
    import ssl
    import urllib.request

    cert, key = certificate
    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False
    for processes in (1, 2):
        with serving(model, "--tls-cert", cert, "--tls-key", key, "--processes", processes) as running:
            assert b"200 OK" not in running.send_raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            url = f"https://127.0.0.1:{running.port}/v1/classify"
            with urllib.request.urlopen(url, samples[0].read_bytes(), context=context) as answer:
                assert json.load(answer)["label"] == samples[0].name[0]
        assert not [line for line in running.lines if "Traceback" in line]
    for options in (("--tls-cert", key), ("--tls-cert", cert, "--tls-key", cert), ("--tls-cert", "gone")):
        refused = command("clf-serve", "--model", model, "--port", 0, *options)
        assert refused.code == 2, refused.err
        assert str(options[1]) in refused.error
    assert "--tls-cert" in command("clf-serve", "--tls-key", key).err
