"""The endpoints of the Open Inference Protocol (version 2): `/v2`."""

from __future__ import annotations

from typing import Any

import numpy as np

from clf_runtime import __version__
from clf_runtime.errors import ImageError
from clf_serve.batching import Output
from clf_serve.classify import json_response
from clf_serve.errors import RequestError, request_error_from_image
from clf_serve.http import Request, Response
from clf_serve.service import Service
from clf_serve.tensors import INPUT, LENGTH_HEADER, OUTPUTS, parse_request, render_response

_VERSION = "1"  # of a model: there is one at a time


async def describe_server(service: Service, request: Request) -> Response:
    """Answer what this server is."""
    return json_response({"name": "clf-serve", "version": __version__, "extensions": ["binary_tensor_data"]})


async def live(service: Service, request: Request) -> Response:
    """Answer whether the process works."""
    service.check_health()
    return json_response({"live": True})


async def ready(service: Service, request: Request) -> Response:
    """Answer whether images are classified."""
    service.check_health()
    return json_response({"ready": True})


async def model_ready(service: Service, request: Request) -> Response:
    """Answer whether a model is ready."""
    _check_model(service, request)
    service.check_health()
    return json_response({"name": service.live.name, "ready": True})


async def describe_model(service: Service, request: Request) -> Response:
    """Answer with the inputs and outputs of a model."""
    _check_model(service, request)
    spec = service.live.current.classifier.spec
    image = {"name": INPUT, "datatype": "UINT8", "shape": [-1, *spec.preprocess.shape]}
    outputs = [{"name": name, "datatype": "FP32", "shape": [-1, len(spec.labels)]} for name in OUTPUTS]
    described: dict[str, Any] = {"name": service.live.name, "versions": [_VERSION], "platform": "onnxruntime_onnx"}
    return json_response(described | {"inputs": [image], "outputs": outputs})


async def infer(service: Service, request: Request) -> Response:
    """Run a model on pixels, or on encoded images, which are prepared as everywhere in clf-edge."""
    _check_model(service, request)
    body = await request.read_body(service.options.limits.body_bytes)
    shape = service.live.current.classifier.spec.preprocess.shape
    asked = parse_request(body, request.headers.get(LENGTH_HEADER), shape)
    results = await service.batcher.classify(asked.images, request)
    outputs: list[Output] = []
    for number, result in enumerate(results, 1):
        if isinstance(result, ImageError):
            raise request_error_from_image(result, f"image {number}: ")
        outputs.append(result)
    values = {
        "logits": np.stack([output.logits for output in outputs]),
        "probabilities": np.stack([output.probabilities for output in outputs]),
    }
    answer, json_length = render_response(asked, service.live.name, values)
    if json_length is None:
        return Response(200, answer)
    length = (LENGTH_HEADER.encode(), b"%d" % json_length)
    return Response(200, answer, "application/octet-stream", (length,))


def _check_model(service: Service, request: Request) -> None:
    name, version = request.parts["name"], request.parts["version"]
    if name != service.live.name or version not in (None, _VERSION):
        raise RequestError(
            404, "no-such-model", f"no model {name!r}, version {version or _VERSION}; {service.live.name!r} is here"
        )
