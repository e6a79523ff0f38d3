"""Sigstore bundles: a signature and all that is needed to verify it, in one JSON document.

https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_bundle.proto, versions 0.1 to 0.3; images have them
as https://github.com/sigstore/cosign/blob/main/specs/BUNDLE_SPEC.md describes.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated, Final

import msgspec

from forgeone_shim.attestation import dsse
from forgeone_shim.attestation.evidence import MAX_ITEM
from forgeone_shim.attestation.signed import (
    MAX_CERTIFICATES,
    MAX_CHAIN,
    MAX_ENTRIES,
    MAX_ENTRY,
    MAX_SIGNATURE,
    MAX_TREE_DEPTH,
    InclusionProof,
    LogEntry,
    Signed,
    Unverified,
)

MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_MEDIA_TYPES: Final = frozenset(
    {
        MEDIA_TYPE,
        *(f"application/vnd.dev.sigstore.bundle+json;version=0.{minor}" for minor in (1, 2, 3)),
    }
)
_MAX_TIMESTAMPS: Final = 32

_Signature = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_SIGNATURE)]
_Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
# protobuf's JSON has 64-bit integers as texts; readers have to take numbers, too.
_Int64 = Annotated[str, msgspec.Meta(pattern=r"^(0|[1-9][0-9]{0,18})$")] | Annotated[int, msgspec.Meta(ge=0)]


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What a field unknown here would have changed nobody can tell: it is refused."""


class _Raw(_Struct, frozen=True):
    raw_bytes: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_CERTIFICATES)]


class _Chain(_Struct, frozen=True):
    certificates: Annotated[list[_Raw], msgspec.Meta(min_length=1, max_length=MAX_CHAIN)]


class _KeyHint(_Struct, frozen=True):
    hint: Annotated[str, msgspec.Meta(max_length=1024)] = ""


class _LogId(_Struct, frozen=True):
    key_id: Annotated[bytes, msgspec.Meta(max_length=64)]


class _KindVersion(_Struct, frozen=True):
    kind: str
    version: str


class _Promise(_Struct, frozen=True):
    signed_entry_timestamp: _Signature


class _Checkpoint(_Struct, frozen=True):
    envelope: Annotated[str, msgspec.Meta(max_length=16 * 1024)]


class _Proof(_Struct, frozen=True):
    root_hash: _Hash
    tree_size: _Int64
    log_index: _Int64 = 0
    hashes: Annotated[list[_Hash], msgspec.Meta(max_length=MAX_TREE_DEPTH)] = []
    checkpoint: _Checkpoint | None = None


class _Entry(_Struct, frozen=True):
    canonicalized_body: Annotated[bytes, msgspec.Meta(max_length=MAX_ENTRY)]
    log_id: _LogId
    kind_version: _KindVersion
    log_index: _Int64 = 0
    integrated_time: _Int64 = 0
    inclusion_promise: _Promise | None = None
    inclusion_proof: _Proof | None = None


class _Timestamp(_Struct, frozen=True):
    signed_timestamp: bytes


class _Timestamps(_Struct, frozen=True):
    rfc3161_timestamps: Annotated[list[_Timestamp], msgspec.Meta(max_length=_MAX_TIMESTAMPS)] = msgspec.field(
        default_factory=list, name="rfc3161Timestamps"
    )


class _Material(_Struct, frozen=True):
    public_key: _KeyHint | None = None
    certificate: _Raw | None = None
    x509_certificate_chain: _Chain | None = msgspec.field(default=None, name="x509CertificateChain")
    tlog_entries: Annotated[list[_Entry], msgspec.Meta(max_length=MAX_ENTRIES)] = []
    timestamp_verification_data: _Timestamps | None = None


class _EnvelopeSignature(_Struct, frozen=True):
    sig: _Signature
    keyid: str = ""


class _Envelope(_Struct, frozen=True):
    payload: bytes
    payload_type: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    # The bundle's specification: exactly one.
    signatures: Annotated[list[_EnvelopeSignature], msgspec.Meta(min_length=1, max_length=1)]


class _Digest(_Struct, frozen=True):
    algorithm: str
    digest: bytes


class _Message(_Struct, frozen=True):
    signature: _Signature
    message_digest: _Digest | None = None


class _Bundle(_Struct, frozen=True):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope | None = None
    message_signature: _Message | None = None


def parse(data: bytes, name: str) -> Signed:
    """Read a bundle. :raises Unverified: it is none, or one that cannot be verified here."""
    if len(data) > MAX_ITEM:
        raise Unverified(f"{name} is larger than {MAX_ITEM} bytes")
    try:
        found = msgspec.json.decode(data, type=_Bundle)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Unverified(f"{name} is no sigstore bundle: {str(error)[:200]}") from None
    if found.media_type not in _MEDIA_TYPES:
        raise Unverified(f"{name} is a bundle of an unknown version: {found.media_type[:100]!r}")
    chain = _chain(found.verification_material, name)
    entries = tuple(_entry(each) for each in found.verification_material.tlog_entries)
    if found.dsse_envelope is not None and found.message_signature is None:
        envelope = found.dsse_envelope
        message = dsse.pae(envelope.payload_type, envelope.payload)
        return Signed(
            name,
            message,
            sha256(message).digest(),
            envelope.signatures[0].sig,
            envelope.payload_type,
            envelope.payload,
            chain,
            entries,
            data,
        )
    if found.message_signature is not None and found.dsse_envelope is None:
        said = found.message_signature.message_digest
        if said is None or said.algorithm != "SHA2_256" or len(said.digest) != sha256().digest_size:
            raise Unverified(f"{name} does not say the SHA-256 of what it signs")
        return Signed(
            name, None, said.digest, found.message_signature.signature, chain=chain, entries=entries, bundle=data
        )
    raise Unverified(f"{name} has no signature, or two")


def _chain(material: _Material, name: str) -> tuple[bytes, ...]:
    given = [
        each
        for each in (material.public_key, material.certificate, material.x509_certificate_chain)
        if each is not None
    ]
    if len(given) != 1:
        raise Unverified(f"{name} has to name one key, certificate or chain, and has {len(given)}")
    if material.certificate is not None:
        return (material.certificate.raw_bytes,)
    if material.x509_certificate_chain is not None:
        return tuple(each.raw_bytes for each in material.x509_certificate_chain.certificates)
    return ()


def _entry(found: _Entry) -> LogEntry:
    proof = found.inclusion_proof
    return LogEntry(
        found.canonicalized_body,
        found.log_id.key_id,
        int(found.log_index),
        int(found.integrated_time),
        found.inclusion_promise.signed_entry_timestamp if found.inclusion_promise is not None else b"",
        InclusionProof(int(proof.log_index), int(proof.tree_size), tuple(proof.hashes), proof.checkpoint.envelope)
        if proof is not None and proof.checkpoint is not None
        else None,
    )
