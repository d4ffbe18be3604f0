"""The ONNX file as a container: its digest, its metadata, what it asks of a runtime. No onnx package needed.

The last 80 bytes are a `metadata_props` entry, `clf.sha256`: the SHA-256 of all bytes before it. Repeated
fields of a protobuf concatenate, so for every other tool it is one more entry. See docs/artifact-format.md.
Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from clf_runtime.errors import InvalidModelError
from clf_runtime.protobuf import Buffer, Malformed, fields, tagged

SPEC_KEY = "clf.spec"
SELFTEST_KEY = "clf.selftest"
PARITY_KEY = "clf.parity"
DIGEST_KEY = "clf.sha256"

_MODEL_IR_VERSION, _MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA = 1, 7, 8, 14
_HOLDS_TENSORS = ((_MODEL_GRAPH, "graph"), (20, "training"), (25, "function"))
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_TENSOR_EXTERNAL_DATA = 13
_PIECE_BYTES = 1 << 20

# To load OpenSSL takes 4.7 ms and 3.6 MB, and saves 3.5 ms for each MB.
_WITHOUT_OPENSSL_BYTES = 1_300_000

# With ORT_LOAD_CONFIG_FROM_MODEL=1 in the environment, onnxruntime takes its options from here, over ours.
_SESSION_OPTIONS_KEY = "ort_config"

# onnxruntime's own builds have no other operators; a further domain means a library of foreign code.
_DOMAINS = frozenset(("", "ai.onnx.ml", "com.microsoft"))
_DEFAULT_DOMAIN = {"ai.onnx": ""}  # two names for one

# onnxruntime → the highest opset and IR that it reads, newest last.
# Source: https://onnxruntime.ai/docs/reference/compatibility.html and runs of the versions named.
RUNTIMES = (
    ("1.15", 19, 8),
    ("1.16", 19, 9),
    ("1.17", 20, 9),
    ("1.18", 21, 10),
    ("1.21", 22, 10),
    ("1.23", 23, 11),
    ("1.24", 25, 13),
    ("1.25", 26, 13),
    ("1.28", 27, 13),
)


@dataclass(frozen=True)
class OnnxFile:
    """What the container says, digest checked."""

    path: Path
    size_bytes: int
    sha256: str
    ir_version: int
    opset: int
    metadata: Mapping[str, str] = field(repr=False)

    @property
    def oldest_runtime(self) -> str | None:
        """The oldest onnxruntime that reads this opset and IR, as far as this release knows."""
        for version, opset, ir_version in RUNTIMES:
            if self.opset <= opset and self.ir_version <= ir_version:
                return version
        return None


def metadata_entry(key: str, value: str) -> bytes:
    """Encode one `metadata_props` entry, to be appended to an ONNX file."""
    entry = tagged(_ENTRY_KEY, key.encode()) + tagged(_ENTRY_VALUE, value.encode())
    return tagged(_MODEL_METADATA, entry)


def footer(sha256: str) -> bytes:
    """Encode the last 80 bytes of a file whose bytes so far have this SHA-256, in hexadecimal."""
    return metadata_entry(DIGEST_KEY, sha256)


FOOTER_BYTES = len(footer("0" * 64))


def read(path: Path) -> OnnxFile:
    """Check a file's digest and read what surrounds its graph. Raises InvalidModelError, OSError."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        raise InvalidModelError(f"{path}: no such model; clf-export makes one, --model names another") from None
    if not regular:
        raise InvalidModelError(f"{path}: refused: it is no file; expected an ONNX file of clf-export")
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            raise InvalidModelError(f"{path}: refused: it is empty; export it again")
        sha256 = _checked_digest(path, file, size)
        # Not closed by hand: a refusal's traceback still holds slices of it. It goes with the last of them.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return _parsed(path, memoryview(mapped), sha256)


def _checked_digest(path: Path, file: BinaryIO, size: int) -> str | None:
    """Give the SHA-256 that the footer states, or None where there is no footer."""
    file.seek(max(0, size - FOOTER_BYTES))
    tail = file.read()
    if len(tail) < FOOTER_BYTES or not tail.startswith(footer("0" * 64)[:-64]):
        return None
    stated = tail[-64:].decode("ascii", "replace")
    # Read in pieces: a mapping would count as this process's memory, all of it at once.
    digest, left = _sha256(size), size - FOOTER_BYTES
    file.seek(0)
    while left and (piece := file.read(min(left, _PIECE_BYTES))):
        digest.update(piece)
        left -= len(piece)
    if digest.hexdigest() != stated:
        raise InvalidModelError(
            f"{path}: refused: its digest does not match its content "
            "(damaged, or changed after export); copy it again or export it again"
        )
    return stated


