"""The Notary Project's trust policy and trust store: ``trustpolicy.json`` and the certificates it names.

https://github.com/notaryproject/specifications/blob/main/specs/trust-store-trust-policy.md. A policy is about the
images of its scopes alone; what is in none is left to the other policies of the node. Nothing is fetched, so that a
certificate that names a list or a server for revocations counts as one whose state is not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from forgeone_shim.attestation import certificates, notation
from forgeone_shim.attestation.certificates import Profile
from forgeone_shim.attestation.evidence import Endorsement, Evidence, Kind, Subject
from forgeone_shim.attestation.policyfiles import Files, document
from forgeone_shim.attestation.requirements import Rule
from forgeone_shim.attestation.rules import limited, refusal
from forgeone_shim.attestation.signed import Unverified, printable
from forgeone_shim.errors import FailedPrecondition, InvalidInput, UntrustedImage
from forgeone_shim.registry.reference import Reference

_SUFFIXES: Final = (".pem", ".crt", ".cer")
_STORE: Final = re.compile(r"(ca|signingAuthority):([a-zA-Z0-9_.-]{1,128})")
_SUBJECT: Final = "x509.subject:"
_NEEDED: Final = ("C", "ST", "O")
_ATTRIBUTES: Final[Mapping[str, x509.ObjectIdentifier]] = MappingProxyType(
    {
        "C": NameOID.COUNTRY_NAME,
        "ST": NameOID.STATE_OR_PROVINCE_NAME,
        "S": NameOID.STATE_OR_PROVINCE_NAME,
        "L": NameOID.LOCALITY_NAME,
        "O": NameOID.ORGANIZATION_NAME,
        "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
        "CN": NameOID.COMMON_NAME,
        "STREET": NameOID.STREET_ADDRESS,
        "POSTALCODE": NameOID.POSTAL_CODE,
        "SERIALNUMBER": NameOID.SERIAL_NUMBER,
    }
)
_CHECKS: Final = ("authenticity", "authenticTimestamp", "expiry", "revocation")
_LEVELS: Final[Mapping[str, tuple[str, str, str, str]]] = MappingProxyType(
    {
        "strict": ("enforce", "enforce", "enforce", "enforce"),
        "permissive": ("enforce", "log", "log", "log"),
        "audit": ("log", "log", "log", "log"),
    }
)

_Action = Literal["enforce", "log"]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    pass


class _Override(_Strict, frozen=True):
    authenticity: _Action | None = None
    authentic_timestamp: _Action | None = None
    expiry: _Action | None = None
    revocation: Literal["enforce", "log", "skip"] | None = None


class _Verification(_Strict, frozen=True):
    level: Literal["strict", "permissive", "audit", "skip"]
    override: _Override | None = None


class _Policy(_Strict, frozen=True):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    registry_scopes: Annotated[list[str], msgspec.Meta(min_length=1)]
    signature_verification: _Verification
    trust_stores: list[str] = []
    trusted_identities: list[str] = []


class _Document(_Strict, frozen=True):
    version: Literal["1.0"]
    trust_policies: Annotated[list[_Policy], msgspec.Meta(min_length=1)]


_Subject = tuple[tuple[x509.ObjectIdentifier, str], ...]


@dataclass(frozen=True, slots=True)
class Notarised:
    """Some signature of a Notary Project signer has to be over the image.

    :param actions: what happens where a check of :data:`_CHECKS` fails.
    :param roots: the trusted certificates, by signing scheme.
    :param subjects: who may sign, by attributes of the certificate's subject; empty: everybody with a certificate.
    """

    policy: str
    actions: Mapping[str, str]
    roots: Mapping[str, tuple[x509.Certificate, ...]]
    subjects: tuple[_Subject, ...]

    @property
    def wanted(self) -> frozenset[Kind]:
        """Notary Project signatures alone."""
        return frozenset({Kind.NOTATION})

    def check(self, subject: Subject, evidence: Evidence, now: datetime) -> Endorsement:
        """Of the signatures that no enforced check refuses, the one with the least to warn of."""
        reasons: list[str] = []
        passed: list[Endorsement] = []
        for data, name in limited(evidence.notation, "Notary Project signature", reasons):
            try:
                envelope = notation.read(data, name)
                if envelope.digest not in subject.digests:
                    raise Unverified(f"{name} is for {envelope.digest[:100]}, another image")
                passed.append(self._judge(envelope, now))
            except Unverified as error:
                reasons.append(error.what)
        if passed:
            return min(passed, key=lambda one: len(one.warnings))
        if not evidence.notation:
            reasons.append("it has no Notary Project signature")
            if self.actions["authenticity"] == "log":
                return Endorsement(warnings=(refusal(subject, self.policy, reasons),))
        raise UntrustedImage(refusal(subject, self.policy, reasons))

    def _judge(self, of: notation.Envelope, now: datetime) -> Endorsement:
        """All checks in the specification's order. :raises Unverified: one that is enforced fails."""
        warnings: list[str] = []
        path = of.chain
        try:
            path = self._path(of)
            signers: tuple[str, ...] = (printable(f"x509:{of.chain[0].subject.rfc4514_string()}"),)
        except Unverified as error:
            signers = ()
            self._failed("authenticity", error.what, warnings)
        moment = of.signed_at or now
        if not all(each.not_valid_before_utc <= moment <= each.not_valid_after_utc for each in path):
            self._failed(
                "authenticTimestamp", f"{of.name}: a certificate of it is not valid at {moment:%F %T}", warnings
            )
        if of.expiry is not None and now >= of.expiry:
            self._failed("expiry", f"{of.name} ended at {of.expiry:%F %T}", warnings)
        if self.actions["revocation"] != "skip" and any(map(_revocable, path)):
            self._failed("revocation", f"{of.name}: whether its certificate was revoked is not known offline", warnings)
        return Endorsement(signers, (), tuple(warnings), self._end(of, path, now))

    def _path(self, of: notation.Envelope) -> tuple[x509.Certificate, ...]:
        """The chain that leads to a trusted root, in the order of the envelope, and whose it is."""
        roots = self.roots[of.scheme]
        leaf = of.chain[0]
        if len(of.chain) == 1 and leaf in roots:
            _check_alone(leaf, of.name)
            path: tuple[x509.Certificate, ...] = of.chain
        else:
            # Validity is another check; here all of them have to have been valid at some one moment.
            moment = max(each.not_valid_before_utc for each in of.chain)
            path = certificates.verify(of.chain, roots, moment, Profile.NOTATION, of.name)
            if path != of.chain:
                raise Unverified(f"{of.name}: its certificates are not the chain to a trusted root, in order")
        if self.subjects and not any(_has(leaf, subject) for subject in self.subjects):
            raise Unverified(f"{of.name} is of {leaf.subject.rfc4514_string()[:200]}, who is not trusted")
        return path

    def _failed(self, check: str, reason: str, warnings: list[str]) -> None:
        if self.actions[check] == "enforce":
            raise Unverified(reason)
        warnings.append(printable(reason))

    def _end(self, of: notation.Envelope, path: Sequence[x509.Certificate], now: datetime) -> float | None:
        ends = [of.expiry] if of.expiry is not None else []
        if of.signed_at is None:
            ends += [each.not_valid_after_utc for each in path]
        return min((each.timestamp() for each in ends if each > now), default=None)


