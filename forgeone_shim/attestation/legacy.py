"""Cosign's signatures and attestations of before bundles.

https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md and ATTESTATION_SPEC.md; the payload is
containers-signature(5)'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from forgeone_shim.attestation import dsse
from forgeone_shim.attestation.certificates import UNREADABLE
from forgeone_shim.attestation.evidence import MAX_ITEM, LegacyAttestation, SimpleSignature
from forgeone_shim.attestation.signed import (
    MAX_CERTIFICATES,
    MAX_CHAIN,
    MAX_ENTRY,
    LogEntry,
    Signed,
    Unverified,
    decode_base64,
)
from forgeone_shim.errors import FailedPrecondition

PAYLOAD_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
_MAX_PAYLOAD: Final = 64 * 1024
_MAX_PEM: Final = 2 * MAX_CERTIFICATES
_MAX_REKOR: Final = 2 * MAX_ENTRY
_TYPES: Final = frozenset({"cosign container image signature", "atomic container signature"})


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Image(_Struct, frozen=True):
    digest: str = msgspec.field(name="docker-manifest-digest")


class _Identity(_Struct, frozen=True):
    reference: str = msgspec.field(default="", name="docker-reference")


class _Critical(_Struct, frozen=True):
    type: str
    image: _Image
    identity: _Identity


class _Payload(_Struct, frozen=True):
    critical: _Critical
    optional: dict[str, Any] | None = None


class _RekorPayload(_Struct, frozen=True):
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_ENTRY)]
    integrated: Annotated[int, msgspec.Meta(ge=0)] = msgspec.field(name="integratedTime")
    index: Annotated[int, msgspec.Meta(ge=0)] = msgspec.field(name="logIndex")
    log_id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] = msgspec.field(name="logID")


class _Rekor(_Struct, frozen=True):
    promise: bytes = msgspec.field(name="SignedEntryTimestamp")
    payload: _RekorPayload = msgspec.field(name="Payload")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a simple signature says: an image has this digest, and ``reference`` is what its signer called it."""

    digest: str
    reference: str


def signature(found: SimpleSignature, name: str) -> Signed:
    """A layer of a ``.sig`` image. :raises Unverified: it is malformed."""
    if len(found.payload) > _MAX_PAYLOAD:
        raise Unverified(f"{name} is larger than {_MAX_PAYLOAD} bytes")
    return Signed(
        name,
        found.payload,
        sha256(found.payload).digest(),
        decode_base64(found.signature, name),
        PAYLOAD_TYPE,
        found.payload,
        _chain(found.certificate, found.chain, name),
        _entries(found.rekor, name),
        simple=True,
    )


def claim(payload: bytes, name: str) -> Claim:
    """What a signature that has been verified says. :raises Unverified: it is no such payload."""
    try:
        said = msgspec.json.decode(payload, type=_Payload).critical
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Unverified(f"{name} signs no image: {str(error)[:200]}") from None
    if said.type not in _TYPES:
        raise Unverified(f"{name} signs {said.type[:100]!r}, not an image")
    return Claim(said.image.digest, said.identity.reference)


def attestations(found: LegacyAttestation, name: str) -> tuple[Signed, ...]:
    """A layer of an ``.att`` image, once for each of its unlike signatures. :raises Unverified: it is malformed."""
    try:
        envelope = dsse.parse(found.envelope, name, limit=MAX_ITEM)
    except FailedPrecondition as error:
        raise Unverified(error.what) from None
    message = dsse.pae(envelope.payload_type, envelope.payload)
    digest = sha256(message).digest()
    chain, entries = _chain(found.certificate, found.chain, name), _entries(found.rekor, name)
    return tuple(
        Signed(name, message, digest, each, envelope.payload_type, envelope.payload, chain, entries)
        for each in dict.fromkeys(signature.value for signature in envelope.signatures)
    )


def _chain(certificate: str, chain: str, name: str) -> tuple[bytes, ...]:
    if not certificate:
        return ()
    pem = f"{certificate}\n{chain}".encode()
    if len(pem) > _MAX_PEM:
        raise Unverified(f"{name}: its certificates are larger than {_MAX_PEM} bytes")
    try:
        found = x509.load_pem_x509_certificates(pem)
    except UNREADABLE:
        raise Unverified(f"{name}: its certificates cannot be read") from None
    if len(found) > MAX_CHAIN:
        raise Unverified(f"{name} has {len(found)} certificates, more than {MAX_CHAIN}")
    return tuple(each.public_bytes(Encoding.DER) for each in found)


def _entries(text: str, name: str) -> tuple[LogEntry, ...]:
    if not text:
        return ()
    if len(text) > _MAX_REKOR:
        raise Unverified(f"{name}: its log entry is larger than {_MAX_REKOR} bytes")
    try:
        found = msgspec.json.decode(text, type=_Rekor)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Unverified(f"{name}: its log entry cannot be read: {str(error)[:200]}") from None
    said = found.payload
    return (LogEntry(said.body, bytes.fromhex(said.log_id), said.index, said.integrated, found.promise),)
