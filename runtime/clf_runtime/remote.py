"""A running clf-serve in place of a model: images are sent to it, and its records become results.

Only `clf-run --server` imports this module; without that option, the runtime opens no connection. It imports neither
numpy nor onnxruntime, so an answer takes a third of the time of a cold start.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import urlencode, urlsplit

from clf_runtime.errors import IMAGE_ERROR_KINDS, ClfError, ImageError, MachineError, UsageError, format_reason
from clf_runtime.image_files import image_error_from_os_error, open_binary
from clf_runtime.predictions import Failure, Prediction, Result, Score

if TYPE_CHECKING:
    from clf_runtime.sources import Content, ImageSource

_TOKEN_VARIABLE = "CLF_TOKEN"
_UNIX = "unix:"
_TIMEOUT_S = 60.0
_ATTEMPTS = 30  # while the service is overloaded: about half a minute


def connect(server: str, max_image_bytes: int) -> RemoteClassifier:
    """Connect to a service, and ask which model it runs.

    Args:
        server: `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`.
        max_image_bytes: The largest image file to send.

    Raises:
        UsageError: The address cannot be understood, or the service wants a token.
        MachineError: Nothing answers there, or something else than clf-serve.
    """
    connection = Connection(server, _opener(server))
    try:
        return RemoteClassifier(connection, _describe_model(connection), max_image_bytes)
    except ClfError:
        connection.close()
        raise


@dataclass(frozen=True)
class RemoteModel:
    """What a service says of its model."""

    sha256: str
    provider: str
    indexes: Mapping[str, int]  # label → its position


class RemoteClassifier:
    """What `clf_runtime.run.Run` needs of a Classifier, answered by a service.

    Attributes:
        sha256: The digest of the service's model.
        provider: onnxruntime's name of the execution provider that runs it.
        warning: Empty; a service prints its own warnings.
    """

    warning = ""

    def __init__(self, connection: Connection, model: RemoteModel, max_image_bytes: int) -> None:
        """Store a connection, and what the service says of its model."""
        self.sha256 = model.sha256
        self.provider = model.provider
        self._indexes = model.indexes
        self._connection = connection
        self._max_image_bytes = max_image_bytes

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def predict_sources(
        self, sources: Iterable[ImageSource], *, batch_size: int, top: int = 1
    ) -> Iterator[tuple[ImageSource, Result]]:
        """Yield each source with its result, in order.

        Args:
            sources: The images.
            batch_size: Not used: the service decides.
            top: How many labels each prediction contains.

        Raises:
            MachineError: The service does not answer.
            UsageError: It wants a token.
        """
        path = f"/v1/classify?{urlencode({'top': top})}"
        for source in sources:
            try:
                yield source, self._predict(path, source)
            except ImageError as error:
                yield source, Failure(source.name, error.kind, str(error))

    def _predict(self, path: str, source: ImageSource) -> Prediction:
        answer = self._connection.request("POST", path, _read(source.content, self._max_image_bytes))
        content = answer.content
        try:
            if answer.status == 200:
                top = tuple(map(self._score, content["top"]))
                label, index, score = content["label"], content["index"], _number(content["score"])
                return Prediction(source.name, label, index, score, top, content["provider"])
            kind, message = content["error"]["kind"], content["error"]["message"]
        except (KeyError, TypeError, ValueError):
            kind, message = "", "no record of clf-serve"
        if kind in IMAGE_ERROR_KINDS:
            raise ImageError(kind, str(message))
        raise MachineError(f"{self._connection.server}: status {answer.status}: {message}")

    def _score(self, row: Mapping[str, Any]) -> Score:
        return Score(row["label"], _number(row["score"]), self._indexes.get(row["label"]))


@dataclass(frozen=True)
class Answer:
    """An answer of the service: its status, and its body parsed as JSON (None if it is something else)."""

    status: int
    content: Any


class Connection:
    """One connection to a service, opened again if the service has closed it meanwhile.

    Attributes:
        server: The address, as given.
    """

    def __init__(self, server: str, opener: Callable[[], http.client.HTTPConnection]) -> None:
        """Store how to connect."""
        self.server = server
        self._connection = opener()
        token = os.environ.get(_TOKEN_VARIABLE, "")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def request(self, method: str, path: str, body: bytes) -> Answer:
        """Send a request, again while the service is overloaded. Raises MachineError, UsageError."""
        attempts = _ATTEMPTS
        while True:
            answer, retry_after_s = self._try(method, path, body)
            attempts -= 1
            if answer.status == 401:
                raise UsageError(f"{self.server}: it wants a token; put a valid one into {_TOKEN_VARIABLE}")
            if retry_after_s is None or not attempts:
                return answer
            time.sleep(retry_after_s)

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def _try(self, method: str, path: str, body: bytes) -> tuple[Answer, float | None]:
        """Send a request. Return the answer, and after how many seconds to try again, if it says so."""
        is_reused = self._connection.sock is not None
        try:
            return self._exchange(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            # The service closes a connection that was idle for a while.
            if is_reused and isinstance(error, ConnectionError | http.client.BadStatusLine):
                return self._try(method, path, body)
            reason = format_reason(error) if isinstance(error, OSError) else f"no HTTP ({error!r})"
            raise MachineError(f"{self.server}: {reason}; is clf-serve running there?") from None

    def _exchange(self, method: str, path: str, body: bytes) -> tuple[Answer, float | None]:
        if self._connection.sock is None:
            self._connection.connect()
        # The service may have refused a large body before its end; the answer says why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.request(method, path, body or None, self._headers)
        response = self._connection.getresponse()
        received = response.read()
        try:
            content = json.loads(received)
        except ValueError:
            content = None
        retry_after = response.getheader("Retry-After", "") if response.status == 503 else ""
        return Answer(response.status, content), float(retry_after) if retry_after.isdecimal() else None


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(self._path)


def _describe_model(connection: Connection) -> RemoteModel:
    """Ask which model a service runs. Raises MachineError, UsageError."""
    answer = connection.request("GET", "/v1/model", b"")
    try:
        model = answer.content
        indexes = {str(label): index for index, label in enumerate(model["spec"]["labels"])}
        return RemoteModel(str(model["sha256"]), str(model["provider"]), indexes)
    except (TypeError, KeyError):
        raise MachineError(
            f"{connection.server}: it answers like something else than clf-serve (status {answer.status})"
        ) from None


def _opener(server: str) -> Callable[[], http.client.HTTPConnection]:
    """Return what creates a connection, without connecting. Raises UsageError."""
    if server.startswith(_UNIX) and len(server) > len(_UNIX):
        return lambda: _UnixConnection(server.removeprefix(_UNIX))
    try:
        url = urlsplit(server)
        host, port = url.hostname, url.port
    except ValueError:
        url, host, port = urlsplit(""), None, None
    if url.scheme not in ("http", "https") or not host or url.path not in ("", "/") or url.query:
        raise UsageError(f"--server {server}: expected http://HOST:PORT, https://HOST:PORT or unix:PATH")
    if url.scheme == "http":
        return lambda: http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    context = ssl.create_default_context()
    return lambda: http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)


def _read(content: Content, max_bytes: int) -> bytes:
    """Return the bytes of an image file. Raises ImageError."""
    if isinstance(content, ImageError):
        raise content
    try:
        with open_binary(cast("str | bytes | IO[bytes]", content)) as file:
            image = file.read(max_bytes + 1)
    except OSError as error:
        raise image_error_from_os_error(error) from None
    if len(image) > max_bytes:
        raise ImageError("too-large", f"more than {max_bytes:,} bytes, expected at most so many; scale it down")
    return image


def _number(score: float | None) -> float:
    return float("nan") if score is None else float(score)
