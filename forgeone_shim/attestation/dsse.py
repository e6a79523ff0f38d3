"""DSSE envelopes: bytes of a stated type, and who signed both.

https://github.com/secure-systems-lab/dsse/blob/master/envelope.md and protocol.md
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final

import msgspec

from forgeone_shim.attestation.keys import PublicKey, SigningKey, named
from forgeone_shim.errors import FailedPrecondition, PermissionDenied

MEDIA_TYPE: Final = "application/vnd.dsse.envelope.v1+json"
MAX_ENVELOPE: Final = 1024 * 1024
MAX_SIGNATURES: Final = 32
_MAX_SIGNATURE: Final = 1024


class _Signature(msgspec.Struct, frozen=True):
    sig: Annotated[str, msgspec.Meta(max_length=2 * _MAX_SIGNATURE)]
    keyid: Annotated[str, msgspec.Meta(max_length=1024)] = ""


class _Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """What the protocol names; fields it does not name are to be ignored."""

    payload: str
    payload_type: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    signatures: Annotated[list[_Signature], msgspec.Meta(min_length=1, max_length=MAX_SIGNATURES)]


@dataclass(frozen=True, slots=True)
class Signature:
    """``key_id`` is a hint at the key, and nothing that can be trusted."""

    key_id: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """``payload`` says nothing before :func:`signers` has been asked who stands behind it."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...] = ()


class BadSignature(PermissionDenied):
    """A signature that names a trusted key was not made by it, or not over this."""


def pae(payload_type: str, payload: bytes) -> bytes:
    """What is signed: type and payload so encoded that no two pairs are alike (PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def parse(data: bytes, name: str, *, limit: int = MAX_ENVELOPE) -> Envelope:
    """Read an envelope of at most ``limit`` bytes, called ``name``. :raises FailedPrecondition: it is none."""
    if len(data) > limit:
        raise FailedPrecondition(f"{name} is larger than {limit} bytes")
    try:
        found = msgspec.json.decode(data, type=_Envelope)
        signatures = tuple(Signature(each.keyid, _decode(each.sig)) for each in found.signatures)
        return Envelope(found.payload_type, _decode(found.payload), signatures)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FailedPrecondition(f"{name} is no DSSE envelope: {str(error)[:200]}") from None


def encode(envelope: Envelope) -> bytes:
    """The envelope as JSON; the same envelope gives the same bytes."""
    return msgspec.json.encode(
        {
            "payload": base64.b64encode(envelope.payload).decode(),
            "payloadType": envelope.payload_type,
            "signatures": [
                {"keyid": each.key_id, "sig": base64.b64encode(each.value).decode()} for each in envelope.signatures
            ],
        }
    )


def sign(envelope: Envelope, key: SigningKey) -> Envelope:
    """The same with this key's signature; an earlier one of the same key is replaced."""
    others = tuple(each for each in envelope.signatures if each.key_id != key.public.id)
    if len(others) >= MAX_SIGNATURES:
        raise FailedPrecondition(f"it has {len(others)} signatures already, and {MAX_SIGNATURES} are allowed")
    made = Signature(key.public.id, key.sign(pae(envelope.payload_type, envelope.payload)))
    return replace(envelope, signatures=(*others, made))


def signers(envelope: Envelope, trusted: Sequence[PublicKey], name: str) -> tuple[PublicKey, ...]:
    """Which of the trusted keys signed it, each once.

    :raises BadSignature: a signature says it is a trusted key's and is not.
    """
    signed = pae(envelope.payload_type, envelope.payload)
    found: dict[str, PublicKey] = {}
    for signature in envelope.signatures:
        hinted = named(trusted, signature.key_id)
        # Other tools name keys in other ways, or not at all.
        for key in (hinted,) if hinted is not None else trusted:
            if key.verifies(signature.value, signed):
                found[key.id] = key
                break
        else:
            if hinted is not None:
                raise BadSignature(f"{name}: the signature of {hinted.name or hinted.id} is not over what it holds")
    return tuple(found.values())


def _decode(text: str) -> bytes:
    """Both alphabets of RFC 4648 are allowed."""
    try:
        return base64.b64decode(text.translate({ord("-"): "+", ord("_"): "/"}), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("it holds what is no base64") from None
