"""An application in uvicorn that reads each request and answers with a constant. usage: empty_server.py PORT

What its requests cost is the least that any service in uvicorn costs beside decoding and inference. Run by serving.py.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

BODY = b'{"label": "7", "score": 0.99}\n'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def answer(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Read the body, and answer."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


if __name__ == "__main__":
    uvicorn.run(answer, port=int(sys.argv[1]), http="httptools", ws="none", lifespan="off", log_level="critical")
