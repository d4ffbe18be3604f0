"""What is wrong with a request, with the status of its answer."""

from __future__ import annotations

from clf_runtime.errors import ImageError

# Kind of ImageError → status. The kinds of files (not-found …) cannot occur in the body of a request.
_IMAGE_STATUS = {"empty": 400, "not-an-image": 415, "unsupported": 415, "too-large": 413, "damaged": 422}

_RETRY_AFTER_S = b"1"


class RequestError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: The HTTP status.
        kind: A word for programs, as in the records of `clf-run`.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        """Store status and kind beside the message, one line for people."""
        super().__init__(message)
        self.status = status
        self.kind = kind

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The headers of the answer beside those that each answer has."""
        if self.status == 503:
            return ((b"retry-after", _RETRY_AFTER_S),)
        if self.status == 401:
            return ((b"www-authenticate", b"Bearer"),)
        if self.status == 413:
            return ((b"connection", b"close"),)  # the rest of its body may never end
        return ()


class ClientLeftError(Exception):
    """The client has closed the connection; nobody reads an answer."""


def bad_request(message: str) -> RequestError:
    """Return the error for a request that does not follow the protocol."""
    return RequestError(400, "bad-request", message)


def request_error_from_image(error: ImageError, name: str = "") -> RequestError:
    """Return the error for the image of a request; `name` says which one, if there are several."""
    return RequestError(_IMAGE_STATUS.get(error.kind, 422), error.kind, f"{name}{error}")
