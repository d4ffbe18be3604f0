"""`GET /`: the page for people. Everything it needs comes from this package."""

from __future__ import annotations

from functools import cache
from importlib import resources

from clf_serve.http import Request, Response
from clf_serve.service import Service

# Nothing from other hosts, no inline script; the page shows images that it got from the person (blob:).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)


async def index(service: Service, request: Request) -> Response:
    """Answer with the page."""
    return _file("index.html", "text/html; charset=utf-8")


async def style(service: Service, request: Request) -> Response:
    """Answer with its style sheet."""
    return _file("page.css", "text/css; charset=utf-8")


async def script(service: Service, request: Request) -> Response:
    """Answer with its script."""
    return _file("page.js", "text/javascript; charset=utf-8")


@cache
def _file(name: str, content_type: str) -> Response:
    content = resources.files("clf_serve").joinpath("static", name).read_bytes()
    return Response(200, content, content_type, _HEADERS)
