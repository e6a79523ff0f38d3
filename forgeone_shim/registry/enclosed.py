"""Evidence that goes with an image into an archive: as one manifest about it, which an import finds again."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from forgeone_shim.attestation.evidence import Evidence, Kind
from forgeone_shim.registry.artifacts import EMPTY_CONFIG
from forgeone_shim.registry.digest import digest_of
from forgeone_shim.registry.evidence import MEDIA_TYPES, notes
from forgeone_shim.registry.manifest import OCI_MANIFEST

ARTIFACT: Final = "application/vnd.forgeone.evidence.v1"
_EMPTY: Final = b"{}"


def encode(evidence: Evidence) -> bytes:
    """As it is kept beside an image."""
    return msgspec.msgpack.encode(evidence)


def decode(data: bytes) -> Evidence | None:
    """What :func:`encode` was given; ``None``: an earlier forgeoned kept it in another way."""
    try:
        return msgspec.msgpack.decode(data, type=Evidence)
    except (msgspec.MsgspecError, ValueError):
        return None


def enclosed(evidence: Evidence, subject: dict[str, Any]) -> tuple[bytes, dict[str, bytes]]:
    """The manifest that is about ``subject``, a descriptor, and the blobs that it names by their digests.

    The same evidence gives the same bytes.
    """
    pieces: list[tuple[Kind, bytes, dict[str, str]]] = [
        *((Kind.BUNDLES, data, {}) for data in evidence.bundles),
        *(
            (Kind.SIMPLE, each.payload, notes(each.signature, each.certificate, each.chain, each.rekor))
            for each in evidence.simple
        ),
        *(
            (Kind.ATTESTATIONS, each.envelope, notes("", each.certificate, each.chain, each.rekor))
            for each in evidence.attestations
        ),
        *((Kind.NOTATION, data, {}) for data in evidence.notation),
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT,
        "config": _descriptor(_EMPTY, EMPTY_CONFIG),
        "layers": [
            {**_descriptor(data, MEDIA_TYPES[kind]), **({"annotations": said} if said else {})}
            for kind, data, said in pieces
        ],
        "subject": subject,
    }
    blobs = {digest_of(data): data for data in (_EMPTY, *(data for _, data, _ in pieces))}
    return msgspec.json.encode(manifest), blobs


def _descriptor(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
