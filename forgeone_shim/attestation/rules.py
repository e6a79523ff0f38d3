"""What a policy requires of an image, and whether the evidence meets it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from forgeone_shim.attestation import bundles, legacy, statements
from forgeone_shim.attestation.authorities import Authority, Signer
from forgeone_shim.attestation.evidence import MAX_ITEMS, Endorsement, Evidence, Kind, Statement, Subject
from forgeone_shim.attestation.identity import SignedIdentity
from forgeone_shim.attestation.requirements import Rule, merged
from forgeone_shim.attestation.signed import Signed, Unverified, printable
from forgeone_shim.errors import UntrustedImage

_MAX_REASONS: Final = 4
_MAX_REASON: Final = 400
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Refused:
    """No image meets this. ``reason`` follows the image's name."""

    reason: str
    fix: str = ""

    @property
    def wanted(self) -> frozenset[Kind]:
        """Nothing would help."""
        return frozenset()

    def check(self, subject: Subject, evidence: Evidence, now: datetime) -> Endorsement:  # noqa: ARG002
        """:raises UntrustedImage: always."""
        raise UntrustedImage(f"{subject.reference}: {self.reason}", fix=self.fix)


@dataclass(frozen=True, slots=True)
class Warned:
    """A rule that is not enforced: what it would refuse is said, and no more."""

    rule: Rule

    @property
    def wanted(self) -> frozenset[Kind]:
        """What the rule wants."""
        return self.rule.wanted

    def check(self, subject: Subject, evidence: Evidence, now: datetime) -> Endorsement:
        """Never raises for what the image is."""
        try:
            return self.rule.check(subject, evidence, now)
        except UntrustedImage as error:
            return Endorsement(warnings=(error.reason,))


@dataclass(frozen=True, slots=True)
class Endorser:
    """One authority and how it has to have spoken.

    :param formats: the forms of evidence that count.
    :param predicates: types of attestations of which there has to be at least one each; empty: a signature has to be
        there instead.
    """

    authority: Authority
    formats: frozenset[Kind]
    identity: SignedIdentity
    predicates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Endorsed:
    """At least one of these endorsers has to have spoken for the image. ``policy`` is what asks for that."""

    policy: str
    endorsers: tuple[Endorser, ...]

    @property
    def wanted(self) -> frozenset[Kind]:
        """All forms that any of them could have used."""
        return frozenset(kind for each in self.endorsers for kind in each.formats)

    def check(self, subject: Subject, evidence: Evidence, now: datetime) -> Endorsement:
        """Signers and attestations of every endorser that spoke."""
        reasons: list[str] = []
        found: list[Endorsement] = []
        read: dict[frozenset[Kind], tuple[Signed, ...]] = {}
        for endorser in self.endorsers:
            if endorser.formats not in read:
                read[endorser.formats] = candidates(evidence, endorser.formats, reasons)
            try:
                found.append(_endorsement(endorser, read[endorser.formats], subject, now, reasons))
            except Unverified as error:
                reasons.append(error.what)
        if not found:
            raise UntrustedImage(refusal(subject, self.policy, reasons))
        return merged(found)


def refusal(subject: Subject, policy: str, reasons: Iterable[str]) -> str:
    """One sentence about an image that a policy refuses, with what was wrong about the evidence."""
    unlike = list(dict.fromkeys(printable(reason[:_MAX_REASON]) for reason in reasons))
    more = f"; and {len(unlike) - _MAX_REASONS} more" if len(unlike) > _MAX_REASONS else ""
    return f"{subject.reference}: refused by {policy}: {'; '.join(unlike[:_MAX_REASONS])}{more}"


def candidates(evidence: Evidence, formats: frozenset[Kind], reasons: list[str]) -> tuple[Signed, ...]:
    """Everything of these forms that can be read; why the rest cannot goes to ``reasons``."""
    found: list[Signed] = []
    if Kind.BUNDLES in formats:
        found += _read(evidence.bundles, "bundle", lambda each, name: (bundles.parse(each, name),), reasons)
    if Kind.SIMPLE in formats:
        found += _read(evidence.simple, "signature", lambda each, name: (legacy.signature(each, name),), reasons)
    if Kind.ATTESTATIONS in formats:
        found += _read(evidence.attestations, "attestation", legacy.attestations, reasons)
    return tuple(found)


