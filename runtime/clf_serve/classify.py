"""`POST /v1/classify`: an image as the body, its prediction as the answer."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from clf_runtime.errors import ImageError
from clf_runtime.predictions import Failure, Prediction
from clf_serve.batching import Output
from clf_serve.errors import bad_request, request_error_from_image
from clf_serve.http import Request, Response, parse_size
from clf_serve.service import Service


@dataclass(frozen=True)
class Ranking:
    """The parameters of a request."""

    top: int
    threshold: float

    def predict(self, output: Output, path: str | None = None) -> Prediction:
        """Return the prediction for an image."""
        classifier = output.model.classifier
        ranking = classifier.rank(output.probabilities[None], self.top)[0]
        prediction = classifier.prediction(path, ranking)
        return prediction.apply_threshold(self.threshold) if self.threshold > 0 else prediction


def parse_ranking(request: Request) -> Ranking:
    """Return `top` and `threshold` of a request. Raises RequestError."""
    query = request.query
    if unknown := query.keys() - {"top", "threshold"}:
        raise bad_request(f"unknown parameter {min(unknown)!r}, expected top or threshold")
    threshold, top = query.get("threshold", "0"), parse_size(query.get("top", "1"))
    if not top:
        raise bad_request(f"top is {query['top']!r}, expected a whole number of at least 1")
    try:
        value = float(threshold)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise bad_request(f"threshold is {threshold!r}, expected a number from 0 to 1")
    return Ranking(top, value)


async def classify(service: Service, request: Request) -> Response:
    """Classify the image in the body."""
    ranking = parse_ranking(request)
    body = await request.read_body(service.options.limits.body_bytes)
    (output,) = await service.batcher.classify([body], request)
    if isinstance(output, ImageError):
        hint = "; send the image itself as the body, as with curl --data-binary @FILE" if body[:2] == b"--" else ""
        raise request_error_from_image(ImageError(output.kind, f"{output}{hint}"))
    return json_response(ranking.predict(output).to_dict())


async def describe_model(service: Service, request: Request) -> Response:
    """Describe the model that runs: what the page shows, and what a client needs to know."""
    model = service.live.current
    file = model.classifier.file
    spec = asdict(file.spec)
    return json_response(
        {
            "name": service.options.model.name,
            "sha256": file.sha256,
            "size_bytes": file.size_bytes,
            "provider": model.classifier.provider,
            "self_test": model.self_test.to_dict(),
            "spec": spec,
        }
    )


def record(result: Output | ImageError, ranking: Ranking, name: str | None) -> dict[str, Any]:
    """Return the record of one of several images, as `clf-run --format jsonl` prints it."""
    if isinstance(result, ImageError):
        return Failure(name, result.kind, str(result)).to_dict()
    return ranking.predict(result, name).to_dict()


def json_response(content: object, status: int = 200) -> Response:
    """Return an answer in JSON."""
    return Response(status, json.dumps(content).encode() + b"\n")
