"""Signed certificate timestamps: that a certificate transparency log has a certificate (RFC 6962 section 3.2)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.certificate_transparency import SignedCertificateTimestamp, Version

from forgeone_shim.attestation.publickeys import VerifyingKey
from forgeone_shim.attestation.signed import Unverified

_CERTIFICATE_TIMESTAMP, _PRECERT = 0, 1
_EPOCH = datetime.fromtimestamp(0, UTC)


def verify(leaf: x509.Certificate, issuer: x509.Certificate, logs: Sequence[VerifyingKey], name: str) -> None:
    """Whether one of these logs has it. :raises Unverified: none says so."""
    try:
        found = leaf.extensions.get_extension_for_class(x509.PrecertificateSignedCertificateTimestamps).value
        tbs = leaf.tbs_precertificate_bytes
    except (x509.ExtensionNotFound, ValueError):
        raise Unverified(f"{name}: its certificate is in no transparency log") from None
    spki = issuer.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    for each in found:
        message = _message(each, sha256(spki).digest(), tbs)
        if any(log.id == f"sha256:{each.log_id.hex()}" and log.verifies(each.signature, message) for log in logs):
            return
    raise Unverified(f"{name}: its certificate is in no transparency log that is trusted")


def _message(of: SignedCertificateTimestamp, issuer: bytes, tbs: bytes) -> bytes:
    if of.version is not Version.v1 or not isinstance(of.signature_hash_algorithm, hashes.SHA256):
        return b""
    # It is a time of UTC that does not say so.
    milliseconds = (of.timestamp.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
    return b"".join(
        (
            struct.pack(">BBQH", Version.v1.value, _CERTIFICATE_TIMESTAMP, milliseconds, _PRECERT),
            issuer,
            len(tbs).to_bytes(3, "big"),
            tbs,
            struct.pack(">H", len(of.extension_bytes)),
            of.extension_bytes,
        )
    )
