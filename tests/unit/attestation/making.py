"""Makes what signers make: keys, certificates, logs, and signatures of every form."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from forgeone_shim.attestation import dsse
from forgeone_shim.attestation.evidence import SimpleSignature, Subject
from forgeone_shim.registry.reference import Reference

FIXTURES = Path(__file__).parent / "fixtures"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DIGEST = f"sha256:{'1' * 64}"
OTHER = f"sha256:{'2' * 64}"
INDEX = f"sha256:{'3' * 64}"
SIGN = "https://sigstore.dev/cosign/sign/v1"
SLSA = "https://slsa.dev/provenance/v1"
PROVENANCE = {"buildDefinition": {"buildType": "make"}, "runDetails": {"builder": {"id": "here"}}}
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
IN_TOTO = "application/vnd.in-toto+json"

Private = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
P256 = ec.generate_private_key(ec.SECP256R1())
STRANGER = ec.generate_private_key(ec.SECP256R1())


def subject(text: str = "registry.example/team/app:v1", digest: str = DIGEST, index: str = "") -> Subject:
    return Subject(Reference.parse(text), digest, index)


def pem(key: Private) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def spki(key: Private) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def sign(key: Private, message: bytes, hash_: hashes.HashAlgorithm | None = None) -> bytes:
    hash_ = hash_ or hashes.SHA256()
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), hash_)
    return key.sign(message, ec.ECDSA(hash_))


def statement(digest: str = DIGEST, predicate_type: str = SIGN, predicate: Any = None, name: str = "") -> bytes:
    algorithm, _, value = digest.partition(":")
    one = {"digest": {algorithm: value}, **({"name": name} if name else {})}
    return json.dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [one],
            "predicateType": predicate_type,
            "predicate": predicate if predicate is not None else {},
        }
    ).encode()


def bundle(
    key: Private,
    payload: bytes | None = None,
    *,
    payload_type: str = IN_TOTO,
    chain: Sequence[x509.Certificate] = (),
    log: Log | None = None,
    promised: bool = True,
) -> bytes:
    """A sigstore bundle over an envelope."""
    payload = statement() if payload is None else payload
    message = dsse.pae(payload_type, payload)
    signature = sign(key, message)
    certificates = [each.public_bytes(serialization.Encoding.DER) for each in chain]
    material: dict[str, Any] = (
        {"certificate": {"rawBytes": b64(certificates[0])}}
        if len(certificates) == 1
        else {"x509CertificateChain": {"certificates": [{"rawBytes": b64(each)} for each in certificates]}}
        if certificates
        else {"publicKey": {"hint": "any"}}
    )
    if log is not None:
        verifier = chain[0].public_bytes(serialization.Encoding.PEM) if chain else pem(key)
        body = dsse_body(payload, signature, verifier)
        material["tlogEntries"] = [log.entry(body, "dsse", promised=promised)]
    return json.dumps(
        {
            "mediaType": BUNDLE,
            "verificationMaterial": material,
            "dsseEnvelope": {
                "payload": b64(payload),
                "payloadType": payload_type,
                "signatures": [{"sig": b64(signature), "keyid": ""}],
            },
        }
    ).encode()


def dsse_body(payload: bytes, signature: bytes, verifier: bytes) -> bytes:
    """What Rekor keeps of an envelope."""
    return rfc8785.dumps(
        {
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": {"algorithm": "sha256", "value": "00" * 32},
                "payloadHash": {"algorithm": "sha256", "value": sha256(payload).hexdigest()},
                "signatures": [{"signature": b64(signature), "verifier": b64(verifier)}],
            },
        }
    )


def hashedrekord_body(message: bytes, signature: bytes, verifier: bytes) -> bytes:
    """What Rekor keeps of any other signature."""
    return rfc8785.dumps(
        {
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": sha256(message).hexdigest()}},
                "signature": {"content": b64(signature), "publicKey": {"content": b64(verifier)}},
            },
        }
    )


def simple_payload(digest: str = DIGEST, reference: str = "registry.example/team/app:v1") -> bytes:
    return json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": reference},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    ).encode()


def simple(
    key: Private,
    payload: bytes | None = None,
    *,
    chain: Sequence[x509.Certificate] = (),
    log: Log | None = None,
) -> SimpleSignature:
    """A layer of a ``.sig`` image."""
    payload = simple_payload() if payload is None else payload
    signature = sign(key, payload)
    texts = [each.public_bytes(serialization.Encoding.PEM).decode() for each in chain]
    rekor = ""
    if log is not None:
        verifier = texts[0].encode() if texts else pem(key)
        rekor = log.legacy(hashedrekord_body(payload, signature, verifier))
    return SimpleSignature(payload, b64(signature), texts[0] if texts else "", "".join(texts[1:]), rekor)


@dataclass
class Log:
    """A transparency log of one entry."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    time: int = int(NOW.timestamp()) - 60

    def promise(self, body: bytes) -> bytes:
        said = {
            "body": b64(body),
            "integratedTime": self.time,
            "logID": sha256(spki(self.key)).hexdigest(),
            "logIndex": 7,
        }
        return sign(self.key, rfc8785.dumps(said))

    def entry(self, body: bytes, kind: str, *, promised: bool = True) -> dict[str, Any]:
        root = sha256(b"\x00" + body).digest()
        note = f"log.example\n1\n{b64(root)}\n"
        checkpoint = (
            f"{note}\n\u2014 log.example {b64(sha256(spki(self.key)).digest()[:4] + sign(self.key, note.encode()))}\n"
        )
        return {
            "logIndex": "7",
            "logId": {"keyId": b64(sha256(spki(self.key)).digest())},
            "kindVersion": {"kind": kind, "version": "0.0.1"},
            "integratedTime": str(self.time),
            "canonicalizedBody": b64(body),
            "inclusionProof": {
                "logIndex": "0",
                "treeSize": "1",
                "rootHash": b64(root),
                "hashes": [],
                "checkpoint": {"envelope": checkpoint},
            },
            **({"inclusionPromise": {"signedEntryTimestamp": b64(self.promise(body))}} if promised else {}),
        }

    def legacy(self, body: bytes) -> str:
        return json.dumps(
            {
                "SignedEntryTimestamp": b64(self.promise(body)),
                "Payload": {
                    "body": b64(body),
                    "integratedTime": self.time,
                    "logIndex": 7,
                    "logID": sha256(spki(self.key)).hexdigest(),
                },
            }
        )


