"""The ONNX file as a container: its digest, its metadata, and the runtime it requires. No onnx package needed.

The last 80 bytes are a `metadata_props` entry, `clf.sha256`: the SHA-256 of all bytes before it. Repeated fields of a
protobuf message concatenate, so every other tool reads it as one more entry. See docs/artifact-format.md. The field
numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from clf_runtime import system
from clf_runtime.errors import InvalidModelError, ModelChangedError, format_reason
from clf_runtime.protobuf import Buffer, ProtobufError, encode_field, read_fields
from clf_runtime.spec import ModelSpec

SPEC_KEY = "clf.spec"
SELFTEST_KEY = "clf.selftest"
PARITY_KEY = "clf.parity"
DIGEST_KEY = "clf.sha256"

_MODEL_IR_VERSION, _MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA, _MODEL_FUNCTION = 1, 7, 8, 14, 25
_FUNCTION_OPSET = 9
_PARTS_WITH_TENSORS = {_MODEL_GRAPH: "graph", 20: "training", _MODEL_FUNCTION: "function"}
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_PIECE_BYTES = 1 << 20

# A file of clf-export has about 10 fields at the top, and messages in messages 20 deep; protobuf reads 100 deep.
_MAX_FIELDS = 10_000
_MAX_DEPTH = 100

# Loading OpenSSL takes 4.7 ms and 3.6 MB, and saves 3.5 ms per MB.
_WITHOUT_OPENSSL_BYTES = 1_300_000

# What this machine requires of models; see policy.py.
POLICY_PATH = "/etc/clf-edge/policy.toml"
POLICY_VARIABLE = "CLF_POLICY"

# What the system says of a path that cannot be read like a file: a loop of links, files of /proc and /sys.
_NOT_A_FILE_ERRNOS = frozenset((errno.ELOOP, errno.EINVAL, errno.ENODEV, errno.ENXIO, errno.EOPNOTSUPP, errno.ESPIPE))

# With ORT_LOAD_CONFIG_FROM_MODEL=1 in the environment, onnxruntime reads session options from here, over ours.
_SESSION_OPTIONS_KEY = "ort_config"

# The domains whose operators onnxruntime's own builds contain; any other needs a library of foreign code.
_DOMAINS = frozenset(("", "ai.onnx.ml", "com.microsoft"))
_DEFAULT_DOMAIN = {"ai.onnx": ""}  # two names of one domain

# onnxruntime → the highest opset and IR version that it reads, newest last.
# Source: https://onnxruntime.ai/docs/reference/compatibility.html, and runs of these versions.
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
    """The content of the container, with its digest verified.

    Attributes:
        path: The file.
        size_bytes: Its size.
        sha256: The digest in its footer, hexadecimal.
        file_sha256: The SHA-256 of the complete file, footer included, hexadecimal.
        ir_version: The version of ONNX's intermediate representation.
        opset: The version of the standard operators.
        metadata: Key → value of all metadata.
        spec: The spec, parsed from the metadata.
        identity: Which content of the file this is, as far as the file system tells.
    """

    path: Path
    size_bytes: int
    sha256: str
    file_sha256: str
    ir_version: int
    opset: int
    metadata: Mapping[str, str] = field(repr=False)
    spec: ModelSpec = field(repr=False)
    identity: tuple[int, ...] = field(repr=False)

    def check_unchanged(self) -> None:
        """Raise ModelChangedError if the path leads to other content than the one that was verified.

        No second digest: whoever replaces or writes a file changes its inode or the time of its last change.
        """
        if identify(self.path) != self.identity:
            raise ModelChangedError(f"{self.path}: it was replaced or changed while it was opened; try again")

    @property
    def oldest_runtime(self) -> str | None:
        """The oldest onnxruntime that reads this opset and IR version, or None if no known release does."""
        for version, opset, ir_version in RUNTIMES:
            if self.opset <= opset and self.ir_version <= ir_version:
                return version
        return None


def parse_version(version: str) -> tuple[int, int]:
    """Return the major and minor number of a version of onnxruntime, for comparisons.

    Args:
        version: For example `"1.23"`, `"1.23.2"` or `"1.24.0.dev20251104"`.

    Raises:
        ValueError: The text does not start with two numbers.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None:
        raise ValueError(f"{version!r} is not a version; expected MAJOR.MINOR")
    return int(numbers[1]), int(numbers[2])


def metadata_entry(key: str, value: str) -> bytes:
    """Encode one `metadata_props` entry, to be appended to an ONNX file."""
    entry = encode_field(_ENTRY_KEY, key.encode()) + encode_field(_ENTRY_VALUE, value.encode())
    return encode_field(_MODEL_METADATA, entry)


def footer(sha256: str) -> bytes:
    """Encode the last 80 bytes of a file whose bytes so far have this SHA-256, hexadecimal."""
    return metadata_entry(DIGEST_KEY, sha256)


