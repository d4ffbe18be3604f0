"""An application in uvicorn that reads each request and answers with a constant. usage: empty_server.py PORT

What its requests cost is the least that any service in uvicorn costs beside decoding and inference. Run by serving.py.
"""

from __future__ import annotations

import sys

import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

BODY = b'{"label": "7", "score": 0.99}\n'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def answer(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Read the body, and answer."""
    assert scope["type"] == "http"
    while True:
        message = await receive()
        if message["type"] != "http.request" or not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS, "trailers": False})
    await send({"type": "http.response.body", "body": BODY, "more_body": False})


if __name__ == "__main__":
    uvicorn.run(answer, port=int(sys.argv[1]), http="httptools", ws="none", lifespan="off", log_level="critical")
