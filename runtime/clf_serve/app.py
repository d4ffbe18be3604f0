"""The ASGI application: which function answers which path, and how errors are answered."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable

from clf_serve import classify
from clf_serve.errors import ClientLeftError, RequestError
from clf_serve.http import BodyBudget, Receive, Request, Response, Scope, Send
from clf_serve.metrics import CONTENT_TYPE
from clf_serve.service import Service

Endpoint = Callable[[Service, Request], Awaitable[Response]]

# All bodies together take at most so much as this many of the largest.
_LARGEST_BODIES = 8


async def healthz(service: Service, request: Request) -> Response:
    """Answer whether the process works: no batch runs forever."""
    if service.batcher.is_stalled:
        raise RequestError(503, "stalled", "a batch does not end; restart the service")
    return Response(200, b"ok\n", "text/plain; charset=utf-8")


async def readyz(service: Service, request: Request) -> Response:
    """Answer whether images are classified: the model has passed its self-test in this process."""
    await healthz(service, request)
    sha256 = service.live.current.classifier.file.sha256
    return Response(200, f"ready: {sha256}\n".encode(), "text/plain; charset=utf-8")


async def metrics(service: Service, request: Request) -> Response:
    """Answer with the metrics."""
    return Response(200, service.metrics.render(), CONTENT_TYPE)


# Path → method → endpoint.
ROUTES: dict[str, dict[str, Endpoint]] = {
    "/healthz": {"GET": healthz},
    "/readyz": {"GET": readyz},
    "/metrics": {"GET": metrics},
    "/v1/model": {"GET": classify.describe_model},
    "/v1/classify": {"POST": classify.classify},
}

# Probes have no token.
_OPEN_PATHS = frozenset(("/healthz", "/readyz"))


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
            return
        request = Request(scope, receive, self._budget)
        route = "other"
        try:
            if request.path in ROUTES:
                route = request.path
            response = await self._answer(request)
        except ClientLeftError:
            self._service.metrics.count_request(route, 499)
            return
        except RequestError as error:
            content = {"error": {"kind": error.kind, "message": str(error)}}
            response = classify.json_response(content, error.status)
            response = Response(response.status, response.body, headers=error.headers)
        except Exception:
            traceback.print_exc()
            content = {
                "error": {"kind": "internal", "message": "this is a bug in clf-edge; see the log of the service"}
            }
            response = classify.json_response(content, 500)
        finally:
            request.release()
        self._service.metrics.count_request(route, response.status)
        self._service.metrics.observe_request(request.arrival_s, request.age_s)
        await response.send(send)

    async def _answer(self, request: Request) -> Response:
        tokens = self._service.tokens
        is_open = request.path in _OPEN_PATHS
        if tokens is not None and not is_open and not tokens.accept(request.headers.get("authorization", "")):
            raise RequestError(401, "unauthorized", "no valid token; send Authorization: Bearer TOKEN")
        methods = ROUTES.get(request.path)
        if methods is None:
            raise RequestError(404, "no-such-path", f"nothing is at {request.path!r}")
        method = "GET" if request.method == "HEAD" else request.method
        if method not in methods:
            raise RequestError(405, "method-not-allowed", f"{request.method} is not allowed, expected {min(methods)}")
        return await methods[method](self._service, request)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        watch = asyncio.create_task(self._service.watch_deadlines(self._on_check))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
        await send({"type": "lifespan.shutdown.complete"})
