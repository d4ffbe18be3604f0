"""The one module that imports cryptography: verifies ECDSA signatures. Imported only where a signature is required."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
# The digest that the Sigstore specifications pair with the curve.
_DIGESTS: dict[str, hashes.HashAlgorithm] = {
    "P-256": hashes.SHA256(),
    "P-384": hashes.SHA384(),
    "P-521": hashes.SHA512(),
}


class _Ecdsa(ec.ECDSA):
    """ECDSA, to verify only. The constructor of its base class imports ciphers and RSA: half of the time of it all."""

    def __init__(self, digest: hashes.HashAlgorithm) -> None:
        self._digest = digest

    @property
    def algorithm(self) -> hashes.HashAlgorithm:
        return self._digest


def has_signed(curve: str, point: bytes, signature: bytes, message: bytes) -> bool:
    """Return whether this is a signature (DER) of the message.

    Args:
        curve: P-256, P-384 or P-521.
        point: The public key, an uncompressed point.
        signature: The signature.
        message: What is signed; it is hashed here.

    Raises:
        ValueError: The point is not on the curve.
    """
    key = ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[curve], point)
    try:
        key.verify(signature, message, _Ecdsa(_DIGESTS[curve]))
    except InvalidSignature:
        return False
    return True
