"""Signatures of OpenSSF Model Signing 1.0, verified offline with an elliptic curve key.

A signature is a file beside the model, `model.onnx.sig`: a Sigstore bundle (v0.3, JSON) that holds a DSSE envelope
around an in-toto statement, which names the SHA-256 of the complete file. https://github.com/ossf/model-signing-spec
describes the format, https://github.com/secure-systems-lab/dsse what exactly is signed.

No statement is believed before its signature is verified. It is compared with the digest of the bytes that were read,
not with the file that now has the name.
"""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from clf_runtime.artifacts import SIGNATURE_SUFFIX
from clf_runtime.errors import InvalidModelError, UsageError, escape
from clf_runtime.onnx_file import OnnxFile, new_sha256

_T = TypeVar("_T")

_MAX_BYTES = 100_000  # of a signature, which has 1,500, and of a key
_BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_SINGLE_FILE = "."  # what model-signing calls the only resource of a model that is one file

_PEM_BEGIN, _PEM_END = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"


class _Curve(NamedTuple):
    """A curve of the standard, and what precedes the point in a key (DER, RFC 5480)."""

    name: str
    prefix: bytes
    point_bytes: int


_CURVES = (
    _Curve("P-256", bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200"), 65),
    _Curve("P-384", bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200"), 97),
    _Curve("P-521", bytes.fromhex("30819b301006072a8648ce3d020106052b8104002303818600"), 133),
)


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are verified with.

    Attributes:
        path: Its file.
        fingerprint: SHA-256 of its PEM text, hexadecimal: what signatures call their key.
    """

    path: Path
    fingerprint: str
    _curve: str
    _point: bytes

    def has_signed(self, signature: bytes, message: bytes) -> bool:
        """Return whether this is a signature (ECDSA, DER) of the message by the owner of this key."""
        from clf_runtime.ecdsa import has_signed

        try:
            return has_signed(self._curve, self._point, signature, message)
        except ValueError:
            raise UsageError(f"{self.path}: not a point of the curve {self._curve}; copy the key again") from None


def read_public_key(path: Path) -> PublicKey:
    """Read a public key in PEM.

    Raises:
        UsageError: It is not one, or not of a curve that signatures use.
        OSError: The file cannot be read.
    """
    text = (_read(path) or b"").decode("ascii", "replace")
    begin, end = text.find(_PEM_BEGIN), text.find(_PEM_END)
    if begin < 0 or end < begin:
        found = "a private key" if "PRIVATE KEY" in text else "something else"
        raise UsageError(f"{path}: found {found}, expected a public key in PEM ({_PEM_BEGIN}…)")
    try:
        encoded = base64.b64decode("".join(text[begin + len(_PEM_BEGIN) : end].split()), validate=True)
    except ValueError:
        raise UsageError(f"{path}: the public key in it is damaged; copy it again") from None
    return parse_public_key(encoded, path)


def parse_public_key(encoded: bytes, path: Path) -> PublicKey:
    """Return the public key with this SubjectPublicKeyInfo in DER; `path` is its file. Raises UsageError."""
    for curve in _CURVES:
        if encoded.startswith(curve.prefix) and len(encoded) == len(curve.prefix) + curve.point_bytes:
            return PublicKey(path, _sha256(_pem(encoded)), curve.name, encoded[len(curve.prefix) :])
    raise UsageError(f"{path}: not a key of the curves {', '.join(curve.name for curve in _CURVES)}; make another one")


def signature_path(model: Path) -> Path:
    """Return where the signature of a model is."""
    return model.with_name(model.name + SIGNATURE_SUFFIX)


def verify_signature(file: OnnxFile, keys: Sequence[PublicKey]) -> PublicKey:
    """Return the key that has signed a model file.

    Args:
        file: The model, whose bytes were read.
        keys: The keys to trust, one or more.

    Raises:
        InvalidModelError: There is no signature, none of the keys has signed, or what is signed is not this file.
        UsageError: A key cannot be used.
        OSError: The signature cannot be read.
    """
    path = signature_path(file.path)
    source = _Source(path)
    envelope = _read_envelope(file.path, source)
    message = b"DSSEv1 %d %s %d %s" % (
        *(len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode()),
        *(len(envelope.payload), envelope.payload),
    )
    named = [key for key in keys if envelope.hint in ("", key.fingerprint)]
    if not named:
        source.reject(f"signed with another key ({envelope.hint[:12]}…), expected {_name_keys(keys)}")
    for key in named:
        if key.has_signed(envelope.signature, message):
            _check_statement(envelope.payload, file, source)
            return key
    source.reject(f"changed after signing, or not signed with {_name_keys(named)}")


class _Envelope(NamedTuple):
    """The parts of a bundle that matter."""

    hint: str  # the fingerprint of the key, according to an unsigned field; may be empty
    payload: bytes
    signature: bytes


class _Source(NamedTuple):
    """The file of a signature: its JSON is read field by field, and rejected with a reason."""

    path: Path

    def reject(self, reason: str) -> NoReturn:
        raise InvalidModelError(f"{self.path}: {reason}; sign the model again, or get its own signature")

    def parse(self, content: bytes, what: str) -> dict[str, Any]:
        try:
            parsed = json.loads(content.decode(), object_pairs_hook=_unique)
        except (ValueError, RecursionError):
            self.reject(f"damaged: {what} is not valid JSON")
        return parsed if isinstance(parsed, dict) else self.reject(f"{what} is not an object")

    def take(self, content: dict[str, Any], key: str, kind: type[_T]) -> _T:
        value = content.get(key)
        return (
            value if isinstance(value, kind) else self.reject(f"no signature of a model: its {key} is missing or odd")
        )

    def take_only(self, content: dict[str, Any], key: str) -> dict[str, Any]:
        """Return the only element of a list."""
        values = self.take(content, key, list)
        if len(values) != 1 or not isinstance(values[0], dict):
            self.reject(f"{len(values)} {key}, expected one: that of a single file by a single key")
        return dict(values[0])

    def expect(self, content: dict[str, Any], key: str, expected: str) -> None:
        found = self.take(content, key, str)
        if found != expected:
            self.reject(f"unsupported {key} {_abbreviate(found)}, expected {expected}")

    def decode(self, content: dict[str, Any], key: str) -> bytes:
        try:
            return base64.b64decode(self.take(content, key, str), validate=True)
        except ValueError:
            self.reject(f"damaged: its {key} is not base64")


def _read_envelope(model: Path, source: _Source) -> _Envelope:
    try:
        content = _read(source.path)
    except FileNotFoundError:
        raise InvalidModelError(
            f"{model}: it has no signature ({source.path.name}), and one is required; sign it with clf-deploy sign"
        ) from None
    if content is None:
        source.reject(f"not a file of at most {_MAX_BYTES:,} bytes, as a signature is")
    bundle = source.parse(content, "it")
    source.expect(bundle, "mediaType", _BUNDLE_TYPE)
    material = source.take(bundle, "verificationMaterial", dict)
    if "publicKey" not in material:
        source.reject("signed with a certificate, expected a signature with a key")
    hint = source.take({"hint": "", **source.take(material, "publicKey", dict)}, "hint", str)
    envelope = source.take(bundle, "dsseEnvelope", dict)
    source.expect(envelope, "payloadType", _PAYLOAD_TYPE)
    signature = source.decode(source.take_only(envelope, "signatures"), "sig")
    return _Envelope(hint, source.decode(envelope, "payload"), signature)


def _check_statement(payload: bytes, file: OnnxFile, source: _Source) -> None:
    """Reject a file that is not the one of a statement, whose signature is valid."""
    statement = source.parse(payload, "its statement")
    source.expect(statement, "_type", _STATEMENT_TYPE)
    source.expect(statement, "predicateType", _PREDICATE_TYPE)
    predicate = source.take(statement, "predicate", dict)
    source.expect(source.take(predicate, "serialization", dict), "method", "files")
    resource = source.take_only(predicate, "resources")
    source.expect(resource, "algorithm", "sha256")
    source.expect(resource, "name", _SINGLE_FILE)
    digest = source.take(resource, "digest", str)
    if digest == file.file_sha256:
        return
    name = source.take(source.take_only(statement, "subject"), "name", str)
    if name != file.path.name:
        source.reject(f"the signature of another file ({_abbreviate(name)})")
    raise InvalidModelError(
        f"{file.path}: not the file that was signed (found sha256 {file.file_sha256[:12]}…, signed "
        f"{escape(digest[:12])}…); it was changed after signing, or {source.path.name} belongs to another version of it"
    )


def _read(path: Path) -> bytes | None:
    """Return the content of a small file; None if it is not one. Raises OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        return None
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    return content if len(content) <= _MAX_BYTES else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; two values of one key would mean different things to different readers."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice")
    return content


def _pem(encoded: bytes) -> bytes:
    """Return a public key in DER as PEM, with lines of 64 characters as the standard wants them."""
    text = base64.b64encode(encoded).decode()
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join([_PEM_BEGIN, *lines, _PEM_END, ""]).encode()


def _sha256(content: bytes) -> str:
    digest = new_sha256(len(content))
    digest.update(content)
    return str(digest.hexdigest())


def _name_keys(keys: Sequence[PublicKey]) -> str:
    return " or ".join(f"{key.path} ({key.fingerprint[:12]}…)" for key in keys)


def _abbreviate(value: str) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
