"""The first file of a bundle: what the bundle is for, and each other file with its size and digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from clf_deploy.bundle.platforms import Target
from clf_runtime.errors import DataError, UsageError

MANIFEST = "manifest.json"
FORMAT = "clf-bundle"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 1 << 20

_MAX_PART_BYTES = 8**11 - 1  # what a header of tar can say
_MAX_NAME_BYTES = 100
_HEX_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Part:
    """One file of a bundle.

    Attributes:
        path: Its path, relative to the folder of the bundle, with slashes.
        bytes: Its size.
        sha256: Its digest, hexadecimal.
    """

    path: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        """Raise ValueError for a path that is not below the folder of the bundle, and other impossible values."""
        if not is_safe(self.path):
            raise ValueError(f"the path {self.path!r} is not allowed")
        if type(self.bytes) is not int or not 0 <= self.bytes <= _MAX_PART_BYTES:
            raise ValueError(f"{self.path}: its size is impossible")
        if not isinstance(self.sha256, str) or len(self.sha256) != 64 or not _HEX_DIGITS.issuperset(self.sha256):
            raise ValueError(f"{self.path}: its SHA-256 is not one")


@dataclass(frozen=True)
class Manifest:
    """What a bundle is for, and its parts.

    Attributes:
        clf_edge: The version of clf-edge inside.
        target: The platform and the Python that it is for.
        glibc: The oldest C library that its wheels run with.
        model: The path of the model.
        signature: The path of its signature, or None.
        parts: All files besides the manifest, in the order in which they are stored.
    """

    clf_edge: str
    target: Target
    glibc: str
    model: str
    signature: str | None
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        """Raise ValueError if the parts contradict each other."""
        folded = [part.path.casefold() for part in self.parts]
        if len(set(folded)) != len(folded) or MANIFEST in folded:
            raise ValueError("two parts have the same path")
        missing = {self.model, self.signature} - {None} - {part.path for part in self.parts}
        if missing:
            raise ValueError(f"{sorted(map(str, missing))[0]!r} is not among its parts")

    def to_json(self) -> bytes:
        """Return the content of manifest.json; the same values always give the same bytes."""
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "clf_edge": self.clf_edge,
            "platform": self.target.platform,
            "machine": self.target.machine,
            "python": self.target.python,
            "glibc": self.glibc,
            "model": self.model,
            "signature": self.signature,
            "parts": [asdict(part) for part in self.parts],
        }
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """Parse manifest.json. Raises DataError, which says what is wrong without the name of a file."""
        try:
            document = json.loads(content)
            if document["format"] != FORMAT:
                raise ValueError("it is of another format")
            if document["format_version"] != FORMAT_VERSION:
                raise DataError(
                    f"format version {document['format_version']!r}, expected {FORMAT_VERSION}; update clf-edge here"
                )
            return cls._from_fields(document)
        except (ValueError, KeyError, TypeError, RecursionError, UsageError) as error:
            if isinstance(error, DataError):
                raise
            missing = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(f"its manifest cannot be used ({missing}); build the bundle again") from None

    @classmethod
    def _from_fields(cls, document: Mapping[str, Any]) -> Manifest:
        signature = document["signature"]
        texts = [document[name] for name in ("clf_edge", "platform", "python", "glibc", "model")]
        if not all(isinstance(text, str) for text in (*texts, "" if signature is None else signature)):
            raise ValueError("a text is missing")
        clf_edge, platform, python, glibc, model = texts
        parts = tuple(Part(part["path"], part["bytes"], part["sha256"]) for part in document["parts"])
        return cls(clf_edge, Target(platform, python), glibc, model, signature, parts)


def is_safe(path: object) -> bool:
    """Return whether a path is below the folder that it is relative to, on every system and in every tar."""
    if not isinstance(path, str) or path.count("/") > 1:
        return False
    return all(
        name not in ("", ".", "..")
        and name.isprintable()
        and name[0] not in "- "
        and not set(name) & set('\\:*?"<>|')
        and len(name.encode()) <= _MAX_NAME_BYTES
        for name in path.split("/")
    )
