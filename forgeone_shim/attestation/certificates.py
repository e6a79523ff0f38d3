"""X.509 certificates of signers: whether they lead to a root that is trusted, and whom they name (RFC 5280).

Path building, signatures, validity, path lengths, name constraints and critical extensions that nobody knows are
``cryptography``'s; what a certificate has to allow is said here, since its defaults are those of web servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import partial
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from forgeone_shim.attestation.signed import MAX_CERTIFICATES, MAX_CHAIN, Unverified
from forgeone_shim.errors import FailedPrecondition

_SERVE_OTHERS: Final = frozenset(
    {
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.EMAIL_PROTECTION,
        ExtendedKeyUsageOID.TIME_STAMPING,
    }
)
# What cryptography raises at a certificate that it cannot read.
UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
# https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md
_ISSUER_1: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER_2: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_BUILD_SIGNER: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.9")
_UTF8_STRING: Final = 0x0C
_OTHER_NAME: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7")


class Profile(Enum):
    """What a signer's certificate has to allow."""

    FULCIO = "fulcio"
    """Its extended key usage names code signing."""
    PRIVATE = "private"
    """The same, or it has none: what Go's verifier asks for, and so cosign with a private CA."""
    NOTATION = "notation"
    """The Notary Project's: a critical key usage for signatures alone; an extended one, if any, for code."""


@dataclass(frozen=True, slots=True)
class Names:
    """Whom a certificate was issued to. ``issuer`` and ``build_signer`` are Fulcio's, ``""`` in other certificates."""

    emails: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    issuer: str = ""
    build_signer: str = ""

    @property
    def all(self) -> tuple[str, ...]:
        """Every name of the subject that a signer may go by."""
        return self.emails + self.uris + self.others


def load(ders: Sequence[bytes], name: str) -> tuple[x509.Certificate, ...]:
    """:raises Unverified: one cannot be read, there are none, or they are too large."""
    if not ders:
        raise Unverified(f"{name} has no certificate")
    if sum(map(len, ders)) > MAX_CERTIFICATES:
        raise Unverified(f"{name}: its certificates are larger than {MAX_CERTIFICATES} bytes")
    try:
        found = tuple(x509.load_der_x509_certificate(each) for each in ders)
        for each in found:
            _read_whole(each)
    except UNREADABLE:
        raise Unverified(f"{name}: its certificate cannot be read") from None
    return found


def load_pem(data: bytes, name: str) -> tuple[x509.Certificate, ...]:
    """All certificates of a PEM text, at least one. :raises FailedPrecondition: it has none, or others than that."""
    if data.count(b"-----BEGIN") != data.count(b"-----BEGIN CERTIFICATE-----"):
        raise FailedPrecondition(f"{name}: has others than certificates")
    try:
        found = tuple(x509.load_pem_x509_certificates(data))
        for each in found:
            _read_whole(each)
    except UNREADABLE:
        raise FailedPrecondition(f"{name}: holds no certificates in PEM form") from None
    return found


def verify(
    chain: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    at: datetime,
    profile: Profile,
    name: str,
    *,
    intermediates: Sequence[x509.Certificate] = (),
) -> tuple[x509.Certificate, ...]:
    """The path from the first of ``chain`` to one of ``roots``, both included.

    :param at: when all of them have to be valid.
    :param intermediates: certificates that may be between, beside those of the chain.
    :raises Unverified: there is no such path, or a certificate on it does not allow what it is used for.
    """
    leaf, *others = dict.fromkeys(chain)
    if len({each.subject for each in others}) < len(others):
        # Every way through them would be tried, and strangers could make a chain of thousands.
        raise Unverified(f"{name}: two of its issuers have the same subject")
    try:
        verifier = (
            PolicyBuilder()
            .store(Store(list(roots)))
            .time(at)
            .max_chain_depth(MAX_CHAIN)
            .extension_policies(
                ca_policy=ExtensionPolicy.permit_all()
                .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
                .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _authority_usage)
                .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _authority_purpose),
                ee_policy=ExtensionPolicy.permit_all()
                .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _no_authority)
                .require_present(x509.KeyUsage, Criticality.AGNOSTIC, partial(_usage, profile))
                .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, partial(_purpose, profile)),
            )
            .build_client_verifier()
        )
        path = tuple(verifier.verify(leaf, [*others, *intermediates]).chain)
    except (VerificationError, *UNREADABLE) as error:
        raise Unverified(f"{name}: its certificate is not trusted: {str(error)[:300]}") from None
    return path


