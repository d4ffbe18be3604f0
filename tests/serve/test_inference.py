"""The Open Inference Protocol, with Triton's own client and with curl."""

from __future__ import annotations

import base64
import json
import struct
import subprocess

import numpy as np
import pytest

from clf_runtime import Classifier
from clf_runtime.preprocess import pixels_from_image
from clf_serve.errors import RequestError
from clf_serve.tensors import TensorRequest, parse_request, render_response

URL = "/v2/models/model/infer"


@pytest.fixture(scope="module")
def classifier(model):
    return Classifier.load(model)


@pytest.fixture(scope="module")
def pixels(classifier, samples):
    """The pixels of two images."""
    return np.stack([pixels_from_image(path, classifier.spec.preprocess) for path in samples[:2]])


@pytest.fixture(scope="module")
def client(service):
    from tritonclient import http

    with http.InferenceServerClient(f"127.0.0.1:{service.port}") as triton:
        yield triton


def test_tritonclient_finds_server_and_model(client, classifier):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("model")
    assert client.is_model_ready("model", "1")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("model", "2")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    described = client.get_model_metadata("model")
    assert described["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": [-1, *classifier.spec.preprocess.shape]}
    ]
    assert [output["name"] for output in described["outputs"]] == ["logits", "probabilities"]


@pytest.mark.parametrize("is_binary", [True, False])
def test_tritonclient_sends_pixels_and_gets_what_the_graph_computes(client, classifier, pixels, is_binary):
    from tritonclient import http

    tensor = http.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=is_binary)
    outputs = [http.InferRequestedOutput(name, binary_data=is_binary) for name in ("probabilities", "logits")]
    result = client.infer("model", [tensor], outputs=outputs, request_id="42")
    assert result.get_response()["id"] == "42"
    logits, probabilities = classifier.run(pixels)
    np.testing.assert_allclose(result.as_numpy("logits"), logits, atol=1e-4)
    np.testing.assert_allclose(result.as_numpy("probabilities"), probabilities, atol=1e-5)


def test_tritonclient_sends_encoded_images_which_are_prepared_as_everywhere(client, classifier, samples):
    from tritonclient import http

    images = np.array([path.read_bytes() for path in samples[:3]], dtype=np.object_)
    tensor = http.InferInput("image", [3], "BYTES")
    tensor.set_data_from_numpy(images)
    result = client.infer("model", [tensor])
    expected = [classifier.predict(path) for path in samples[:3]]
    assert result.as_numpy("probabilities").argmax(1).tolist() == [each.index for each in expected]
    np.testing.assert_allclose(result.as_numpy("probabilities").max(1), [each.score for each in expected], atol=1e-5)


def test_tritonclient_gets_the_message_of_an_error(client, pixels):
    from tritonclient import http
    from tritonclient.utils import InferenceServerException

    tensor = http.InferInput("image", [1, 2, 2, 3], "UINT8")
    tensor.set_data_from_numpy(np.zeros((1, 2, 2, 3), np.uint8))
    with pytest.raises(InferenceServerException, match="expected \\[N, "):
        client.infer("model", [tensor])
    bad = http.InferInput("image", [1], "BYTES")
    bad.set_data_from_numpy(np.array([b"no image"], dtype=np.object_))
    with pytest.raises(InferenceServerException, match="image 1: it starts with"):
        client.infer("model", [bad])


def test_curl_sends_one_raw_tensor_or_json(service, classifier, pixels, tmp_path):
    (tmp_path / "pixels").write_bytes(pixels[0].tobytes())
    probabilities = classifier.run(pixels[:1])[1][0]
    curl = ["curl", "-sS", f"http://127.0.0.1:{service.port}{URL}", "-o", tmp_path / "answer"]
    headers = tmp_path / "headers"
    raw = [*curl, "-H", "Inference-Header-Content-Length: 0", "--data-binary", f"@{tmp_path / 'pixels'}", "-D", headers]
    subprocess.run(raw, check=True)
    (length,) = [line.split(":")[1] for line in headers.read_text().lower().splitlines() if "inference" in line]
    content = (tmp_path / "answer").read_bytes()
    sizes = [output["parameters"]["binary_data_size"] for output in json.loads(content[: int(length)])["outputs"]]
    answered = np.frombuffer(content[int(length) + sizes[0] :], "<f4")
    np.testing.assert_allclose(answered, probabilities, atol=1e-5)
    request = {
        "inputs": [{"name": "image", "shape": [1, *pixels[0].shape], "datatype": "UINT8", "data": pixels[:1].tolist()}]
    }
    subprocess.run([*curl, "-d", json.dumps(request)], check=True)
    outputs = json.loads((tmp_path / "answer").read_bytes())["outputs"]
    np.testing.assert_allclose(outputs[1]["data"], probabilities, atol=1e-5)


def test_errors_have_the_form_of_the_protocol(service):
    answer = service.request(URL, b"{}")
    assert (answer.status, answer.json) == (400, {"error": "inputs is no list"})
    assert service.request("/v2/models/other/infer", b"{}").status == 404
    assert service.request("/v2/models/model/config").status == 404


