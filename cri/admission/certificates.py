"""The webhook's own authority and certificate: what there is, what is to be made of it, and when. No I/O.

An authority is told to API servers long before anything is signed by it: its successor is made after two thirds of its
life, and takes over after five sixths. Until it ends, the one before stays among those that are told. A serving
certificate is renewed after two thirds of its life, by the same authority. So no replica ever shows what an API server
has not been told of, whichever of them does the work.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SKEW: Final = timedelta(minutes=5)
"""Clocks of a cluster that are behind shall not take a new certificate for one of the future."""
RENEWED: Final = 2 / 3
SUCCEEDED: Final = 5 / 6
"""Parts of a life, after which there is another certificate, or a successor that takes over."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: bytes

    @property
    def parsed(self) -> x509.Certificate:
        """The certificate."""
        return x509.load_pem_x509_certificate(self.certificate)

    def at(self, part: float) -> datetime:
        """When that part of its life is over."""
        found = self.parsed
        begin, end = found.not_valid_before_utc, found.not_valid_after_utc
        return begin + (end - begin) * part


@dataclass(frozen=True, slots=True)
class State:
    """What a Secret has. ``old`` is the certificate of the authority before; empty: there was none."""

    ca: Pair | None = None
    next: Pair | None = None
    old: bytes = b""
    tls: Pair | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What certificates are for and how long. ``names``: the server's, the first of which the API server asks for."""

    names: tuple[str, ...]
    certificate: timedelta
    ca: timedelta


def server_names(service: str, namespace: str) -> tuple[str, ...]:
    """What a Service is called by those who call a webhook, and by people."""
    return (f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local", f"{service}.{namespace}")


def read(data: Mapping[str, object]) -> State:
    """What a Secret's ``data`` has. What is none of it, or not whole, counts as not there, and is made anew.

    An authority without its key is one of before: what it has signed is still shown.
    """
    ca = _pair(data, "ca")
    old = _decoded(data, "old.crt" if ca is not None else "ca.crt")
    return State(ca=ca, next=_pair(data, "next"), old=old if _certificate(old) else b"", tls=_pair(data, "tls"))


def written(state: State) -> dict[str, str]:
    """The ``data`` of the Secret."""
    found: dict[str, bytes] = {}
    for name, pair in (("ca", state.ca), ("next", state.next), ("tls", state.tls)):
        if pair is not None:
            found |= {f"{name}.crt": pair.certificate, f"{name}.key": pair.key}
    if state.old:
        found["old.crt"] = state.old
    return {key: base64.b64encode(value).decode() for key, value in found.items()}


def bundle(state: State, now: datetime) -> bytes:
    """Whom API servers are to believe: the authority, its successor, and the one before until it ends."""
    found = [pair.certificate for pair in (state.ca, state.next) if pair is not None]
    if state.old and x509.load_pem_x509_certificate(state.old).not_valid_after_utc > now:
        found.append(state.old)
    return b"".join(found)


def renewed(state: State, terms: Terms, now: datetime) -> State:
    """What is to be there now; the same object where nothing is to be changed."""
    ca, successor, old = state.ca, state.next, state.old
    if successor is not None and successor.parsed.not_valid_after_utc <= now:
        successor = None
    if successor is not None and (ca is None or now >= ca.at(SUCCEEDED)):
        ca, successor, old = successor, None, ca.certificate if ca is not None else old
    if ca is None or ca.parsed.not_valid_after_utc <= now:
        ca = _authority(terms, now)
    if successor is None and now >= ca.at(RENEWED):
        successor = _authority(terms, now)
    if old and x509.load_pem_x509_certificate(old).not_valid_after_utc <= now:
        old = b""
    made = State(ca, successor, old, _certified(state.tls, ca, terms, now))
    return state if made == state else made


def _certified(tls: Pair | None, ca: Pair, terms: Terms, now: datetime) -> Pair:
    if tls is None or not signed(tls, ca) or now >= tls.at(RENEWED):
        return _serving(ca, terms.names, terms, now)
    # Those of another replica stay: two that are told different names must not take turns for ever.
    held = _names(tls)
    return tls if {*terms.names} <= {*held} else _serving(ca, (*terms.names, *held), terms, now)


def due(state: State) -> datetime:
    """When :func:`renewed` will next have something to do, after it has just been asked."""
    dates = [pair.at(RENEWED) for pair in (state.tls,) if pair is not None]
    if state.ca is not None:
        dates.append(state.ca.at(RENEWED if state.next is None else SUCCEEDED))
    if state.old:
        dates.append(x509.load_pem_x509_certificate(state.old).not_valid_after_utc)
    return min(dates, default=datetime.now(UTC))


def _pair(data: Mapping[str, object], name: str) -> Pair | None:
    pair = Pair(_decoded(data, f"{name}.crt"), _decoded(data, f"{name}.key"))
    found = _certificate(pair.certificate)
    if found is None:
        return None
    try:
        return pair if _key(pair.key).public_key() == found.public_key() else None
    except (ValueError, TypeError):
        return None


def _key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """:raises ValueError: it is none. :raises TypeError: it is of another kind than those that are made here."""
    found = serialization.load_pem_private_key(pem, None)
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise TypeError("not an ECDSA key")
    return found


def _decoded(data: Mapping[str, object], key: str) -> bytes:
    value = data.get(key)
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        return b""


def _certificate(pem: bytes) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        return None


def signed(tls: Pair, ca: Pair) -> bool:
    """Whether that authority did."""
    try:
        tls.parsed.verify_directly_issued_by(ca.parsed)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _names(tls: Pair) -> tuple[str, ...]:
    try:
        found = tls.parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(found.get_values_for_type(x509.DNSName))


def _authority(terms: Terms, now: datetime) -> Pair:
    """A new authority, that signs no other."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _named("forgeone-admission authority")
    made = (
        _builder(name, name, key, now, now + terms.ca)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _made(made, key)


def _serving(ca: Pair, names: tuple[str, ...], terms: Terms, now: datetime) -> Pair:
    """A new serving certificate, which does not outlive its authority."""
    issuer = ca.parsed
    signer = _key(ca.key)
    key = ec.generate_private_key(ec.SECP256R1())
    end = min(now + terms.certificate, issuer.not_valid_after_utc)
    made = (
        # A common name has 64 characters at most (RFC 5280), and nobody looks at it.
        _builder(_named("forgeone-admission"), issuer.subject, key, now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in dict.fromkeys(names)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _made(made, key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(end)
    )


def _named(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _made(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
