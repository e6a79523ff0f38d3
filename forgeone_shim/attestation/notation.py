"""Notary Project signatures as JWS envelopes: read, and their integrity verified.

https://github.com/notaryproject/specifications/blob/main/specs/signature-envelope-jws.md and
signature-specification.md. COSE envelopes are not read.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from forgeone_shim.attestation import certificates
from forgeone_shim.attestation.signed import MAX_CHAIN, Unverified

MEDIA_TYPE: Final = "application/jose+json"
ARTIFACT_TYPE: Final = "application/vnd.cncf.notary.signature"
PAYLOAD_TYPE: Final = "application/vnd.cncf.notary.payload.v1+json"
X509: Final = "notary.x509"
SIGNING_AUTHORITY: Final = "notary.x509.signingAuthority"
MAX_ENVELOPE: Final = 1024 * 1024

_PREFIX: Final = "io.cncf.notary"
_SCHEME, _EXPIRY, _SIGNED_AT = f"{_PREFIX}.signingScheme", f"{_PREFIX}.expiry", f"{_PREFIX}.authenticSigningTime"
_UNDERSTOOD: Final = frozenset({_SCHEME, _EXPIRY, _SIGNED_AT})
_URL_SAFE: Final = re.compile(r"[A-Za-z0-9_-]*")

# The key alone says which algorithm it is: an envelope cannot choose a weaker one.
_RSA: Final[dict[int, tuple[str, hashes.HashAlgorithm]]] = {
    2048: ("PS256", hashes.SHA256()),
    3072: ("PS384", hashes.SHA384()),
    4096: ("PS512", hashes.SHA512()),
}
_CURVES: Final[dict[str, tuple[str, hashes.HashAlgorithm]]] = {
    "secp256r1": ("ES256", hashes.SHA256()),
    "secp384r1": ("ES384", hashes.SHA384()),
    "secp521r1": ("ES512", hashes.SHA512()),
}


class _Header(msgspec.Struct, frozen=True):
    """Not signed; what is in it besides says nothing."""

    x5c: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_CHAIN)]


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    payload: str
    protected: str
    header: _Header
    signature: str


class _Protected(msgspec.Struct, frozen=True):
    alg: str
    cty: str
    crit: Annotated[list[str], msgspec.Meta(min_length=1, max_length=16)]
    scheme: Literal["notary.x509", "notary.x509.signingAuthority"] = msgspec.field(name=_SCHEME)
    expiry: datetime | None = msgspec.field(default=None, name=_EXPIRY)
    signed_at: datetime | None = msgspec.field(default=None, name=_SIGNED_AT)


class _Target(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    digest: str
    size: int


class _Payload(msgspec.Struct, frozen=True, rename="camel"):
    target_artifact: _Target


@dataclass(frozen=True, slots=True)
class Envelope:
    """A signature that the owner of the first certificate's key made; nothing is known yet of who that is.

    :param digest: the artifact that it is for.
    :param signed_at: when, by a signing authority's word; ``None`` in the scheme that has none.
    :param expiry: when the signer wants it to end.
    """

    name: str
    digest: str
    scheme: str
    chain: tuple[x509.Certificate, ...]
    signed_at: datetime | None
    expiry: datetime | None


def read(data: bytes, name: str) -> Envelope:
    """Read an envelope and verify its signature with the key of its own certificate.

    :raises Unverified: it is malformed, asks for what is not understood here, or was altered.
    """
    if len(data) > MAX_ENVELOPE:
        raise Unverified(f"{name} is larger than {MAX_ENVELOPE} bytes")
    try:
        found = msgspec.json.decode(data, type=_Envelope)
        protected = msgspec.json.decode(_decoded(found.protected), type=_Protected)
        chain = certificates.load([base64.b64decode(each, validate=True) for each in found.header.x5c], name)
        payload = _decoded(found.payload)
        signature = _decoded(found.signature)
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError) as error:
        raise Unverified(f"{name} is no Notary Project signature: {str(error)[:200]}") from None
    _check(protected, name)
    message = f"{found.protected}.{found.payload}".encode()
    if not _verifies(chain[0], protected.alg, signature, message):
        raise Unverified(f"{name} was not made with the key of its certificate")
    try:
        target = msgspec.json.decode(payload, type=_Payload).target_artifact
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Unverified(f"{name} signs no artifact: {str(error)[:200]}") from None
    return Envelope(name, target.digest, protected.scheme, chain, protected.signed_at, protected.expiry)


def _check(found: _Protected, name: str) -> None:
    if found.cty != PAYLOAD_TYPE:
        raise Unverified(f"{name} signs {found.cty[:100]!r}")
    critical = set(found.crit)
    if unknown := critical - _UNDERSTOOD:
        raise Unverified(f"{name} asks for what is not understood here: {', '.join(sorted(unknown))[:200]}")
    given = {_SCHEME} | ({_EXPIRY} if found.expiry else set()) | ({_SIGNED_AT} if found.signed_at else set())
    if critical != given or len(found.crit) != len(critical):
        raise Unverified(f"{name} does not list what is critical of it")
    if (found.signed_at is not None) != (found.scheme == SIGNING_AUTHORITY):
        raise Unverified(f"{name} has an authentic signing time without a signing authority, or the other way around")
    if any(each is not None and each.tzinfo is None for each in (found.expiry, found.signed_at)):
        raise Unverified(f"{name} has a time without a zone")


def _verifies(leaf: x509.Certificate, algorithm: str, signature: bytes, message: bytes) -> bool:
    try:
        key = leaf.public_key()
        if isinstance(key, rsa.RSAPublicKey):
            known, hash_ = _RSA.get(key.key_size, ("", hashes.SHA256()))
            if known != algorithm:
                return False
            key.verify(signature, message, padding.PSS(padding.MGF1(hash_), hash_.digest_size), hash_)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            known, hash_ = _CURVES.get(key.curve.name, ("", hashes.SHA256()))
            half = (key.key_size + 7) // 8
            if known != algorithm or len(signature) != 2 * half:
                return False
            numbers = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
            key.verify(utils.encode_dss_signature(*numbers), message, ec.ECDSA(hash_))
        else:
            return False
    except (InvalidSignature, ValueError):
        return False
    return True


def _decoded(text: str) -> bytes:
    """Base64url without padding (RFC 7515 section 2)."""
    if not _URL_SAFE.fullmatch(text):
        raise ValueError("it holds what is no base64url")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