def _sha256(size_bytes: int) -> Any:
    """Begin a digest of so many bytes; small ones by Python's own code, which is slower and needs no OpenSSL."""
    if size_bytes <= _WITHOUT_OPENSSL_BYTES:
        with contextlib.suppress(ImportError):
            return import_module("_sha2" if sys.version_info >= (3, 12) else "_sha256").sha256()
    import hashlib

    return hashlib.sha256()


def _parsed(path: Path, content: memoryview, sha256: str | None) -> OnnxFile:
    try:
        parts = list(fields(content))
        ir_version = next((value for number, value in parts if number == _MODEL_IR_VERSION), 0)
        opsets = dict(_opset(value) for value in _messages(parts, _MODEL_OPSET))
        metadata = dict(_entry(value) for value in _messages(parts, _MODEL_METADATA))
        graphs = _messages(parts, _MODEL_GRAPH)
        external = any(_external(value, kind) for number, kind in _HOLDS_TENSORS for value in _messages(parts, number))
    except (Malformed, UnicodeDecodeError, RecursionError):
        ir_version, graphs = 0, []
    if not graphs or not isinstance(ir_version, int) or not ir_version:
        raise InvalidModelError(f"{path}: refused: it is no ONNX file; expected one of clf-export{_hint(content)}")
    if SPEC_KEY not in metadata:
        raise InvalidModelError(
            f"{path}: refused: an ONNX file without {SPEC_KEY} in its metadata, so its labels and its "
            "preprocessing are unknown; export it with clf-export"
        )
    if sha256 is None:
        raise InvalidModelError(
            f"{path}: refused: its digest is not where it belongs, in the last {FOOTER_BYTES} bytes "
            "(cut short, or written again by another tool); copy it again or export it again"
        )
    if external:
        # They are under no digest, and a path in a file may lead anywhere.
        raise InvalidModelError(f"{path}: refused: it keeps weights in other files; expected one file; export it again")
    if _SESSION_OPTIONS_KEY in metadata:
        raise InvalidModelError(f"{path}: refused: it sets session options of onnxruntime; export it again")
    foreign = sorted(set(opsets) - _DOMAINS)
    if foreign:
        raise InvalidModelError(
            f"{path}: refused: it asks for operators of {foreign[0]!r}; expected standard ones only"
        )
    return OnnxFile(path, len(content), sha256, ir_version, opsets.get("", 0), metadata)


def _messages(parts: list[tuple[int, Buffer | int]], wanted: int) -> list[Buffer]:
    return [value for number, value in parts if number == wanted and not isinstance(value, int)]


def _opset(message: Buffer) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in fields(message):
        if number == _OPSET_DOMAIN and not isinstance(value, int):
            domain = _DEFAULT_DOMAIN.get(bytes(value).decode(), bytes(value).decode())
        elif number == _OPSET_VERSION and isinstance(value, int):
            version = value
    return domain, version


def _entry(message: Buffer) -> tuple[str, str]:
    texts = {number: bytes(value).decode() for number, value in fields(message) if not isinstance(value, int)}
    return texts.get(_ENTRY_KEY, ""), texts.get(_ENTRY_VALUE, "")


# Where a message of one kind holds messages of another, on the way to every TensorProto:
# {kind: {field number: kind}}.
_INSIDE = {
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


def _external(message: Buffer, kind: str) -> bool:
    """Say whether a tensor anywhere inside keeps its values in another file."""
    if kind == "tensor":
        return any(number == _TENSOR_EXTERNAL_DATA for number, _ in fields(message))
    inside = _INSIDE[kind]
    return any(
        _external(value, inside[number])
        for number, value in fields(message)
        if number in inside and not isinstance(value, int)
    )


def _hint(content: memoryview) -> str:
    if bytes(content[:4]) == b"PK\x03\x04":
        return " (this looks like a file of PyTorch; clf-run takes model.onnx)"
    return ""
