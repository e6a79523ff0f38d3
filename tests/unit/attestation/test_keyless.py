"""Signers without keys: Fulcio's certificates by a trusted root, verified by sigstore and here."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from forgeone_shim.attestation import bundles, legacy
from forgeone_shim.attestation.authorities import Fulcio, Identity
from forgeone_shim.attestation.evidence import SimpleSignature
from forgeone_shim.attestation.keyless import Keyless, TrustedRoot
from forgeone_shim.attestation.patterns import Pattern
from forgeone_shim.attestation.publickeys import read as read_key
from forgeone_shim.attestation.signed import Unverified
from forgeone_shim.errors import InvalidInput
from tests.unit.attestation import making
from tests.unit.attestation.making import NOW, P256, fixture

ANYBODY = Identity(issuer_pattern=Pattern("^https://"), subject_pattern=Pattern("."))
MITR = Identity("https://github.com/login/oauth", "mitr@redhat.com")


def root(name: str) -> TrustedRoot:
    return TrustedRoot.parse(fixture(f"sigstore-conformance/{name}-root.json"), name)


@pytest.mark.parametrize(
    ("name", "of", "good"),
    [
        ("keyless-dsse", "production", True),
        ("keyless-rekor2-dsse", "rekor2", True),
        ("keyless-dsse", "rekor2", False),
        ("keyless-dsse-mismatch-sig", "production", False),
        ("managed-key", "production", False),
    ],
)
def test_bundles_without_keys_verify_by_the_root_of_their_makers(name: str, of: str, good: bool) -> None:
    pytest.importorskip("sigstore")
    read = bundles.parse(fixture(f"sigstore-conformance/{name}.json"), name)
    authority = Keyless(root(of), (ANYBODY,))
    if good:
        assert authority.verify(read, NOW).name.startswith("keyless:https://github.com/")
        with pytest.raises(Unverified, match="who is not trusted"):
            Keyless(root(of), (MITR,)).verify(read, NOW)
    else:
        with pytest.raises(Unverified, match=name):
            authority.verify(read, NOW)


def test_a_verifier_that_is_gone_verifies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sigstore.models", None)
    read = bundles.parse(fixture("sigstore-conformance/keyless-dsse.json"), "it")
    with pytest.raises(Unverified, match="it: sigstore cannot be used"):
        Keyless(root("production"), (ANYBODY,)).verify(read, NOW)


def test_a_signature_of_before_bundles_verifies_by_the_log_s_time() -> None:
    found = making.cosign_signature("fulcio-rekor-valid")
    authority = Keyless(root("production"), (MITR,))
    assert authority.verify(legacy.signature(found, "it"), NOW).name == "keyless:mitr@redhat.com"
    later = json.loads(found.rekor)
    later["Payload"]["integratedTime"] += 1
    bad = [
        replace(found, rekor=""),
        replace(found, certificate=""),
        replace(found, rekor=json.dumps(later)),
        replace(found, payload=found.payload + b" "),
        replace(found, rekor=making.cosign_signature("key-rekor-valid").rekor),
    ]
    for one in bad:
        with pytest.raises(Unverified):
            authority.verify(legacy.signature(one, "it"), NOW)
    with pytest.raises(Unverified):
        Keyless(root("rekor2"), (MITR,)).verify(legacy.signature(found, "it"), NOW)


ENDED = {"start": "2020-01-01T00:00:00Z", "end": "2022-01-01T00:00:00Z"}
LATER = {"start": "2024-01-01T00:00:00Z"}


@pytest.mark.parametrize("period", [ENDED, LATER])
@pytest.mark.parametrize("part", ["certificateAuthorities", "tlogs", "ctlogs"])
def test_what_was_trusted_at_another_time_is_not_trusted(part: str, period: dict[str, str]) -> None:
    document = json.loads(fixture("sigstore-conformance/production-root.json"))
    for each in document[part]:
        (each.get("publicKey") or each)["validFor"] = period
    found = legacy.signature(making.cosign_signature("fulcio-rekor-valid"), "it")
    changed = TrustedRoot.parse(json.dumps(document).encode(), "changed")
    if part == "ctlogs":
        # Left out where the policy says so, as cosign does.
        assert Keyless(changed, (MITR,), transparency=False).verify(found, NOW).name
    with pytest.raises(Unverified):
        Keyless(changed, (MITR,)).verify(found, NOW)


def test_a_transparency_log_s_word_has_to_be_that_log_s() -> None:
    document = json.loads(fixture("sigstore-conformance/production-root.json"))
    for each in document["ctlogs"]:
        each["publicKey"]["rawBytes"] = making.b64(making.spki(P256))
    changed = TrustedRoot.parse(json.dumps(document).encode(), "changed")
    found = legacy.signature(making.cosign_signature("fulcio-rekor-valid"), "it")
    with pytest.raises(Unverified, match="no transparency log that is trusted"):
        Keyless(changed, (MITR,)).verify(found, NOW)


def fulcio(ca: making.Ca, log: making.Log, *, transparency: bool = False) -> Fulcio:
    keys = (read_key(making.pem(log.key), "log"),)
    return Fulcio(
        (ca.certificate,), (Identity("https://idp", "a@example.com"),), keys, (), keys if transparency else None
    )


def signed(
    ca: making.Ca, log: making.Log, email: str = "a@example.com", issuer: str = "https://idp"
) -> SimpleSignature:
    chain = ca.signer(
        x509.SubjectAlternativeName([x509.RFC822Name(email)]),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1"), issuer.encode()),
        since=timedelta(minutes=-10),
        until=timedelta(minutes=0),
    )
    return making.simple(P256, chain=chain, log=log)


def test_a_certificate_of_minutes_holds_for_what_the_log_saw_in_those_minutes() -> None:
    ca, log = making.Ca(), making.Log()
    late = replace(log, time=int((NOW + timedelta(hours=1)).timestamp()))
    authority = fulcio(ca, log)
    years_later = datetime(2030, 1, 1, tzinfo=UTC)
    assert authority.verify(legacy.signature(signed(ca, log), "it"), years_later).name == "keyless:a@example.com"
    for one in (
        signed(ca, late),
        signed(making.Ca(), log),
        signed(ca, making.Log()),
        signed(ca, log, email="b@example.com"),
        signed(ca, log, issuer="https://evil"),
    ):
        with pytest.raises(Unverified):
            authority.verify(legacy.signature(one, "it"), NOW)


@pytest.mark.parametrize("seconds", [0, 253402300800, 2**53 - 1])
def test_a_log_s_time_is_one(seconds: int) -> None:
    ca, log = making.Ca(), making.Log(time=seconds)
    with pytest.raises(Unverified, match="its log entry has no time"):
        fulcio(ca, log).verify(legacy.signature(signed(ca, log), "it"), NOW)


def test_a_certificate_of_a_weak_key_is_nobody_s() -> None:
    ca, weak, day = making.Ca(), making.rsa.generate_private_key(65537, 1024), timedelta(days=1)
    chain = (making.certificate(weak, "signer", ca, [(making.usage(), True)], -day, day),)
    with pytest.raises(Unverified, match="of a key that nothing is verified with"):
        fulcio(ca, making.Log()).verify(legacy.signature(making.simple(weak, chain=chain), "it"), NOW)


def test_a_certificate_that_no_transparency_log_has_is_refused_where_one_is_asked_for() -> None:
    ca, log = making.Ca(), making.Log()
    with pytest.raises(Unverified, match="transparency log"):
        fulcio(ca, log, transparency=True).verify(legacy.signature(signed(ca, log), "it"), NOW)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=9"}, "of a version known here"),
        ({"tlogs": []}, "no certificate authority, or no transparency log"),
        ({"certificateAuthorities": []}, "no certificate authority, or no transparency log"),
        ({"tlogs": [{"publicKey": {"rawBytes": "YQ==", "validFor": LATER}}]}, "not a public key"),
        (
            {"certificateAuthorities": [{"certChain": {"certificates": [{"rawBytes": "YQ=="}]}, "validFor": LATER}]},
            "certificate cannot be read",
        ),
        ({"certificateAuthorities": [{"certChain": {"certificates": []}, "validFor": LATER}]}, "has no certificate"),
    ],
)
def test_a_root_that_trusts_in_what_cannot_be_used_is_refused(change: dict[str, object], fault: str) -> None:
    document = json.loads(fixture("sigstore-conformance/production-root.json"))
    with pytest.raises(InvalidInput, match=f"mine: .*{fault}"):
        TrustedRoot.parse(json.dumps({**document, **change}).encode(), "mine")


@pytest.mark.parametrize("part", ["certificateAuthorities", "tlogs", "ctlogs"])
def test_a_time_without_a_zone_is_refused(part: str) -> None:
    document = json.loads(fixture("sigstore-conformance/production-root.json"))
    each = document[part][0]
    (each.get("publicKey") or each)["validFor"] = {"start": "2020-01-01T00:00:00"}
    with pytest.raises(InvalidInput, match="mine"):
        TrustedRoot.parse(json.dumps(document).encode(), "mine")


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b'{"mediaType": "x", "certificateAuthorities": [], "tlogs": []}', b"[" * 50_000],
)
def test_what_is_no_trusted_root_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="mine"):
        TrustedRoot.parse(data, "mine")