@dataclass(frozen=True, slots=True)
class NotationPolicy:
    """One file. ``scopes`` are repositories; ``everywhere`` is for those in none, ``None`` where it says nothing."""

    scopes: Mapping[str, tuple[Rule, ...]]
    everywhere: tuple[Rule, ...] | None

    def required(self, reference: Reference) -> tuple[Rule, ...] | None:
        """What is asked of an image; ``None``: it is in no scope."""
        return self.scopes.get(reference.name, self.everywhere)


def read(path: Path, stores: Path | None, files: Files) -> NotationPolicy:
    """Read a trust policy and the certificates of its stores.

    :param stores: the directory that has ``ca/NAME`` and ``signingAuthority/NAME``.
    :raises InvalidInput: naming file and field.
    :raises FailedPrecondition: a file cannot be read, or others than root could have written it.
    """
    found = document(str(path), files.read(path), _Document)
    scopes: dict[str, tuple[Rule, ...]] = {}
    everywhere: tuple[Rule, ...] | None = None
    for index, policy in enumerate(found.trust_policies):
        where = f"{path}.trustPolicies[{index}]"
        rules = _rules(policy, where, stores, files)
        for scope in policy.registry_scopes:
            if scope == "*":
                if len(policy.registry_scopes) > 1 or everywhere is not None:
                    raise InvalidInput(f"{where}.registryScopes", "'*' has to be the only scope of one policy")
                everywhere = rules
            elif scope in scopes or not _repository(scope):
                raise InvalidInput(
                    f"{where}.registryScopes", f"{scope!r} is not a whole repository, or in two policies"
                )
            else:
                scopes[scope] = rules
    return NotationPolicy(scopes, everywhere)


def _repository(scope: str) -> bool:
    """Whether images have that for a name, as it is written."""
    try:
        return Reference.parse(scope).name == scope
    except InvalidInput:
        return False


def _rules(found: _Policy, where: str, stores: Path | None, files: Files) -> tuple[Rule, ...]:
    level = found.signature_verification.level
    if level == "skip":
        beside = found.trust_stores or found.trusted_identities or found.signature_verification.override is not None
        if found.registry_scopes == ["*"] or beside:
            raise InvalidInput(where, "level skip is for named repositories, without stores, identities and override")
        return ()
    actions = dict(zip(_CHECKS, _LEVELS[level], strict=True))
    if (override := found.signature_verification.override) is not None:
        given = (override.authenticity, override.authentic_timestamp, override.expiry, override.revocation)
        actions.update({name: action for name, action in zip(_CHECKS, given, strict=True) if action is not None})
    roots: dict[str, tuple[x509.Certificate, ...]] = {notation.X509: (), notation.SIGNING_AUTHORITY: ()}
    for text in found.trust_stores:
        scheme, certificates_ = _store(text, f"{where}.trustStores", stores, files)
        roots[scheme] += certificates_
    if not any(roots.values()):
        raise InvalidInput(f"{where}.trustStores", "names no certificate")
    subjects = _subjects(found.trusted_identities, f"{where}.trustedIdentities")
    return (Notarised(f"trust policy {found.name}", actions, roots, subjects),)


