"""Bearer tokens: who may use the service."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from clf_runtime.errors import UsageError

_LEAST_CHARACTERS = 16


class Tokens:
    """The tokens of a file; of a request, any of them is accepted."""

    def __init__(self, digests: tuple[bytes, ...]) -> None:
        """Store the digests of the tokens."""
        self._digests = digests

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """Read a file with a token per line. Raises UsageError, OSError."""
        lines = [line.strip() for line in path.read_bytes().splitlines() if line.strip()]
        if not lines:
            raise UsageError(f"{path}: no token in it; expected one per line")
        if min(map(len, lines)) < _LEAST_CHARACTERS:
            raise UsageError(f"{path}: a token is shorter than {_LEAST_CHARACTERS} characters; use a longer one")
        return cls(tuple(map(_digest, lines)))

    def accept(self, authorization: str) -> bool:
        """Return whether the value of an Authorization header contains a token. Takes the same time for any value."""
        scheme, _, token = authorization.partition(" ")
        digest = _digest(token.strip().encode("latin-1"))
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches) and scheme.lower() == "bearer"


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
