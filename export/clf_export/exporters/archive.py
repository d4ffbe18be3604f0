"""The digest of TorchScript and pt2 files: both are ZIP archives, and it is the archive's comment, at the end."""

from __future__ import annotations

import hashlib
from pathlib import Path

from clf_runtime.errors import InvalidModelError
from clf_runtime.onnx_file import DIGEST_KEY

_COMMENT = f"{DIGEST_KEY}:"
_COMMENT_BYTES = len(_COMMENT) + 64


def append_digest(archive: bytes) -> bytes:
    """Return a ZIP archive that has no comment with the digest of all its bytes as its comment."""
    # The last two bytes of an archive are the length of its comment.
    content = archive[:-2] + _COMMENT_BYTES.to_bytes(2, "little")
    return content + f"{_COMMENT}{hashlib.sha256(content).hexdigest()}".encode()


def verify_digest(path: Path) -> None:
    """Check the digest before torch parses the file, which contains code. Raises InvalidModelError, OSError."""
    content = path.read_bytes()
    comment = content[-_COMMENT_BYTES:].decode("ascii", "replace")
    if comment != f"{_COMMENT}{hashlib.sha256(content[:-_COMMENT_BYTES]).hexdigest()}":
        raise InvalidModelError(
            f"{path}: digest does not match its content (damaged, or changed after export); export it again"
        )
