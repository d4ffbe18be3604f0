"""The digest of a file that is a ZIP archive, TorchScript or pt2: it is the archive's comment, the last thing in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from clf_runtime.errors import InvalidModelError
from clf_runtime.onnx_file import DIGEST_KEY

_COMMENT = f"{DIGEST_KEY}:"
_COMMENT_BYTES = len(_COMMENT) + 64


def append_digest(archive: bytes) -> bytes:
    """Give an archive without a comment the digest of all its bytes as one."""
    # The last two bytes of an archive say how long its comment is.
    content = archive[:-2] + _COMMENT_BYTES.to_bytes(2, "little")
    return content + f"{_COMMENT}{hashlib.sha256(content).hexdigest()}".encode()


def verify_digest(path: Path) -> None:
    """Check the digest before torch parses a byte: such a file holds code. Raises InvalidModelError, OSError."""
    content = path.read_bytes()
    comment = content[-_COMMENT_BYTES:].decode("ascii", "replace")
    if comment != f"{_COMMENT}{hashlib.sha256(content[:-_COMMENT_BYTES]).hexdigest()}":
        raise InvalidModelError(f"{path}: refused: its digest does not match its content; export it again")
