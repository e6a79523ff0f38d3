"""Signatures of people and build systems that have no keys: Fulcio knew them, and a log saw them sign.

Whom to trust for that is in a trusted root, a file: nothing is fetched. Bundles are verified by ``sigstore``, an extra
of this package; signatures of before bundles have no proof of inclusion, which it asks for, and are verified here.
https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_trustroot.proto
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

import msgspec
from cryptography import x509

from forgeone_shim.attestation import certificates, publickeys
from forgeone_shim.attestation.authorities import Fulcio, Identity, Signer, identified
from forgeone_shim.attestation.publickeys import VerifyingKey
from forgeone_shim.attestation.signed import Signed, Unverified
from forgeone_shim.errors import InvalidInput

if TYPE_CHECKING:
    from sigstore.verify import Verifier

MEDIA_TYPE: Final = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]
_ALWAYS: Final = datetime.max.replace(tzinfo=UTC)


class _Struct(msgspec.Struct, frozen=True, rename="camel"):
    pass


class _Period(_Struct, frozen=True):
    start: _Moment
    end: _Moment | None = None

    def has(self, moment: datetime) -> bool:
        return self.start <= moment <= (self.end or _ALWAYS)


class _Raw(_Struct, frozen=True):
    raw_bytes: bytes


class _Chain(_Struct, frozen=True):
    certificates: list[_Raw]


class _Authority(_Struct, frozen=True):
    cert_chain: _Chain
    valid_for: _Period
    uri: str = ""


class _Key(_Struct, frozen=True):
    raw_bytes: bytes
    valid_for: _Period


class _Log(_Struct, frozen=True):
    public_key: _Key
    base_url: str = ""


class _Root(_Struct, frozen=True):
    media_type: str
    certificate_authorities: list[_Authority]
    tlogs: list[_Log]
    ctlogs: list[_Log] = []


@dataclass(frozen=True, slots=True)
class _Within:
    """What may be trusted with signatures of that period; ``url`` is where it is."""

    url: str
    period: _Period
    keys: tuple[VerifyingKey, ...] = ()
    roots: tuple[x509.Certificate, ...] = ()
    intermediates: tuple[x509.Certificate, ...] = ()


@dataclass(frozen=True, slots=True)
class TrustedRoot:
    """A trusted root as it was read; ``data`` is the file."""

    data: bytes = field(repr=False)
    _authorities: tuple[_Within, ...] = field(repr=False)
    _logs: tuple[_Within, ...] = field(repr=False)
    _transparency: tuple[_Within, ...] = field(repr=False)

    @classmethod
    def parse(cls, data: bytes, name: str) -> TrustedRoot:
        """Read one. :raises InvalidInput: naming the file."""
        try:
            found = msgspec.json.decode(data, type=_Root)
            if found.media_type != MEDIA_TYPE:
                raise InvalidInput(name, f"is no trusted root of a version known here: {found.media_type[:100]!r}")
            if not found.certificate_authorities or not found.tlogs:
                raise InvalidInput(name, "has no certificate authority, or no transparency log")
            return cls(
                data, tuple(map(_authority, found.certificate_authorities)), _logs(found.tlogs), _logs(found.ctlogs)
            )
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidInput(name, f"is no trusted root: {str(error)[:200]}") from None
        except Unverified as error:
            raise InvalidInput(name, error.what) from None

    def logs(self, url: str = "") -> tuple[VerifyingKey, ...]:
        """The keys of its transparency logs, or of those at that place alone."""
        return tuple(key for each in self._logs if not url or _same(each.url, url) for key in each.keys)

    def issues(self, url: str) -> bool:
        """Whether one of its certificate authorities is at that place."""
        return any(_same(each.url, url) for each in self._authorities)

    def at(self, moment: datetime, identities: tuple[Identity, ...], *, transparency: bool = True) -> Fulcio:
        """Who was trusted then."""
        authorities = [each for each in self._authorities if each.period.has(moment)]
        return Fulcio(
            tuple(root for each in authorities for root in each.roots),
            identities,
            _keys(self._logs, moment),
            tuple(one for each in authorities for one in each.intermediates),
            _keys(self._transparency, moment) if transparency else None,
        )


class Keyless:
    """Identities that the Fulcio of a trusted root knew.

    :param transparency: whether their certificates have to be in a certificate transparency log; ``sigstore`` asks for
        that in any case.
    """

    def __init__(self, root: TrustedRoot, identities: tuple[Identity, ...], *, transparency: bool = True) -> None:
        self._root, self._identities, self._transparency = root, identities, transparency
        self._made: Verifier | None = None

    def verify(self, this: Signed, now: datetime) -> Signer:
        """Whose signature it is. :raises Unverified: nobody's who is trusted."""
        if this.bundle:
            return self._verify_bundle(this)
        moments = [
            datetime.fromtimestamp(each.integrated, UTC) for each in this.entries if 0 < each.integrated < 1 << 37
        ]
        if not moments:
            raise Unverified(f"{this.name} has no entry of a transparency log")
        # That time is trusted once the log's signature over it has been verified, with the keys it chose itself.
        return self._root.at(moments[0], self._identities, transparency=self._transparency).verify(this, now)

    def _verify_bundle(self, this: Signed) -> Signer:
        try:
            from sigstore.hashes import Hashed
            from sigstore.models import Bundle
            from sigstore_models.common.v1 import HashAlgorithm
        except ImportError as error:
            # Of another version, or gone since the policy was read.
            raise Unverified(f"{this.name}: sigstore cannot be used: {error}") from None

        asked = _Asked(self._identities, this.name)
        try:
            bundle = Bundle.from_json(this.bundle)
            if this.message is None:
                self._verifier().verify_artifact(
                    Hashed(algorithm=HashAlgorithm.SHA2_256, digest=this.digest), bundle, asked
                )
            elif self._verifier().verify_dsse(bundle, asked) != (this.payload_type, this.payload):
                raise Unverified(f"{this.name} is read by others in another way")
        except Unverified:
            raise
        except Exception as error:
            # A parser of others, and what it reads may be hostile: whatever it raises, nothing has been verified.
            raise Unverified(f"{this.name}: {str(error)[:300] or type(error).__name__}") from None
        if asked.found is None:
            raise Unverified(f"{this.name}: nobody was asked for")
        return asked.found

    def _verifier(self) -> Verifier:
        if self._made is None:
            from sigstore.models import TrustedRoot as Root
            from sigstore.verify import Verifier

            # It reads files; this one is what was read with the policies, whatever is at that path by now.
            fd = os.memfd_create("trusted-root", os.MFD_CLOEXEC)
            try:
                os.write(fd, self._root.data)
                root = Root.from_file(f"/proc/self/fd/{fd}")
            finally:
                os.close(fd)
            self._made = Verifier(trusted_root=root)
        return self._made