class Ca:
    """A certificate authority, and signers with its certificates."""

    def __init__(self, name: str = "root", above: Ca | None = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.above = above
        self.certificate = certificate(
            self.key,
            name,
            above,
            [
                (x509.BasicConstraints(True, None), True),
                (usage(key_cert_sign=True, crl_sign=True, digital_signature=False), True),
            ],
            timedelta(days=-3650),
            timedelta(days=3650),
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def signer(
        self,
        *extensions: x509.ExtensionType,
        purposes: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CODE_SIGNING,),
        since: timedelta = timedelta(days=-1),
        until: timedelta = timedelta(days=1),
        key: Private = P256,
        use: x509.KeyUsage | None = None,
    ) -> list[x509.Certificate]:
        """A signer's certificate and those above it, the root last."""
        wanted: list[tuple[x509.ExtensionType, bool]] = [(use or usage(), True)]
        if purposes:
            wanted.append((x509.ExtendedKeyUsage(list(purposes)), False))
        wanted += [(each, False) for each in extensions]
        chain = [certificate(key, "signer", self, wanted, since, until)]
        above: Ca | None = self
        while above is not None:
            chain.append(above.certificate)
            above = above.above
        return chain


def usage(**uses: bool) -> x509.KeyUsage:
    every = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**{**every, "digital_signature": True, **uses})


def certificate(
    key: Private,
    name: str,
    issuer: Ca | None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
    since: timedelta,
    until: timedelta,
) -> x509.Certificate:
    subject_name = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "WA"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject_name)
        .issuer_name(issuer.certificate.subject if issuer is not None else subject_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + since)
        .not_valid_after(NOW + until)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    signer = issuer.key if issuer is not None else key
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(signer, algorithm)


def jws(
    key: Private,
    chain: Sequence[x509.Certificate],
    digest: str = DIGEST,
    *,
    protected: dict[str, Any] | None = None,
    payload: bytes | None = None,
) -> bytes:
    """A Notary Project signature."""
    payload = (
        payload
        or json.dumps(
            {"targetArtifact": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1}}
        ).encode()
    )
    head = {
        "alg": "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "PS256",
        "cty": "application/vnd.cncf.notary.payload.v1+json",
        "crit": ["io.cncf.notary.signingScheme"],
        "io.cncf.notary.signingScheme": "notary.x509",
        "io.cncf.notary.signingTime": "2026-11-22T11:00:00Z",
        **(protected or {}),
    }
    first, second = url64(json.dumps(head).encode()), url64(payload)
    message = f"{first}.{second}".encode()
    if isinstance(key, ec.EllipticCurvePrivateKey):
        r, s = utils.decode_dss_signature(sign(key, message))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    elif isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(message, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    else:
        signature = key.sign(message)
    x5c = [b64(each.public_bytes(serialization.Encoding.DER)) for each in chain]
    return json.dumps(
        {"payload": second, "protected": first, "header": {"x5c": x5c}, "signature": url64(signature)}
    ).encode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def fixture(path: str) -> bytes:
    return (FIXTURES / path).read_bytes()


def cosign_signature(name: str) -> SimpleSignature:
    """One of containers-image's."""
    found = json.loads(fixture(f"containers-image/{name}.json"))
    notes = found["annotations"]
    return SimpleSignature(
        base64.b64decode(found["payload"]),
        notes["dev.cosignproject.cosign/signature"],
        notes.get("dev.sigstore.cosign/certificate", ""),
        notes.get("dev.sigstore.cosign/chain", ""),
        notes.get("dev.sigstore.cosign/bundle", ""),
    )
