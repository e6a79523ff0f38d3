"""The signature algorithms, by ``cryptography``: whoever does not need them should not have to load it."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from forgeone_shim.errors import FailedPrecondition

Public = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
Private = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

_ECDSA = ec.ECDSA(hashes.SHA256())


def generate() -> Private:
    """A new Ed25519 key."""
    return ed25519.Ed25519PrivateKey.generate()


def public(pem: bytes, name: str) -> Public:
    """The key of a PEM text. :raises FailedPrecondition: it is no public key, or of another algorithm."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise FailedPrecondition(f"{name}: not a public key in PEM form") from None
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise _unsupported(name)


def private(pem: bytes, name: str) -> Private:
    """The key of a PEM text. :raises FailedPrecondition: it is no private key, has a password, or another algorithm."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except TypeError:
        raise FailedPrecondition(f"{name}: its key has a password", fix="give a key without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise FailedPrecondition(f"{name}: not a private key in PEM form") from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise _unsupported(name)


def sign(key: Private, data: bytes) -> bytes:
    """A signature."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    return key.sign(data, _ECDSA)


def verifies(key: Public, signature: bytes, data: bytes) -> bool:
    """Whether it is this key's over these bytes."""
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        else:
            key.verify(signature, data, _ECDSA)
    except InvalidSignature:
        return False
    return True


def der(key: Public) -> bytes:
    """SubjectPublicKeyInfo."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def public_pem(key: Public) -> bytes:
    """The same as text (RFC 7468 section 13)."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: Private) -> bytes:
    """PKCS#8 as text (RFC 7468 section 10), without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _unsupported(name: str) -> FailedPrecondition:
    return FailedPrecondition(f"{name}: the key is neither Ed25519 nor ECDSA on P-256")
