"""What is said about an image, as it was found beside it: nothing in here has been verified.

Whoever discovers and fetches it (the registry room) fills these in; :mod:`forgeone_shim.attestation.trust` judges them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from forgeone_shim.registry.reference import Reference

MAX_ITEMS: Final = 64
"""So many pieces of evidence of one kind are looked at, the first ones: each costs a verification for each key."""

MAX_ITEM: Final = 16 * 1024 * 1024
"""Bytes of one piece: attestations with an SBOM are large, signatures are not."""


class Kind(StrEnum):
    """The forms in which evidence is kept in a registry."""

    BUNDLES = "bundles"
    SIMPLE = "simple"
    ATTESTATIONS = "attestations"
    NOTATION = "notation"


@dataclass(frozen=True, slots=True)
class Subject:
    """What an image is, and what it was called by whoever asked for it.

    ``digest`` is the manifest's. ``index_digest`` is that of the index which this manifest was chosen from, ``""`` if
    there was none: a signature over the index counts for what the index names. The caller has made sure that the index
    has that digest and names that manifest.
    """

    reference: Reference
    digest: str
    index_digest: str = ""

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of which a signature counts."""
        return (self.digest, self.index_digest) if self.index_digest else (self.digest,)


@dataclass(frozen=True, slots=True)
class SimpleSignature:
    """One layer of a ``sha256-HEX.sig`` image: https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md

    :param payload: the layer, simple signing JSON.
    :param signature: the annotation ``dev.cosignproject.cosign/signature`` as it is written there, base64.
    :param certificate: ``dev.sigstore.cosign/certificate``, PEM, or ``""``.
    :param chain: ``dev.sigstore.cosign/chain``, PEM, or ``""``.
    :param rekor: ``dev.sigstore.cosign/bundle``, JSON, or ``""``.
    """

    payload: bytes
    signature: str
    certificate: str = ""
    chain: str = ""
    rekor: str = ""


@dataclass(frozen=True, slots=True)
class LegacyAttestation:
    """One layer of a ``sha256-HEX.att`` image: a DSSE envelope; annotations as in :class:`SimpleSignature`."""

    envelope: bytes
    certificate: str = ""
    chain: str = ""
    rekor: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was found about one image, over its manifest and over the index.

    :param bundles: layers of type ``application/vnd.dev.sigstore.bundle.v0.3+json``: sigstore bundles, JSON.
    :param simple: cosign's signatures of before bundles.
    :param attestations: cosign's attestations of before bundles.
    :param notation: layers of type ``application/jose+json``: Notary Project signatures, JWS.
    """

    bundles: tuple[bytes, ...] = ()
    simple: tuple[SimpleSignature, ...] = ()
    attestations: tuple[LegacyAttestation, ...] = ()
    notation: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.bundles or self.simple or self.attestations or self.notation)


@dataclass(frozen=True, slots=True)
class Statement:
    """An attestation (in-toto Statement) that a trusted signer made about the image. ``predicate`` is plain data.

    https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
    """

    predicate_type: str
    predicate: Any
    signer: str


@dataclass(frozen=True, slots=True)
class Endorsement:
    """Why an image may be used.

    :param signers: who stands behind it, each once: ``key:sha256:HEX``, ``x509:SUBJECT`` or ``keyless:IDENTITY``.
        Empty where the policy asks for no signature.
    :param attestations: what trusted signers say of it.
    :param warnings: what a policy in mode ``warn`` would have refused, one sentence each.
    :param expires: seconds since the epoch after which this has to be asked again; ``None``: not before the policy or
        the evidence changes.
    """

    signers: tuple[str, ...] = ()
    attestations: tuple[Statement, ...] = ()
    warnings: tuple[str, ...] = ()
    expires: float | None = None