def limited(pieces: Sequence[T], noun: str, reasons: list[str]) -> Iterator[tuple[T, str]]:
    """As many as are looked at, with a name each."""
    if len(pieces) > MAX_ITEMS:
        reasons.append(f"it has {len(pieces)} {noun}s, and {MAX_ITEMS} are looked at")
    for number, piece in enumerate(pieces[:MAX_ITEMS], 1):
        yield piece, f"{noun} {number}"


def _read(
    pieces: Sequence[T], noun: str, parse: Callable[[T, str], tuple[Signed, ...]], reasons: list[str]
) -> list[Signed]:
    found: list[Signed] = []
    for piece, name in limited(pieces, noun, reasons):
        try:
            found += parse(piece, name)
        except Unverified as error:
            reasons.append(error.what)
    if len(found) > MAX_ITEMS:
        # An envelope can have many.
        reasons.append(f"its {noun}s have {len(found)} signatures, and {MAX_ITEMS} are looked at")
    return found[:MAX_ITEMS]


def _endorsement(
    endorser: Endorser, offered: Sequence[Signed], subject: Subject, now: datetime, reasons: list[str]
) -> Endorsement:
    signatures: list[Signer] = []
    attested: list[tuple[Signer, Statement]] = []
    heard: set[tuple[str, bytes]] = set()
    for this in offered:
        try:
            signer = endorser.authority.verify(this, now)
            # A genuine signature can be offered any number of times; what it is over is read once.
            if (signer.name, this.digest) in heard:
                continue
            heard.add((signer.name, this.digest))
            statement = _said(this, signer, subject, endorser.identity)
        except Unverified as error:
            reasons.append(error.what)
            continue
        if statement is None:
            signatures.append(signer)
        else:
            attested.append((signer, statement))
    kinds = {said.predicate_type for _, said in attested} | ({statements.SIGNATURE} if signatures else set())
    if missing := [kind for kind in endorser.predicates if kind not in kinds]:
        raise Unverified(f"it has no trusted attestation of type {', '.join(missing)}")
    if not endorser.predicates and not signatures:
        raise Unverified("it has no signature of anybody who is trusted" if offered else "it is not signed")
    counted = [signer for signer, said in attested if said.predicate_type in endorser.predicates]
    if not endorser.predicates or statements.SIGNATURE in endorser.predicates:
        counted += signatures
    ends = [signer.expires for signer in counted if signer.expires is not None]
    return Endorsement(
        tuple(dict.fromkeys(signer.name for signer in (*signatures, *counted))),
        tuple(statement for _, statement in attested),
        (),
        min(ends) if ends else None,
    )


def _said(this: Signed, signer: Signer, subject: Subject, identity: SignedIdentity) -> Statement | None:
    """What the signer says of this image: a statement, or ``None`` for a plain signature.

    :raises Unverified: it is about something else.
    """
    if this.simple:
        claim = legacy.claim(this.payload, this.name)
        if claim.digest not in subject.digests:
            raise Unverified(f"{this.name} is for {claim.digest[:100]}, another image")
        identity.check(subject.reference, claim.reference, this.name)
        return None
    if this.message is None:
        # Whoever signs files of others signs a manifest among them, and has not said that it may run.
        raise Unverified(f"{this.name} is over bytes, and does not say that they are an image")
    found = statements.parse(this.payload_type, this.payload, this.name)
    about = found.about(subject.digests)
    if not about:
        raise Unverified(f"{this.name} is about {len(found.subject)} artifacts, and this image is not among them")
    if found.predicate_type != statements.SIGNATURE:
        return Statement(found.predicate_type, found.predicate, signer.name)
    _check_names(identity, subject, [each.name for each in about], this.name)
    return None


def _check_names(identity: SignedIdentity, subject: Subject, names: Sequence[str], name: str) -> None:
    """A statement may have a digest under several names; one that fits is enough."""
    for said in names[:-1]:
        try:
            return identity.check(subject.reference, said, name)
        except Unverified:
            continue
    return identity.check(subject.reference, names[-1], name)