class _Asked:
    """A policy of ``sigstore`` that remembers whom it let pass."""

    def __init__(self, identities: tuple[Identity, ...], name: str) -> None:
        self._identities, self._name = identities, name
        self.found: Signer | None = None

    def verify(self, cert: x509.Certificate) -> None:
        """:raises Unverified: it is nobody's who is trusted."""
        self.found = identified(certificates.names(cert, self._name), self._identities, self._name)


def installed() -> bool:
    """Whether ``sigstore`` is here."""
    return find_spec("sigstore") is not None


def _authority(found: _Authority) -> _Within:
    chain = certificates.load([each.raw_bytes for each in found.cert_chain.certificates], "a certificate authority")
    roots = tuple(each for each in chain if each.issuer == each.subject) or chain[-1:]
    return _Within(found.uri, found.valid_for, (), roots, tuple(each for each in chain if each not in roots))


def _logs(found: Sequence[_Log]) -> tuple[_Within, ...]:
    return tuple(
        _Within(each.base_url, each.public_key.valid_for, (publickeys.of_der(each.public_key.raw_bytes),))
        for each in found
    )


def _same(one: str, other: str) -> bool:
    """Whether two URLs are of one host and path; policies are often careless about the rest."""
    return _place(one) == _place(other)


def _place(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc.lower(), parts.path.rstrip("/")


def _keys(of: Sequence[_Within], moment: datetime) -> tuple[VerifyingKey, ...]:
    return tuple(key for each in of if each.period.has(moment) for key in each.keys)