FOOTER_BYTES = len(footer("0" * 64))


def read(path: Path) -> OnnxFile:
    """Verify the digest of a file and read everything around its graph.

    Args:
        path: An ONNX file that clf-export wrote.

    Raises:
        InvalidModelError: The file is missing, damaged, from another tool, or newer than this version of clf-edge.
        OSError: The file cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidModelError(f"{path}: not a file; expected an ONNX file from clf-export")
        with path.open("rb") as file:
            identity = _identity(os.fstat(file.fileno()))
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                raise InvalidModelError(f"{path}: the file is empty; export it again")
            digests = _verify_digest(path, file, size)
            # Not closed explicitly: the traceback of an error still holds slices of it, and frees it with the last one.
            content = system.map_file(file)
    except FileNotFoundError:
        raise InvalidModelError(
            f"{path}: model not found; create it with clf-export, or name another one with --model"
        ) from None
    except OSError as error:
        if error.errno not in _NOT_A_FILE_ERRNOS:
            raise
        raise InvalidModelError(
            f"{path}: not a file ({format_reason(error)}); expected an ONNX file from clf-export"
        ) from None
    return _parse(path, content, _Verified(digests, identity))


def read_trusted(path: Path, keys: Sequence[Path]) -> OnnxFile:
    """Read a file as `read` does, and verify its signature if one is required.

    Args:
        path: An ONNX file that clf-export wrote.
        keys: Public keys, one of which must have signed it; none if only the policy of this machine decides.

    Raises:
        InvalidModelError: As of `read`; or it has no valid signature.
        MachineError: The policy cannot be read.
        UsageError: A key is not one.
        OSError: A file cannot be read.
    """
    file = read(path)
    if keys or os.environ.get(POLICY_VARIABLE) or has_policy():  # without these, no module is imported
        from clf_runtime import policy

        policy.enforce(file, keys)
    return file


def has_policy() -> bool:
    """Return whether this machine has a policy for all of its users."""
    try:
        os.lstat(POLICY_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass  # reading it will fail, and so will opening a model
    return True


def identify(path: Path) -> tuple[int, ...]:
    """Return what changes with the content of a file, and with the file behind a path; empty if there is none."""
    try:
        return _identity(path.stat())
    except OSError:
        return ()


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _verify_digest(path: Path, file: BinaryIO, size: int) -> tuple[str, str] | None:
    """Return the SHA-256 in the footer and that of the complete file, or None if there is no footer."""
    file.seek(max(0, size - FOOTER_BYTES))
    tail = file.read()
    if len(tail) < FOOTER_BYTES or not tail.startswith(footer("0" * 64)[:-64]):
        return None
    expected = tail[-64:].decode("ascii", "replace")
    # In pieces: all of a mapping would count as this process's memory.
    digest, remaining = new_sha256(size), size - FOOTER_BYTES
    file.seek(0)
    while remaining and (piece := file.read(min(remaining, _PIECE_BYTES))):
        digest.update(piece)
        remaining -= len(piece)
    if digest.hexdigest() != expected:
        raise InvalidModelError(
            f"{path}: digest does not match its content (damaged, or changed after export); "
            "copy it again or export it again"
        )
    digest.update(tail)
    return expected, digest.hexdigest()


def new_sha256(size_bytes: int) -> Any:
    """Return a new SHA-256 for so many bytes: for few of them Python's own, which is slower but needs no OpenSSL."""
    if size_bytes <= _WITHOUT_OPENSSL_BYTES:
        with contextlib.suppress(ImportError):
            return import_module("_sha2" if sys.version_info >= (3, 12) else "_sha256").sha256()
    import hashlib

    return hashlib.sha256()


class _Verified(NamedTuple):
    """The digests of a file, None if it has no footer, and the identity of the file that has them."""

    digests: tuple[str, str] | None
    identity: tuple[int, ...]


class Header(NamedTuple):
    """What surrounds the graph of an ONNX file.

    Attributes:
        ir_version: The version of ONNX's intermediate representation.
        opsets: Domain of operators → version; those of the functions in the file, too.
        metadata: Key → value of all metadata.
        is_external: Whether a tensor anywhere stores its values in another file.
    """

    ir_version: int
    opsets: Mapping[str, int]
    metadata: Mapping[str, str]
    is_external: bool