def _store(text: str, where: str, stores: Path | None, files: Files) -> tuple[str, tuple[x509.Certificate, ...]]:
    match = _STORE.fullmatch(text)
    if match is None or match[2].startswith("."):
        raise InvalidInput(where, f"{text[:200]!r} is not ca:NAME or signingAuthority:NAME")
    if stores is None:
        raise InvalidInput(where, "there is no directory of trust stores")
    directory = stores / match[1] / match[2]
    if directory.is_symlink():
        raise FailedPrecondition(f"{directory}: is a link, which a trust store must not be")
    found: list[x509.Certificate] = []
    for file in files.listed(directory, _SUFFIXES):
        if file.is_symlink():
            raise FailedPrecondition(f"{file}: is a link, which a trust store must not have")
        data = files.read(file)
        found += certificates.load_pem(data, str(file)) if b"-----BEGIN" in data else [_der(data, file)]
    if not found:
        raise InvalidInput(where, f"{directory} has no certificate")
    return {"ca": notation.X509}.get(match[1], notation.SIGNING_AUTHORITY), tuple(found)


def _der(data: bytes, file: Path) -> x509.Certificate:
    try:
        return certificates.load([data], str(file))[0]
    except Unverified as error:
        raise FailedPrecondition(error.what) from None


def _subjects(texts: Sequence[str], where: str) -> tuple[_Subject, ...]:
    """Empty for ``*``. :raises InvalidInput: one is malformed, too wide, or part of another."""
    if list(texts) == ["*"]:
        return ()
    if not texts:
        raise InvalidInput(where, "is empty; ['*'] trusts everybody with a certificate of the stores")
    found = [_subject(text, where) for text in texts]
    for i, one in enumerate(found):
        if any(set(one) <= set(other) for j, other in enumerate(found) if i != j):
            raise InvalidInput(where, f"{texts[i]!r} is part of another identity")
    return tuple(found)


def _subject(text: str, where: str) -> _Subject:
    """A distinguished name as the trust policy writes it (RFC 4514, with ``\\,`` for a comma)."""
    if not text.startswith(_SUBJECT):
        raise InvalidInput(where, f"{text[:200]!r} does not begin with {_SUBJECT}")
    found: dict[x509.ObjectIdentifier, str] = {}
    for part in _split(text.removeprefix(_SUBJECT)):
        name, equals, value = part.strip().partition("=")
        oid = _ATTRIBUTES.get(name.strip().upper())
        value = re.sub(r"\\(.)", r"\1", value.strip())
        if not equals or oid is None or oid in found or not value:
            raise InvalidInput(where, f"{part.strip()[:200]!r} is not an attribute of a subject, or there twice")
        found[oid] = value
    if missing := [name for name in _NEEDED if _ATTRIBUTES[name] not in found]:
        raise InvalidInput(where, f"{text[:200]!r} has no {', '.join(missing)}")
    return tuple(found.items())


def _split(text: str) -> list[str]:
    """Its parts between commas; one after a backslash is none."""
    parts, escaped = [""], False
    for character in text:
        if character == "," and not escaped:
            parts.append("")
            continue
        parts[-1] += character
        escaped = character == "\\" and not escaped
    return parts


def _has(leaf: x509.Certificate, subject: _Subject) -> bool:
    """Whether a certificate's subject has these attributes, each once and with that value."""
    return all([each.value for each in leaf.subject.get_attributes_for_oid(oid)] == [value] for oid, value in subject)


def _check_alone(leaf: x509.Certificate, name: str) -> None:
    """A certificate that is itself trusted has nobody above it that could be asked."""
    try:
        leaf.verify_directly_issued_by(leaf)
        certificates.check_usage(Profile.NOTATION, leaf.extensions.get_extension_for_class(x509.KeyUsage).value)
        purposes = [each.value for each in leaf.extensions if isinstance(each.value, x509.ExtendedKeyUsage)]
        certificates.check_purpose(Profile.NOTATION, purposes[0] if purposes else None)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
        raise Unverified(f"{name}: its certificate is not trusted: {str(error)[:200]}") from None


def _revocable(certificate: x509.Certificate) -> bool:
    for each in certificate.extensions:
        if isinstance(each.value, x509.CRLDistributionPoints):
            return True
        if isinstance(each.value, x509.AuthorityInformationAccess) and any(
            one.access_method == AuthorityInformationAccessOID.OCSP for one in each.value
        ):
            return True
    return False
