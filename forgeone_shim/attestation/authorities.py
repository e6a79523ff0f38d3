"""Who may sign: keys, certificates of a private CA, and identities that Fulcio vouched for.

Each takes a signature of any form, and says whose it is or why it is nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from cryptography import x509

from forgeone_shim.attestation import certificates, publickeys, rekor, timestamps
from forgeone_shim.attestation.certificates import Names, Profile
from forgeone_shim.attestation.publickeys import VerifyingKey
from forgeone_shim.attestation.signed import Signed, Unverified, printable

if TYPE_CHECKING:
    from forgeone_shim.attestation.patterns import Pattern

_MAX_TIME: Final = 253402300799  # The last second that has four digits for its year.


@dataclass(frozen=True, slots=True)
class Signer:
    """Who made a signature. ``expires`` is when that stops being so, in seconds since the epoch; ``None``: never."""

    name: str
    expires: float | None = None


class Authority(Protocol):
    """Somebody who is trusted to sign."""

    def verify(self, this: Signed, now: datetime) -> Signer:
        """Whose signature this is. :raises Unverified: nobody's who is trusted."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The owner of any of these keys; where ``logs`` is not empty, only with an entry in one of those logs."""

    keys: tuple[VerifyingKey, ...]
    logs: tuple[VerifyingKey, ...] = ()

    def verify(self, this: Signed, now: datetime) -> Signer:  # noqa: ARG002
        """Keys have no end; a certificate beside the signature says nothing."""
        for key in self.keys:
            if key.signed(this):
                if self.logs:
                    rekor.witnessed(this, key.der, self.logs)
                return Signer(f"key:{key.id}")
        raise Unverified(f"{this.name} is of none of the trusted keys")


@dataclass(frozen=True, slots=True)
class PrivateCa:
    """Holders of certificates of a CA; where ``logs`` is not empty, a log's time counts in place of today's."""

    roots: tuple[x509.Certificate, ...]
    intermediates: tuple[x509.Certificate, ...] = ()
    email: str = ""
    host: str = ""
    logs: tuple[VerifyingKey, ...] = ()

    def verify(self, this: Signed, now: datetime) -> Signer:
        """Names have to be equal, each that is given."""
        chain, leaf = _signing(this)
        when = _time(rekor.witnessed(this, certificates.der(leaf), self.logs, timed=True)) if self.logs else now
        path = certificates.verify(
            chain, self.roots, when, Profile.PRIVATE, this.name, intermediates=self.intermediates
        )
        names = certificates.names(leaf, this.name)
        for kind, wanted, found in (("host", self.host, names.hosts), ("email", self.email, names.emails)):
            if wanted and wanted not in found:
                raise Unverified(f"{this.name}: its certificate is not of the {kind} {wanted!r}")
        until = None if self.logs else min(each.not_valid_after_utc for each in path).timestamp()
        return Signer(f"x509:{self.email or self.host}", until)


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom an OpenID provider knows: ``issuer`` is the provider, ``subject`` an address, URI or user name.

    Each is compared as it is, or where there is a pattern, has to have what matches that somewhere in it.
    """

    issuer: str = ""
    subject: str = ""
    build_signer: str = ""
    issuer_pattern: Pattern | None = None
    subject_pattern: Pattern | None = None

    def fits(self, names: Names) -> str:
        """The name it goes by; ``""`` where it is somebody else."""
        issued = self.issuer_pattern.search(names.issuer) if self.issuer_pattern else names.issuer == self.issuer
        if not issued or (self.build_signer and names.build_signer != self.build_signer):
            return ""
        if not (self.subject or self.subject_pattern):
            return names.build_signer if self.build_signer else ""
        for name in names.all:
            if self.subject_pattern.search(name) if self.subject_pattern else name == self.subject:
                return name
        return ""


@dataclass(frozen=True, slots=True)
class Fulcio:
    """Holders of short-lived certificates of a Fulcio, who signed while theirs was valid by the time of a Rekor log.

    ``transparency`` are keys of certificate transparency logs of which one has to have the certificate; ``None``: that
    is not asked, as containers-policy.json(5) has it.
    """

    roots: tuple[x509.Certificate, ...]
    identities: tuple[Identity, ...]
    logs: tuple[VerifyingKey, ...]
    intermediates: tuple[x509.Certificate, ...] = ()
    transparency: tuple[VerifyingKey, ...] | None = None

    def verify(self, this: Signed, now: datetime) -> Signer:  # noqa: ARG002
        """The log's time is the only one that counts: the certificate was valid for minutes."""
        chain, leaf = _signing(this)
        when = _time(rekor.witnessed(this, certificates.der(leaf), self.logs, timed=True))
        path = certificates.verify(chain, self.roots, when, Profile.FULCIO, this.name, intermediates=self.intermediates)
        if self.transparency is not None:
            timestamps.verify(leaf, path[1], self.transparency, this.name)
        return identified(certificates.names(leaf, this.name), self.identities, this.name)


def identified(names: Names, identities: Sequence[Identity], name: str) -> Signer:
    """Which of these it is. :raises Unverified: none."""
    for identity in identities:
        if found := identity.fits(names):
            return Signer(printable(f"keyless:{found}"))
    who = ", ".join(names.all)[:200] or "nobody"
    raise Unverified(f"{name} is of {who} by {names.issuer[:200] or 'no issuer'}, who is not trusted")


def _signing(this: Signed) -> tuple[tuple[x509.Certificate, ...], x509.Certificate]:
    """The certificates, and the one whose key made the signature."""
    chain = certificates.load(this.chain, this.name)
    try:
        key = publickeys.of(chain[0].public_key())
    except Unverified:
        raise Unverified(f"{this.name}: its certificate is of a key that nothing is verified with") from None
    if not key.signed(this):
        raise Unverified(f"{this.name} was not made with the key of its certificate")
    return chain, chain[0]


def _time(seconds: int) -> datetime:
    if not 0 < seconds <= _MAX_TIME:
        raise Unverified("its log entry has no time")
    return datetime.fromtimestamp(seconds, UTC)
