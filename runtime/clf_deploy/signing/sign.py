"""Signs models with the reference implementation of OpenSSF Model Signing, and creates keys for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from clf_runtime import files, onnx_file
from clf_runtime.errors import DataError, UsageError
from clf_runtime.signature import PublicKey, parse_public_key, signature_path, verify_signature


class Signer:
    """Signs models with one private key.

    Attributes:
        public_key: The key that verifies its signatures.
    """

    public_key: PublicKey

    def __init__(self, private_key: Path, password: str | None = None) -> None:
        """Read a private key.

        Args:
            private_key: The key, in PEM.
            password: The password of the key, if it is encrypted.

        Raises:
            UsageError: It is no private key of a curve that signatures use, or the password is wrong.
            OSError: The file cannot be read.
        """
        from model_signing import signing

        self.public_key = _read_public_part(private_key, password)
        # A text as password fails in model-signing 1.1.1, bytes work.
        secret = None if password is None else password.encode()
        config: Any = signing.Config()  # type: ignore[no-untyped-call]
        self._config = config.use_elliptic_key_signer(private_key=private_key, password=secret)

    def sign(self, model: Path) -> Path:
        """Sign a model, verify the signature, and return its file.

        Raises:
            InvalidModelError: The model cannot be loaded, or it was changed meanwhile.
            OSError: A file cannot be read or written.
        """
        file = onnx_file.read(model)
        target = signature_path(model)
        with files.atomic_path(target) as temporary:
            # Not through a link, which model-signing refuses.
            self._config.sign(model.resolve() if model.is_symlink() else model, temporary)
        verify_signature(file, [self.public_key])
        return target


def create_key(path: Path, curve: str) -> tuple[Path, Path]:
    """Create a key pair, and return its two files: NAME.pem, which only its owner may read, and NAME.pub.pem.

    Args:
        path: The file of the private key, NAME.pem.
        curve: P-256, P-384 or P-521.

    Raises:
        DataError: A file is already there: a key that is lost cannot be made again.
        OSError: A file cannot be written.
    """
    public = path.with_name(f"{path.stem}.pub.pem")
    for file in (path, public):
        if file.exists():
            raise DataError(f"{file}: is already there, and no key is overwritten; choose another name")
    key = ec.generate_private_key({"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}[curve])
    private_text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public_text = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with files.atomic_path(path) as temporary:
        temporary.touch(0o600)
        temporary.write_bytes(private_text)
    files.atomic_write(public, public_text)
    return path, public


def _read_public_part(private_key: Path, password: str | None) -> PublicKey:
    content = private_key.read_bytes()
    try:
        key = serialization.load_pem_private_key(content, None if password is None else password.encode())
    except TypeError:  # a password is missing, or given for a key that has none
        state = "is encrypted, and" if password is None else "is not encrypted, but"
        raise UsageError(
            f"{private_key}: the key {state} CLF_KEY_PASSWORD is {'not ' * (password is None)}set"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        reason = "no private key in PEM" + ("" if password is None else ", or not its password")
        raise UsageError(f"{private_key}: {reason}; create one with clf-deploy keygen") from None
    encoded = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return parse_public_key(encoded, private_key)
