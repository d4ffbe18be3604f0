"""The ASGI application: which function answers which path, and how errors are answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import traceback
from collections.abc import Awaitable, Callable

from clf_serve import batch, classify, inference, page
from clf_serve.errors import ClientLeftError, RequestError
from clf_serve.http import BodyBudget, Receive, Request, Response, Scope, Send
from clf_serve.metrics import CONTENT_TYPE
from clf_serve.service import Service

Endpoint = Callable[[Service, Request], Awaitable[Response]]

# All bodies together take at most so much as this many of the largest.
_LARGEST_BODIES = 8

_TEXT = "text/plain; charset=utf-8"
_CLIENT_LEFT = 499  # nginx's number for a request that nobody waits for any more


async def healthz(service: Service, request: Request) -> Response:
    """Answer whether the process works."""
    service.check_health()
    return Response(200, f"ok\n{service.describe_processes()}".encode(), _TEXT)


async def readyz(service: Service, request: Request) -> Response:
    """Answer whether images are classified: the model has passed its self-test in this process."""
    service.check_health()
    sha256 = service.live.current.classifier.file.sha256
    return Response(200, f"ready: {sha256}\n{service.describe_processes()}".encode(), _TEXT)


async def metrics(service: Service, request: Request) -> Response:
    """Answer with the metrics."""
    return Response(200, service.metrics.render(), CONTENT_TYPE)


# Path → method and endpoint.
ROUTES: dict[str, tuple[str, Endpoint]] = {
    "/": ("GET", page.index),
    "/page.css": ("GET", page.style),
    "/page.js": ("GET", page.script),
    "/healthz": ("GET", healthz),
    "/readyz": ("GET", readyz),
    "/metrics": ("GET", metrics),
    "/v1/model": ("GET", classify.describe_model),
    "/v1/classify": ("POST", classify.classify),
    "/v1/classify/batch": ("POST", batch.classify_batch),
    "/v2": ("GET", inference.describe_server),
    "/v2/health/live": ("GET", inference.live),
    "/v2/health/ready": ("GET", inference.ready),
}
# The same for what follows a model's name and version.
_MODEL_ROUTES: dict[str, tuple[str, Endpoint]] = {
    "": ("GET", inference.describe_model),
    "/ready": ("GET", inference.model_ready),
    "/infer": ("POST", inference.infer),
}
_MODEL_PATH = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<action>/ready|/infer|)")

# Probes have no token, and the page asks for it.
_OPEN_PATHS = frozenset(("/", "/page.css", "/page.js", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"))


class Application:
    """Answers requests."""

    def __init__(self, service: Service, on_check: Callable[[], None]) -> None:
        """Store the service; `on_check` is called about once a second."""
        self._service = service
        self._on_check = on_check
        self._budget = BodyBudget(_LARGEST_BODIES * service.options.limits.body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or run beside all of them from the first to the last one (ASGI's lifespan)."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._respond(Request(scope, receive, self._budget), send)

    async def _respond(self, request: Request, send: Send) -> None:
        route, method, endpoint = _find_route(request)
        try:
            self._check_token(request)
            response = await _check_method(request, method, endpoint)(self._service, request)
        except ClientLeftError:
            self._service.metrics.count_request(route, _CLIENT_LEFT)
            return
        except RequestError as error:
            response = _error_response(request, error)
        except Exception:
            traceback.print_exc()
            bug = RequestError(500, "internal", "this is a bug in clf-edge; see the log of the service")
            response = _error_response(request, bug)
        finally:
            request.release()
        self._service.metrics.count_request(route, response.status)
        self._service.metrics.observe_request(request.arrival_s, request.age_s)
        await response.send(send)

    def _check_token(self, request: Request) -> None:
        tokens = self._service.tokens
        if tokens is None or request.path in _OPEN_PATHS:
            return
        if not tokens.accept(request.headers.get("authorization", "")):
            raise RequestError(401, "unauthorized", "no valid token; send Authorization: Bearer TOKEN")

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        watch = asyncio.create_task(self._service.watch_deadlines(self._on_check))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
        await send({"type": "lifespan.shutdown.complete"})


def _find_route(request: Request) -> tuple[str, str, Endpoint | None]:
    """Return the route for the metrics, the method, and the endpoint; None if there is nothing at the path."""
    if request.path in ROUTES:
        return request.path, *ROUTES[request.path]
    match = _MODEL_PATH.fullmatch(request.path)
    if match is None:
        return "other", "", None
    request.parts = match.groupdict()
    return f"/v2/models/NAME{match['action']}", *_MODEL_ROUTES[match["action"]]


def _check_method(request: Request, method: str, endpoint: Endpoint | None) -> Endpoint:
    if endpoint is None:
        raise RequestError(404, "no-such-path", f"nothing is at {request.path!r}")
    if method != ("GET" if request.method == "HEAD" else request.method):
        raise RequestError(405, "method-not-allowed", f"{request.method} is not allowed, expected {method}")
    return endpoint


def _error_response(request: Request, error: RequestError) -> Response:
    # In the Open Inference Protocol an error is a text.
    is_inference = request.path.startswith("/v2")
    content = str(error) if is_inference else {"kind": error.kind, "message": str(error)}
    return Response(error.status, json.dumps({"error": content}).encode() + b"\n", headers=error.headers)
