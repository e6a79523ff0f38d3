"""What a registry that means harm can make of genuine signatures, and of none: it costs little, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509

from forgeone_shim.attestation import bundles, certificates, dsse, legacy, notation, publickeys, statements
from forgeone_shim.attestation.authorities import Keys
from forgeone_shim.attestation.certificates import Profile
from forgeone_shim.attestation.evidence import MAX_ITEM, MAX_ITEMS, Evidence, Kind, LegacyAttestation, SimpleSignature
from forgeone_shim.attestation.identity import Match, SignedIdentity
from forgeone_shim.attestation.rules import Endorsed, Endorser, candidates
from forgeone_shim.attestation.signed import MAX_CERTIFICATES, MAX_CHAIN, MAX_ENTRY, MAX_SIGNATURE, Unverified
from tests.unit.attestation import making
from tests.unit.attestation.making import DIGEST, IN_TOTO, NOW, OTHER, P256, PROVENANCE, SLSA, b64, bundle, pem, subject

CA = making.Ca()
RULE = Endorsed(
    "a policy",
    (Endorser(Keys((publickeys.read(pem(P256), "key"),)), frozenset(Kind), SignedIdentity(Match.ANY)),),
)


def attested(digest: str, *notes: str) -> list[LegacyAttestation]:
    """One genuine attestation, with its signature as often as an envelope can have one, in several layers."""
    payload = making.statement(digest, SLSA, PROVENANCE)
    # ECDSA has another signature each time.
    signatures = [{"sig": b64(making.sign(P256, dsse.pae(IN_TOTO, payload)))} for _ in range(dsse.MAX_SIGNATURES // 2)]
    envelope = {"payload": b64(payload), "payloadType": IN_TOTO, "signatures": [*signatures, *signatures]}
    return [LegacyAttestation(json.dumps(envelope).encode(), chain=note) for note in notes]


def test_an_attestation_that_is_offered_many_times_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    parse = statements.parse

    def counted(payload_type: str, payload: bytes, name: str) -> statements.Statement:
        parsed.append(name)
        return parse(payload_type, payload, name)

    monkeypatch.setattr(statements, "parse", counted)
    evidence = Evidence((bundle(P256),), attestations=(*attested(DIGEST, "a", "b"), *attested(OTHER, "c", "d")))
    endorsement = RULE.check(subject(), evidence, NOW)
    assert [one.predicate_type for one in endorsement.attestations] == [SLSA]
    assert parsed == ["bundle 1", "attestation 1", "attestation 3"]


def test_no_more_signatures_are_verified_than_the_limit() -> None:
    signed = legacy.attestations(attested(DIGEST, "")[0], "it")
    offered = attested(DIGEST, *(str(number) for number in range(MAX_ITEMS // len(signed) + 1)))
    reasons: list[str] = []
    found = candidates(Evidence(attestations=tuple(offered)), frozenset({Kind.ATTESTATIONS}), reasons)
    assert (len(found), len(reasons)) == (MAX_ITEMS, 1)


def test_of_a_checkpoint_s_signatures_the_first_few_are_verified() -> None:
    log = making.Log()
    key, trusted = publickeys.read(pem(P256), "key"), publickeys.read(pem(log.key), "log")
    found: dict[str, Any] = json.loads(bundle(P256, log=log, promised=False))
    checkpoint = found["verificationMaterial"]["tlogEntries"][0]["inclusionProof"]["checkpoint"]
    note, _, own = checkpoint["envelope"].partition("\n\n")
    stranger = own.replace("log.example", "witness.example")
    again = f"\u2014 log.example {b64(bytes(80))}\n"
    for others, good in ((stranger * 20, True), (again * 3, True), (again * 4, False)):
        checkpoint["envelope"] = f"{note}\n\n{others}{own}"
        read = bundles.parse(json.dumps(found).encode(), "it")
        if good:
            assert Keys((key,), (trusted,)).verify(read, NOW).name == f"key:{key.id}"
        else:
            with pytest.raises(Unverified, match="of no trusted log"):
                Keys((key,), (trusted,)).verify(read, NOW)


@pytest.mark.parametrize(
    ("read", "limit"),
    [
        (lambda size: bundles.parse(bytes(size), "it"), MAX_ITEM),
        (lambda size: legacy.attestations(LegacyAttestation(bytes(size)), "it"), MAX_ITEM),
        (lambda size: legacy.signature(SimpleSignature(bytes(size), "YQ=="), "it"), 64 * 1024),
        (lambda size: legacy.signature(SimpleSignature(b"", "a" * 2 * size), "it"), MAX_SIGNATURE),
        (lambda size: legacy.signature(SimpleSignature(b"", "YQ==", "x" * size), "it"), 2 * MAX_CERTIFICATES),
        (lambda size: notation.read(bytes(size), "it"), notation.MAX_ENVELOPE),
    ],
    ids=["bundle", "attestation", "payload", "signature", "certificate", "notation"],
)
def test_each_piece_has_a_size(read: Callable[[int], object], limit: int) -> None:
    with pytest.raises(Unverified, match=f"larger than {limit} bytes"):
        read(limit + 1)


def test_a_chain_beside_a_layer_has_so_many_certificates() -> None:
    pem_ = CA.pem.decode()
    assert len(legacy.signature(SimpleSignature(b"", "YQ==", pem_, pem_ * (MAX_CHAIN - 1)), "it").chain) == MAX_CHAIN
    with pytest.raises(Unverified, match="has 11 certificates, more than 10"):
        legacy.signature(SimpleSignature(b"", "YQ==", pem_, pem_ * MAX_CHAIN), "it")
    with pytest.raises(Unverified, match="its certificates cannot be read"):
        legacy.signature(SimpleSignature(b"", "YQ==", "no certificate"), "it")


def test_a_chain_has_a_size() -> None:
    ca, day = making.Ca(), making.timedelta(days=1)
    names = x509.SubjectAlternativeName([x509.DNSName(f"a{number}.example") for number in range(800)])
    leaf = making.certificate(P256, "signer", ca, [(making.usage(), True), (names, False)], -day, day)
    found = certificates.der(leaf)
    assert len(certificates.load([found] * 2, "it")) == 2
    with pytest.raises(Unverified, match="it: its certificates are larger than 32768 bytes"):
        certificates.load([found] * 3, "it")


def test_a_chain_of_many_ways_is_not_walked() -> None:
    ca, day = making.Ca("stranger"), making.timedelta(days=1)
    extensions = [(x509.BasicConstraints(True, None), True), (making.usage(key_cert_sign=True), True)]
    between = [making.certificate(ca.key, "stranger", ca, extensions, -day, day) for _ in range(2)]
    for chain in ([*ca.signer()[:1], *between], [*ca.signer()[:1], ca.certificate, between[0]]):
        with pytest.raises(Unverified, match="two of its issuers have the same subject"):
            certificates.verify(chain, [ca.certificate], NOW, Profile.PRIVATE, "it")
    # The same one twice is none more.
    assert certificates.verify([*ca.signer(), ca.certificate], [ca.certificate], NOW, Profile.PRIVATE, "it")


def test_the_same_signature_twice_in_an_envelope_is_one() -> None:
    (one,) = attested(DIGEST, "")
    assert len(legacy.attestations(one, "it")) == dsse.MAX_SIGNATURES // 2


def test_a_log_entry_is_no_larger_than_they_are() -> None:
    body = json.dumps({"kind": "dsse", "apiVersion": "0.0.1", "spec": ["x" * MAX_ENTRY]}).encode()
    found: dict[str, Any] = json.loads(bundle(P256, log=making.Log()))
    found["verificationMaterial"]["tlogEntries"][0]["canonicalizedBody"] = b64(body)
    with pytest.raises(Unverified, match=r"is no sigstore bundle: .* <= 262144"):
        bundles.parse(json.dumps(found).encode(), "it")
    with pytest.raises(Unverified, match=r"its log entry cannot be read: .* <= 262144"):
        legacy.signature(SimpleSignature(b"{}", "YQ==", rekor=making.Log().legacy(body)), "it")
    with pytest.raises(Unverified, match="its log entry is larger"):
        legacy.signature(SimpleSignature(b"{}", "YQ==", rekor=making.Log().legacy(body * 2)), "it")