def read_header(content: Buffer) -> Header:
    """Read everything but the graph itself, as protobuf would, in linear time and bounded memory.

    Raises:
        ProtobufError: The content is not an ONNX file, or one that no exporter writes.
        UnicodeDecodeError: A text is not UTF-8.
    """
    ir_version, has_graph, is_external = 0, False, False
    opsets: dict[str, int] = {}
    metadata: dict[str, str] = {}
    for count, (number, value) in enumerate(read_fields(content)):
        if count == _MAX_FIELDS:
            raise ProtobufError(f"it has more than {_MAX_FIELDS} fields")
        if isinstance(value, int):
            ir_version = value if number == _MODEL_IR_VERSION else ir_version
            continue
        if number == _MODEL_OPSET:
            opsets.update([_parse_opset(value)])
        elif number == _MODEL_METADATA:
            key, text = _parse_entry(value)
            if key in metadata:
                raise ProtobufError(f"its metadata has {key!r} twice")
            metadata[key] = text
        elif number in _PARTS_WITH_TENSORS:
            has_graph |= number == _MODEL_GRAPH
            is_external |= _has_external_data(value, _PARTS_WITH_TENSORS[number], _MAX_DEPTH)
        if number == _MODEL_FUNCTION:
            opsets = dict(_parse_opset(opset) for opset in _messages(value, _FUNCTION_OPSET)) | opsets
    if not has_graph or not ir_version:
        raise ProtobufError("it has no graph or no version")
    return Header(ir_version, opsets, metadata, is_external)


def _parse(path: Path, content: memoryview, verified: _Verified) -> OnnxFile:
    try:
        header = read_header(content)
    except (ProtobufError, UnicodeDecodeError) as error:
        raise InvalidModelError(
            f"{path}: not an ONNX file ({error}); expected one from clf-export{_hint(content)}"
        ) from None
    metadata = header.metadata
    if SPEC_KEY not in metadata:
        raise InvalidModelError(
            f"{path}: no {SPEC_KEY} in its metadata, so its labels and its preprocessing are unknown; "
            "export it with clf-export"
        )
    if verified.digests is None:
        raise InvalidModelError(
            f"{path}: its last {FOOTER_BYTES} bytes are not the expected digest "
            "(truncated, or rewritten by another tool); copy it again or export it again"
        )
    if header.is_external:
        # The digest does not cover them, and a path in a file may lead anywhere.
        raise InvalidModelError(f"{path}: its weights are in other files, expected a single file; export it again")
    _check_runs_no_foreign_code(path, metadata, header.opsets)
    spec = ModelSpec.from_json(metadata[SPEC_KEY], str(path))
    return OnnxFile(
        path=path,
        size_bytes=len(content),
        sha256=verified.digests[0],
        file_sha256=verified.digests[1],
        ir_version=header.ir_version,
        opset=header.opsets.get("", 0),
        metadata=metadata,
        spec=spec,
        identity=verified.identity,
    )


def _check_runs_no_foreign_code(path: Path, metadata: Mapping[str, str], opsets: Mapping[str, int]) -> None:
    if _SESSION_OPTIONS_KEY in metadata:
        raise InvalidModelError(f"{path}: it sets session options of onnxruntime; export it again")
    foreign = sorted(set(opsets) - _DOMAINS)
    if foreign:
        raise InvalidModelError(
            f"{path}: it needs operators of {foreign[0]!r}, expected only standard ones; export it again"
        )


def _messages(message: Buffer, wanted: int) -> list[Buffer]:
    return [value for number, value in read_fields(message) if number == wanted and not isinstance(value, int)]


def _parse_opset(message: Buffer) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in read_fields(message):
        if number == _OPSET_DOMAIN and not isinstance(value, int):
            domain = bytes(value).decode()
            domain = _DEFAULT_DOMAIN.get(domain, domain)
        elif number == _OPSET_VERSION and isinstance(value, int):
            version = value
    return domain, version


def _parse_entry(message: Buffer) -> tuple[str, str]:
    wanted = (_ENTRY_KEY, _ENTRY_VALUE)
    # Decoded last: of a field that is repeated, the last one counts.
    fields = {
        number: value for number, value in read_fields(message) if number in wanted and not isinstance(value, int)
    }
    key, value = (bytes(fields.get(number, b"")).decode() for number in wanted)
    return key, value


# Which fields of a message lead to a TensorProto: {kind of message: {field number: kind of the message in it}}.
_NESTED = {
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


def _has_external_data(message: Buffer, kind: str, depth: int) -> bool:
    """Return whether any tensor in the message stores its values in another file."""
    if kind == "tensor":
        return any(
            number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value != 0)
            for number, value in read_fields(message)
        )
    if depth == 0:
        raise ProtobufError(f"its messages are nested more than {_MAX_DEPTH} deep")
    nested = _NESTED[kind]
    return any(
        _has_external_data(value, nested[number], depth - 1)
        for number, value in read_fields(message)
        if number in nested and not isinstance(value, int)
    )


def _hint(content: memoryview) -> str:
    if bytes(content[:4]) == b"PK\x03\x04":
        return " (this looks like a PyTorch file; clf-run needs model.onnx)"
    return ""
