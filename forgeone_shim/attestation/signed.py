"""What every form of signature comes down to: bytes, a signature over them, and what came along to verify it with."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final

from forgeone_shim.errors import PermissionDenied

MAX_SIGNATURE: Final = 4096
MAX_CHAIN: Final = 10
MAX_CERTIFICATES: Final = 32 * 1024
"""Bytes of a chain: names of strangers can have thousands of parts."""

MAX_ENTRIES: Final = 8
MAX_TREE_DEPTH: Final = 64
MAX_ENTRY: Final = 256 * 1024
"""Bytes of a log entry, which has a signature, a hash and a certificate: it is read before anybody vouched for it."""
_NO_LINE_ENDS: Final = {ord("\r"): None, ord("\n"): None}


class Unverified(PermissionDenied):
    """One piece of evidence proves nothing; another may."""


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """That a log of ``size`` entries has one at ``index`` (RFC 6962 section 2.1.1); ``checkpoint`` is a signed note."""

    index: int
    size: int
    hashes: tuple[bytes, ...]
    checkpoint: str


@dataclass(frozen=True, slots=True)
class LogEntry:
    """An entry of a transparency log (Rekor) about a signature.

    ``integrated`` is in seconds since the epoch, 0 if not given; it can be trusted only through ``promise``, the
    signed entry timestamp.
    """

    body: bytes
    log_id: bytes
    index: int
    integrated: int = 0
    promise: bytes = b""
    proof: InclusionProof | None = None


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature and what it is over. Nothing has been verified.

    :param name: what this is called when it is refused: ``bundle 1``.
    :param simple: it is over a simple signing payload, not over an envelope.
    :param message: the signed bytes; ``None`` where only their SHA-256 is known.
    :param digest: the SHA-256 of the signed bytes.
    :param payload_type: the type of ``payload``, as the signed bytes state it.
    :param payload: what the signed bytes hold.
    :param chain: certificates in DER form, the signer's first; empty for a bare key.
    :param bundle: the whole sigstore bundle, where it came in one.
    """

    name: str
    message: bytes | None
    digest: bytes
    signature: bytes
    payload_type: str = ""
    payload: bytes = b""
    chain: tuple[bytes, ...] = ()
    entries: tuple[LogEntry, ...] = ()
    bundle: bytes = b""
    simple: bool = False


def printable(text: str) -> str:
    """Evidence is anybody's, and what is told of it goes to logs and terminals."""
    return "".join(character if character.isprintable() else "?" for character in text)


def decode_base64(text: str, what: str, *, limit: int = MAX_SIGNATURE) -> bytes:
    """The bytes of a base64 text (RFC 4648 section 4). :raises Unverified: it is none, or has too many."""
    if len(text) > 2 * limit:
        raise Unverified(f"{what} is larger than {limit} bytes")
    try:
        # Whoever signs with openssl has line ends in it, which cosign does not mind.
        return base64.b64decode(text.translate(_NO_LINE_ENDS), validate=True)
    except (binascii.Error, ValueError):
        raise Unverified(f"{what} is no base64") from None