SHAPE = (2, 1, 3)
PIXELS = list(range(6))


def image(**fields: object) -> dict[str, object]:
    return {"name": "image", "shape": [1, *SHAPE], "datatype": "UINT8", "data": PIXELS} | fields


def encode(*inputs: object, **fields: object) -> bytes:
    return json.dumps({"inputs": inputs} | fields).encode()


def test_pixels_may_be_flat_or_nested_and_are_split_into_images():
    for data in (PIXELS * 2, [[[PIXELS[:3]], [PIXELS[3:]]]] * 2):
        parsed = parse_request(encode(image(shape=[2, *SHAPE], data=data), id="a"), None, SHAPE)
        assert (parsed.id, parsed.outputs) == ("a", {"logits": False, "probabilities": False})
        assert [each.ravel().tolist() for each in parsed.images] == [PIXELS] * 2


def test_bytes_in_json_are_base64():
    tensor = image(shape=[2, 1], datatype="BYTES", data=[base64.b64encode(each).decode() for each in (b"a", b"")])
    assert parse_request(encode(tensor), None, SHAPE).images == [b"a", b""]


def binary(tail: bytes, **fields: object) -> tuple[bytes, str]:
    head = encode(image(parameters={"binary_data_size": len(tail)}, data=None) | fields)
    return head + tail, str(len(head))


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"", None),
        (b"\xff", None),
        (b"[]", None),
        (b"[" * 100_000, None),
        (b'{"inputs": {}}', None),
        (encode(), None),
        (encode(image(), image()), None),
        (encode("image"), None),
        (encode(image(name="x")), None),
        (encode(image(datatype="FP32")), None),
        (encode(image(datatype=None)), None),
        (encode(image(shape=[1, 2, 2, 2])), None),
        (encode(image(shape=[2, *SHAPE])), None),
        (encode(image(shape=[1.0, *SHAPE])), None),
        (encode(image(shape=[])), None),
        (encode(image(shape=[0, *SHAPE])), None),
        (encode(image(data=[])), None),
        (encode(image(data=[1, 2, 3])), None),
        (encode(image(data=[[1], [2, 3]])), None),
        (encode(image(data=[-1, *PIXELS[1:]])), None),
        (encode(image(data=[256, *PIXELS[1:]])), None),
        (encode(image(data=[2**70, *PIXELS[1:]])), None),
        (encode(image(data=[True] * 6)), None),
        (encode(image(data=[0.5] * 6)), None),
        (encode(image(data=["0"] * 6)), None),
        (encode(image(data=None)), None),
        (encode(image(parameters=[1])), None),
        (encode(image(datatype="BYTES", shape=[1], data=["%"])), None),
        (encode(image(datatype="BYTES", shape=[1], data=[1])), None),
        (encode(image(datatype="BYTES", shape=[2], data=["YQ=="])), None),
        (encode(image(), id=7), None),
        (encode(image(), outputs=[{"name": "x"}]), None),
        (encode(image(), outputs=["logits"]), None),
        (encode(image(), outputs=[{"name": "logits", "parameters": {"classification": 3}}]), None),
        (encode(image()), "x"),
        (encode(image()), "-1"),
        (encode(image()), "9" * 5000),
        (encode(image()) + b"x", str(len(encode(image())))),
        (b"", "0"),
        (bytes(7), "0"),
        binary(bytes(5)),
        binary(b"", datatype="BYTES", shape=[1]),
        binary(b"\1", datatype="BYTES", shape=[1]),
        binary(struct.pack("<I", 9) + b"short", datatype="BYTES", shape=[1]),
        binary(bytes(6), parameters={"binary_data_size": 7}),
        binary(bytes(1), parameters={"binary_data_size": True}),
    ],
)
def test_a_request_that_does_not_follow_the_protocol_is_an_error(body, length):
    with pytest.raises(RequestError) as caught:
        parse_request(body, length, SHAPE)
    assert caught.value.status == 400
    assert "\n" not in str(caught.value)


def test_binary_tensors_are_split_and_written():
    body, length = binary(bytes(PIXELS), id="x")
    assert parse_request(body, length, SHAPE).images[0].ravel().tolist() == PIXELS
    body, length = binary(struct.pack("<I", 1) + b"a" + struct.pack("<I", 0), datatype="BYTES", shape=[2])
    assert parse_request(body, length, SHAPE).images == [b"a", b""]
    request = TensorRequest(None, [], {"logits": True, "probabilities": False})
    values = np.array([[1, np.nan]], np.float32)
    content, size = render_response(request, "m", {"logits": values, "probabilities": values})
    assert json.loads(content[:size])["outputs"][1]["data"] == [1.0, None]
    assert content[size:] == values.tobytes()


def test_an_image_and_its_pixels_give_the_same_answer(service, samples, classifier):
    encoded = image(datatype="BYTES", shape=[1], data=[base64.b64encode(samples[0].read_bytes()).decode()])
    answer = service.request(URL, encode(encoded, outputs=[{"name": "probabilities"}]))
    (output,) = answer.json["outputs"]
    assert max(output["data"]) == pytest.approx(classifier.predict(samples[0]).score, abs=1e-5)