def names(certificate: x509.Certificate, name: str) -> Names:
    """Whom it names. :raises Unverified: its extensions cannot be read, or contradict each other."""
    try:
        extensions = certificate.extensions
        issuer_1, issuer_2 = _extension(extensions, _ISSUER_1), _extension(extensions, _ISSUER_2)
        issuers = {*([issuer_1.decode()] if issuer_1 else ()), *([_text(issuer_2)] if issuer_2 else ())}
        if len(issuers) > 1:
            raise Unverified(f"{name}: its certificate names two issuers")
        signer = _extension(extensions, _BUILD_SIGNER)
        issuer, build_signer = "".join(issuers), _text(signer) if signer else ""
        try:
            found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return Names(issuer=issuer, build_signer=build_signer)
        return Names(
            tuple(found.get_values_for_type(x509.RFC822Name)),
            tuple(found.get_values_for_type(x509.DNSName)),
            tuple(found.get_values_for_type(x509.UniformResourceIdentifier)),
            tuple(
                _text(each.value) for each in found.get_values_for_type(x509.OtherName) if each.type_id == _OTHER_NAME
            ),
            issuer,
            build_signer,
        )
    except UNREADABLE as error:
        raise Unverified(f"{name}: its certificate cannot be read: {str(error)[:200]}") from None


def der(certificate: x509.Certificate) -> bytes:
    """As it is signed."""
    return certificate.public_bytes(Encoding.DER)


def _read_whole(certificate: x509.Certificate) -> None:
    """``cryptography`` parses each part when it is asked for: what cannot be read is to be known before."""
    for name in (certificate.subject, certificate.issuer):
        name.rfc4514_string()
    _ = certificate.extensions, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    certificate.public_key()


def _text(der_: bytes) -> str:
    """A UTF8String, and nothing after it (X.690 sections 8.1.3 and 8.21). :raises ValueError: it is none."""
    if len(der_) < 2 or der_[0] != _UTF8_STRING:
        raise ValueError("an extension is no text")
    octets = der_[2 : 2 + (der_[1] & 0x7F)] if der_[1] & 0x80 else der_[1:2]
    text = der_[2 + (len(octets) if der_[1] & 0x80 else 0) :]
    if not octets or int.from_bytes(octets, "big") != len(text):
        raise ValueError("an extension is no text")
    return text.decode()


def _extension(extensions: x509.Extensions, oid: x509.ObjectIdentifier) -> bytes:
    for each in extensions:
        if each.oid == oid and isinstance(each.value, x509.UnrecognizedExtension):
            return each.value.value
    return b""


def _no_authority(_: Policy, __: x509.Certificate, found: x509.BasicConstraints | None) -> None:
    if found is not None and found.ca:
        raise ValueError("it is a certificate authority's")


def _authority_usage(_: Policy, __: x509.Certificate, found: x509.KeyUsage | None) -> None:
    if found is not None and not found.key_cert_sign:
        raise ValueError("an issuer's key is not for certificates")


def _authority_purpose(_: Policy, __: x509.Certificate, found: x509.ExtendedKeyUsage | None) -> None:
    """An issuer's purposes, if it names any, are those of all that it issues."""
    if found is not None and not {ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(
        found
    ):
        raise ValueError("an issuer's key is not for code signing")


def _usage(profile: Profile, _: Policy, __: x509.Certificate, found: x509.KeyUsage) -> None:
    check_usage(profile, found)


def _purpose(profile: Profile, _: Policy, __: x509.Certificate, found: x509.ExtendedKeyUsage | None) -> None:
    check_purpose(profile, found)


def check_usage(profile: Profile, found: x509.KeyUsage) -> None:
    """:raises ValueError: its key is not for signatures, or for more than the profile allows."""
    if not found.digital_signature:
        raise ValueError("its key is not for signatures")
    if profile is Profile.NOTATION and (
        found.key_encipherment
        or found.data_encipherment
        or found.key_agreement
        or found.key_cert_sign
        or found.crl_sign
    ):
        raise ValueError("its key is for more than signatures")


def check_purpose(profile: Profile, found: x509.ExtendedKeyUsage | None) -> None:
    """:raises ValueError: it is not for code, or for more."""
    purposes = set(found) if found is not None else set()
    if found is None and profile is not Profile.FULCIO:
        return
    if profile is not Profile.NOTATION and ExtendedKeyUsageOID.CODE_SIGNING not in purposes:
        raise ValueError("it is not for code signing")
    if profile is Profile.NOTATION and purposes & _SERVE_OTHERS:
        raise ValueError("it is for more than code signing")
