"""Requests and answers of the Open Inference Protocol (version 2), in JSON and with Triton's binary tensors.

The protocol: https://github.com/kserve/open-inference-protocol. The extension: binary tensors follow the JSON, whose
length is in the header `Inference-Header-Content-Length`; with the length 0, the body is one tensor.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clf_runtime.preprocess import UInt8Array
from clf_runtime.session import Float32Array
from clf_runtime.spec import parse_json
from clf_serve.errors import bad_request
from clf_serve.http import parse_size

INPUT = "image"
OUTPUTS = ("logits", "probabilities")
LENGTH_HEADER = "inference-header-content-length"

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class TensorRequest:
    """What a client asks for.

    Attributes:
        id: Its own name of the request; None if it has none.
        images: Encoded images, or pixels, uint8 (height, width, channels).
        outputs: Name of each requested output → whether it is sent as a binary tensor.
    """

    id: str | None
    images: list[bytes | UInt8Array]
    outputs: Mapping[str, bool]


def parse_request(body: bytes, json_length: str | None, shape: tuple[int, ...]) -> TensorRequest:
    """Parse the body of a request.

    Args:
        body: The body.
        json_length: The header `Inference-Header-Content-Length`, if there is one.
        shape: Height, width and channels of the model's input.

    Raises:
        RequestError: It does not follow the protocol.
    """
    if json_length is None:
        return _parse_parts(body, b"", shape)
    length = parse_size(json_length)
    if length is None or length > len(body):
        raise bad_request(f"{LENGTH_HEADER} is {json_length[:20]!r}, expected at most {len(body)}")
    if not length:
        return TensorRequest(None, [*_pixels(np.frombuffer(body, np.uint8), shape)], dict.fromkeys(OUTPUTS, True))
    return _parse_parts(body[:length], body[length:], shape)


def render_response(request: TensorRequest, name: str, results: Mapping[str, Float32Array]) -> tuple[bytes, int | None]:
    """Return the body of the answer, and the length of its JSON if binary tensors follow it.

    Args:
        request: The request.
        name: The name of the model.
        results: Name → values, (N, classes), of each output.
    """
    described, tensors = [], []
    for output, is_binary in request.outputs.items():
        values = results[output]
        tensor: dict[str, Any] = {"name": output, "datatype": "FP32", "shape": list(values.shape)}
        if is_binary:
            tensors.append(values.astype("<f4").tobytes())
            tensor["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            tensor["data"] = [number if math.isfinite(number) else None for number in values.ravel().tolist()]
        described.append(tensor)
    answer: dict[str, Any] = {"model_name": name, "model_version": "1", "outputs": described}
    if request.id is not None:
        answer["id"] = request.id
    head = json.dumps(answer).encode()
    return b"".join([head, *tensors]), len(head) if tensors else None


def _parse_parts(head: bytes, tail: bytes, shape: tuple[int, ...]) -> TensorRequest:
    try:
        content = parse_json(head.decode())
    except ValueError as error:
        raise bad_request(f"the request is no JSON ({error})") from None
    content = _object(content, "the request")
    inputs = _list(content.get("inputs"), "inputs")
    if len(inputs) != 1:
        raise bad_request(f"{len(inputs)} inputs, expected one, {INPUT!r}")
    tensor = _object(inputs[0], "the input")
    if tensor.get("name") != INPUT:
        raise bad_request(f"an input named {tensor.get('name')!r}, expected {INPUT!r}")
    identifier = content.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise bad_request("id is no text")
    return TensorRequest(identifier, _images(tensor, tail, shape), _outputs(content))


def _outputs(content: Mapping[str, Any]) -> dict[str, bool]:
    is_binary = _parameters(content).get("binary_data_output") is True
    outputs: dict[str, bool] = {}
    for row in _list(content.get("outputs") or [{"name": name} for name in OUTPUTS], "outputs"):
        output = _object(row, "an output")
        name, parameters = output.get("name"), _parameters(output)
        if name not in OUTPUTS:
            raise bad_request(f"an output named {name!r}, expected one of {', '.join(OUTPUTS)}")
        if parameters.get("classification"):
            raise bad_request("the classification extension is not supported; POST the image to /v1/classify?top=K")
        outputs[name] = parameters.get("binary_data", is_binary) is True
    return outputs


def _images(tensor: Mapping[str, Any], tail: bytes, shape: tuple[int, ...]) -> list[bytes | UInt8Array]:
    datatype, dimensions = tensor.get("datatype"), _shape(tensor.get("shape"))
    size = _parameters(tensor).get("binary_data_size")
    if size is not None and (isinstance(size, bool) or size != len(tail)):
        raise bad_request(f"binary_data_size is {size!r}, but {len(tail)} bytes follow the JSON")
    if size is None and tail:
        raise bad_request(f"{len(tail)} bytes follow the JSON, but no input has a binary_data_size")
    if datatype == "BYTES":
        images = _split_bytes(tail) if size is not None else _decode_texts(tensor.get("data"))
        if math.prod(dimensions) != len(images):
            raise bad_request(f"shape {list(dimensions)} for {len(images)} images")
        return [*images]
    if datatype != "UINT8":
        raise bad_request(f"datatype {datatype!r}, expected UINT8 (pixels) or BYTES (encoded images)")
    if dimensions[1:] != shape:
        raise bad_request(f"shape {list(dimensions)}, expected [N, {', '.join(map(str, shape))}]")
    values = np.frombuffer(tail, np.uint8) if size is not None else _uint8_array(tensor.get("data"))
    pixels = _pixels(values, shape)
    if len(pixels) != dimensions[0]:
        raise bad_request(f"shape {list(dimensions)} for {values.size} values")
    return [*pixels]


def _pixels(values: UInt8Array, shape: tuple[int, ...]) -> UInt8Array:
    """Return values as images, (n, height, width, channels)."""
    if not values.size or values.size % math.prod(shape):
        raise bad_request(f"{values.size} pixel values, expected a multiple of {' x '.join(map(str, shape))}")
    return values.reshape(-1, *shape)


def _uint8_array(data: object) -> UInt8Array:
    try:
        values = np.asarray(_list(data, "data"))
    except (ValueError, OverflowError):  # nested lists of different lengths
        values = np.asarray("")
    if values.dtype.kind != "i" or (values.size and (values.min() < 0 or values.max() > 255)):
        raise bad_request("data has something else than whole numbers from 0 to 255")
    return values.astype(np.uint8).ravel()


def _split_bytes(tail: bytes) -> list[bytes]:
    """Split the elements of a binary BYTES tensor, each of which follows its length, 4 bytes, little-endian."""
    images, position = [], 0
    while position < len(tail):
        if len(tail) - position < _LENGTH.size:
            raise bad_request("the binary tensor ends within a length")
        start = position + _LENGTH.size
        (length,) = _LENGTH.unpack_from(tail, position)
        position = start + length
        if position > len(tail):
            raise bad_request(f"an element of {length:,} bytes, but only {len(tail) - start:,} follow")
        images.append(tail[start:position])
    return images


def _decode_texts(data: object) -> list[bytes]:
    """Decode the images of a BYTES tensor in JSON: each is a text in base64."""
    try:
        return [base64.b64decode(text, validate=True) for text in _list(data, "data")]
    except (TypeError, ValueError, binascii.Error):
        raise bad_request("BYTES in JSON are texts in base64; send a binary tensor otherwise") from None


def _shape(shape: object) -> tuple[int, ...]:
    dimensions = _list(shape, "shape")
    if not dimensions or not all(type(size) is int and size > 0 for size in dimensions):
        raise bad_request(f"shape {dimensions!r}, expected positive whole numbers")
    return tuple(dimensions)


def _parameters(content: Mapping[str, Any]) -> Mapping[str, Any]:
    return _object(content.get("parameters") or {}, "parameters")


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise bad_request(f"{what} is no object")
    return value


def _list(value: object, what: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise bad_request(f"{what} is no list")
    return value
