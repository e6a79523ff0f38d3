"""In-toto statements: that something is true of artifacts with these digests.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md; version 0.1 has the same fields. Fields it does
not name are to be ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec

from forgeone_shim.attestation.signed import Unverified
from forgeone_shim.registry.digest import algorithm, encoded

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
TYPES: Final = frozenset({"https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"})
SIGNATURE: Final = "https://sigstore.dev/cosign/sign/v1"
"""The predicate of a statement that says nothing but that its signer signed the image."""

_SLSA_02: Final = "https://slsa.dev/provenance/v0.2"
_SLSA_1: Final = "https://slsa.dev/provenance/v1"
_SPDX: Final = "https://spdx.dev/Document"
_CYCLONEDX: Final = "https://cyclonedx.org/bom"
NAMES: Final[Mapping[str, str]] = {
    "custom": "https://cosign.sigstore.dev/attestation/v1",
    "cyclonedx": _CYCLONEDX,
    "link": "https://in-toto.io/Link/v1",
    "openvex": "https://openvex.dev/ns",
    "slsaprovenance": _SLSA_02,
    "slsaprovenance02": _SLSA_02,
    "slsaprovenance1": _SLSA_1,
    "spdx": _SPDX,
    "spdxjson": _SPDX,
    "vuln": "https://cosign.sigstore.dev/attestation/vuln/v1",
}
"""The short names that ``cosign verify-attestation --type`` and ClusterImagePolicy have for predicates."""

_MAX_SUBJECTS: Final = 4096


class Subject(msgspec.Struct, frozen=True):
    """``name`` says what the digest was of; nothing is known of it but that it was signed."""

    digest: dict[str, str]
    name: str = ""


class Statement(msgspec.Struct, frozen=True, rename="camel"):
    """``predicate`` is plain data."""

    type: str = msgspec.field(name="_type")
    subject: Annotated[list[Subject], msgspec.Meta(min_length=1, max_length=_MAX_SUBJECTS)]
    predicate_type: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    predicate: Any = None

    def about(self, digests: Sequence[str]) -> tuple[Subject, ...]:
        """The subjects that have one of these digests."""
        return tuple(
            subject
            for subject in self.subject
            if any(subject.digest.get(algorithm(each)) == encoded(each) for each in digests)
        )


def parse(payload_type: str, payload: bytes, name: str) -> Statement:
    """Read what a DSSE envelope holds. :raises Unverified: it is no statement, or its predicate is not what it says."""
    if payload_type != PAYLOAD_TYPE:
        raise Unverified(f"{name} holds {payload_type[:100]!r}, not a statement")
    try:
        found = msgspec.json.decode(payload, type=Statement)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Unverified(f"{name} holds no statement: {str(error)[:200]}") from None
    if found.type not in TYPES:
        raise Unverified(f"{name} holds a statement of an unknown type: {found.type[:100]!r}")
    check = _PREDICATES.get(found.predicate_type)
    if check is not None and (fault := check(found.predicate)):
        raise Unverified(f"{name} says it is {found.predicate_type}, and {fault}")
    return found


def predicate_type(name: str) -> str:
    """The type a policy means: a short name, or a URI as it is."""
    return NAMES.get(name, name)


def _slsa_02(predicate: Any) -> str:
    return "" if _text(predicate, "builder", "id") else "has no builder.id"


def _slsa_1(predicate: Any) -> str:
    if not _text(predicate, "runDetails", "builder", "id"):
        return "has no runDetails.builder.id"
    return "" if _text(predicate, "buildDefinition", "buildType") else "has no buildDefinition.buildType"


def _spdx(predicate: Any) -> str:
    # The tag-value form is a text.
    return "" if isinstance(predicate, str) or _text(predicate, "spdxVersion") else "has no spdxVersion"


def _cyclonedx(predicate: Any) -> str:
    # The XML form is a text.
    fits = isinstance(predicate, str) or _text(predicate, "bomFormat") == "CycloneDX"
    return "" if fits else "its bomFormat is not CycloneDX"


def _text(value: Any, *path: str) -> str:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""


_PREDICATES: Final[Mapping[str, Callable[[Any], str]]] = {
    _SLSA_02: _slsa_02,
    _SLSA_1: _slsa_1,
    _SPDX: _spdx,
    _CYCLONEDX: _cyclonedx,
}
