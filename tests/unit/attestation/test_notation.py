"""Notary Project signatures: envelopes that notation made, and each check of its specification."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.attestation import notation, notation_policy
from forgeone_shim.attestation.evidence import Endorsement, Evidence, Kind, Subject
from forgeone_shim.attestation.policyfiles import Files
from forgeone_shim.attestation.requirements import Requirements
from forgeone_shim.attestation.signed import Unverified
from forgeone_shim.errors import FailedPrecondition, InvalidInput, UntrustedImage
from forgeone_shim.registry.reference import Reference
from tests.unit.attestation import making
from tests.unit.attestation.making import NOW, OTHER, P256, fixture, jws, subject

EXAMPLE = "x509.subject: C=US, ST=WA, O=Example"


def policy(**changes: Any) -> dict[str, Any]:
    return {
        "name": "mine",
        "registryScopes": ["*"],
        "signatureVerification": {"level": "strict"},
        "trustStores": ["ca:mine"],
        "trustedIdentities": ["*"],
        **changes,
    }


def read(tmp_path: Path, *policies: dict[str, Any], roots: Sequence[bytes] = (), kind: str = "ca") -> Any:
    store = tmp_path / "x509" / kind / "mine"
    store.mkdir(parents=True, exist_ok=True)
    for number, root in enumerate(roots):
        (store / f"{number}.pem").write_bytes(root)
    path = tmp_path / "trustpolicy.json"
    path.write_text(json.dumps({"version": "1.0", "trustPolicies": list(policies)}))
    return notation_policy.read(path, tmp_path / "x509", Files())


def rules(tmp_path: Path, ca: making.Ca, **changes: Any) -> Requirements:
    found = read(tmp_path, policy(**changes), roots=[ca.pem]).required(Reference.parse("registry.example/team/app"))
    assert found is not None
    return Requirements(found)


def check(of: Requirements, *envelopes: bytes, about: Subject | None = None) -> Endorsement:
    return of.check(about or subject(), Evidence(notation=envelopes), NOW)


@pytest.mark.parametrize(
    ("name", "kind", "level", "fault"),
    [
        ("ca_valid_sig_env", "ca", "strict", ""),
        ("sa_valid_sig_env", "signingAuthority", "strict", ""),
        ("sa_valid_sig_env", "ca", "strict", "not trusted"),
        ("ca_expired_sig_env", "ca", "strict", "ended at 2022-07-29"),
        ("ca_expired_sig_env", "ca", "permissive", ""),
        ("ca_plugin_sig_env", "ca", "strict", "verificationPlugin"),
        ("ca_invalid_sig_env", "ca", "strict", "no Notary Project signature"),
    ],
)
def test_envelopes_that_notation_made_are_judged_as_it_does(
    tmp_path: Path, name: str, kind: str, level: str, fault: str
) -> None:
    root = fixture("notation-go/NotationTestRoot.pem")
    one = policy(signatureVerification={"level": level}, trustStores=[f"{kind}:mine"])
    found = read(tmp_path, one, roots=[root], kind=kind).required(Reference.parse("any/image"))
    image = "sha256:60043cf45eaebc4c0867fea485a039b598f52fd09fd5b07b0b2d2f88fad9d74e"
    envelope = fixture(f"notation-go/{name}.json")
    if fault:
        with pytest.raises(UntrustedImage, match=fault):
            check(Requirements(found), envelope, about=subject(digest=image))
    else:
        assert check(Requirements(found), envelope, about=subject(digest=image)).signers
        with pytest.raises(UntrustedImage, match="another image"):
            check(Requirements(found), envelope)


def test_a_certificate_that_is_in_the_store_itself_needs_nobody_above(tmp_path: Path) -> None:
    envelope = fixture("notation-go/jws_signature.json")
    (own,) = notation.read(envelope, "it").chain
    root = own.public_bytes(making.serialization.Encoding.PEM)
    found = read(tmp_path, policy(), roots=[root]).required(Reference.parse("any/image"))
    image = "sha256:19dbd2e48e921426ee8ace4dc892edfb2ecdc1d1a72d5416c83670c30acecef0"
    (signer,) = check(Requirements(found), envelope, about=subject(digest=image)).signers
    assert signer == "x509:CN=alpine,O=Notary,L=Seattle,ST=WA,C=US"
    (tmp_path / "other").mkdir()
    stranger = read(tmp_path / "other", policy(), roots=[making.Ca().pem])
    with pytest.raises(UntrustedImage, match="not trusted"):
        check(Requirements(stranger.required(Reference.parse("any/image"))), envelope, about=subject(digest=image))


@pytest.mark.parametrize("key", [P256, rsa.generate_private_key(65537, 2048)], ids=["es256", "ps256"])
def test_a_chain_with_an_intermediate_verifies(tmp_path: Path, key: making.Private) -> None:
    root = making.Ca()
    chain = making.Ca("between", root).signer(key=key)
    found = check(rules(tmp_path, root, trustedIdentities=[EXAMPLE]), jws(key, chain))
    assert found.signers == ("x509:CN=signer,O=Example,ST=WA,C=US",)
    assert found.expires == (NOW + timedelta(days=1)).timestamp()
    assert rules(tmp_path, root).wanted == {Kind.NOTATION}


def test_what_is_wrong_with_a_chain_refuses_it(tmp_path: Path) -> None:
    root, other = making.Ca(), making.Ca()
    between = making.Ca("between", root)
    wanted = rules(tmp_path, root)
    good = between.signer()
    for chain in (
        other.signer(),
        good[:1],
        [good[0], good[2], good[1]],
        [*good, other.certificate],
        between.signer(purposes=[making.ExtendedKeyUsageOID.SERVER_AUTH]),
        between.signer(use=making.usage(key_cert_sign=True)),
        between.signer(until=-timedelta(hours=1)),
        between.signer(since=timedelta(hours=1)),
    ):
        with pytest.raises(UntrustedImage):
            check(wanted, jws(P256, chain))
    with pytest.raises(UntrustedImage, match="not made with the key"):
        check(wanted, jws(making.STRANGER, good))
    assert check(wanted, jws(making.STRANGER, good), jws(P256, good)).signers


@pytest.mark.parametrize(
    ("identity", "good"),
    [
        ("x509.subject: C=US, ST=WA, O=Example, CN=signer", True),
        ("x509.subject: O = Example,C=US,S=WA", True),
        ("x509.subject: C=US, ST=WA, O=Example, CN=other", False),
        ("x509.subject: C=US, ST=WA, O=Example, OU=any", False),
        (r"x509.subject: C=US, ST=WA, O=Example\, Inc", False),
    ],
)
def test_identities_are_the_attributes_that_they_name(tmp_path: Path, identity: str, good: bool) -> None:
    ca = making.Ca()
    wanted = rules(tmp_path, ca, trustedIdentities=[identity])
    if good:
        assert check(wanted, jws(P256, ca.signer())).signers
    else:
        with pytest.raises(UntrustedImage, match="who is not trusted"):
            check(wanted, jws(P256, ca.signer()))


REVOCABLE = x509.CRLDistributionPoints(
    [x509.DistributionPoint([x509.UniformResourceIdentifier("http://crl.example")], None, None, None)]
)
PAST = timedelta(hours=-1)
ENDED = {
    "crit": ["io.cncf.notary.signingScheme", "io.cncf.notary.expiry"],
    "io.cncf.notary.expiry": "2026-11-22T11:59:00Z",
}


@pytest.mark.parametrize(
    ("verification", "chain_of", "protected", "warnings"),
    [
        ({"level": "strict"}, {}, None, 0),
        ({"level": "strict"}, {}, ENDED, None),
        ({"level": "strict", "override": {"expiry": "log"}}, {}, ENDED, 1),
        ({"level": "permissive"}, {}, ENDED, 1),
        ({"level": "strict"}, {"revocable": True}, None, None),
        ({"level": "strict", "override": {"revocation": "skip"}}, {"revocable": True}, None, 0),
        ({"level": "strict", "override": {"revocation": "log"}}, {"revocable": True}, None, 1),
        ({"level": "permissive"}, {"revocable": True}, ENDED, 2),
        ({"level": "permissive"}, {"until": PAST}, None, 1),
        ({"level": "strict", "override": {"authenticTimestamp": "log"}}, {"until": PAST}, None, 1),
        ({"level": "permissive", "override": {"authenticTimestamp": "enforce"}}, {"until": PAST}, None, None),
    ],
)
def test_levels_say_which_checks_refuse_and_which_warn(
    tmp_path: Path, verification: Any, chain_of: dict[str, Any], protected: Any, warnings: int | None
) -> None:
    ca = making.Ca()
    extensions = [REVOCABLE] if chain_of.pop("revocable", False) else []
    envelope = jws(P256, ca.signer(*extensions, **chain_of), protected=protected)
    wanted = rules(tmp_path, ca, signatureVerification=verification)
    if warnings is None:
        with pytest.raises(UntrustedImage):
            check(wanted, envelope)
    else:
        found = check(wanted, envelope)
        assert (len(found.warnings), len(found.signers)) == (warnings, 1)


def test_at_level_audit_only_a_broken_signature_refuses(tmp_path: Path) -> None:
    ca, other = making.Ca(), making.Ca()
    wanted = rules(tmp_path, ca, signatureVerification={"level": "audit"})
    assert check(wanted).warnings
    found = check(wanted, jws(P256, other.signer()))
    assert (found.signers, bool(found.warnings)) == ((), True)
    assert check(wanted, jws(P256, other.signer()), jws(P256, ca.signer())).signers
    with pytest.raises(UntrustedImage):
        check(wanted, jws(making.STRANGER, ca.signer()))
    with pytest.raises(UntrustedImage):
        check(wanted, jws(P256, ca.signer(), OTHER))


SKIPPED = {"name": "skip", "registryScopes": ["registry.example/free"], "signatureVerification": {"level": "skip"}}


def test_scopes_are_whole_repositories(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        policy(registryScopes=["registry.example/team/app"]),
        SKIPPED,
        roots=[making.Ca().pem],
    )
    assert len(found.required(Reference.parse("registry.example/team/app:v1"))) == 1
    assert found.required(Reference.parse("registry.example/free:v1")) == ()
    assert found.required(Reference.parse("registry.example/team/app/sub")) is None


@pytest.mark.parametrize(
    "policies",
    [
        [],
        [policy(signatureVerification={"level": "loose"})],
        [policy(signatureVerification={"level": "strict", "override": {"integrity": "log"}})],
        [policy(signatureVerification={"level": "skip"})],
        [{**SKIPPED, "signatureVerification": {"level": "skip", "override": {"authenticity": "enforce"}}}],
        [policy(registryScopes=["docker.io/busybox"])],
        [policy(registryScopes=["registry.example/app:v1"])],
        [policy(registryScopes=["Registry.example/app"])],
        [policy(registryScopes=["registry.example/app/"])],
        [policy(), policy(name="two")],
        [policy(registryScopes=["*", "a/b"])],
        [policy(registryScopes=["registry.example/*"])],
        [policy(registryScopes=["registry.example/a"]), policy(registryScopes=["registry.example/a"])],
        [policy(trustStores=[])],
        [policy(trustStores=["ca:absent"])],
        [policy(trustStores=["tsa:mine"])],
        [policy(trustStores=["ca:../mine"])],
        [policy(trustStores=["ca:.."])],
        [policy(trustedIdentities=[])],
        [policy(trustedIdentities=["*", EXAMPLE])],
        [policy(trustedIdentities=["C=US, ST=WA, O=Example"])],
        [policy(trustedIdentities=["x509.subject: C=US, ST=WA"])],
        [policy(trustedIdentities=["x509.subject: C=US, ST=WA, O=a, O=b"])],
        [policy(trustedIdentities=["x509.subject: C=US,, ST=WA, O=a"])],
        [policy(trustedIdentities=["x509.subject: C=US, ST=WA, O=a,"])],
        [policy(trustedIdentities=[EXAMPLE, f"{EXAMPLE}, CN=signer"])],
        [policy(extra=1)],
    ],
)
def test_a_malformed_policy_is_refused_whole(tmp_path: Path, policies: list[dict[str, Any]]) -> None:
    with pytest.raises((InvalidInput, FailedPrecondition)):
        read(tmp_path, *policies, roots=[making.Ca().pem])


def test_a_trust_store_has_certificates_and_no_links(tmp_path: Path) -> None:
    target = tmp_path / "root.pem"
    target.write_bytes(making.Ca().pem)
    store = tmp_path / "x509" / "ca" / "mine"
    store.mkdir(parents=True)
    (store / "link.pem").symlink_to(target)
    with pytest.raises(FailedPrecondition, match="link"):
        read(tmp_path, policy())
    (store / "link.pem").unlink()
    with pytest.raises(InvalidInput, match="mine has no certificate"):
        read(tmp_path, policy())
    (store / "broken.crt").write_bytes(b"\x30\x03")
    with pytest.raises(FailedPrecondition, match=r"broken\.crt: its certificate cannot be read"):
        read(tmp_path, policy())
    (store / "broken.crt").unlink()
    store.rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/root.pem").write_bytes(making.Ca().pem)
    store.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FailedPrecondition, match="mine: is a link"):
        notation_policy.read(tmp_path / "trustpolicy.json", tmp_path / "x509", Files())
    with pytest.raises(InvalidInput, match="no directory of trust stores"):
        notation_policy.read(tmp_path / "trustpolicy.json", None, Files())


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b"[" * 50_000, b'{"targetArtifact": {"mediaType": "a", "digest": 1, "size": 1}}'],
)
def test_a_payload_that_names_no_artifact_is_refused(payload: bytes) -> None:
    with pytest.raises(Unverified, match="it signs no artifact"):
        notation.read(jws(P256, making.Ca().signer(), payload=payload or b" "), "it")


@pytest.mark.parametrize(
    "protected",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": "ES384"},
        {"alg": "PS256"},
        {"alg": "PS384"},
        {"cty": "text/plain"},
        {"crit": []},
        {"crit": ["io.cncf.notary.expiry"]},
        {"crit": ["io.cncf.notary.signingScheme"] * 2},
        {"crit": ["io.cncf.notary.signingScheme", "unheard.of"]},
        {"io.cncf.notary.signingScheme": "notary.other"},
        {"io.cncf.notary.expiry": "2027-01-01T00:00:00Z"},
        {**ENDED, "io.cncf.notary.expiry": "2027-01-01T00:00:00"},
        {"io.cncf.notary.signingScheme": "notary.x509.signingAuthority"},
        {
            "crit": ["io.cncf.notary.signingScheme", "io.cncf.notary.authenticSigningTime"],
            "io.cncf.notary.authenticSigningTime": "2026-11-22T11:00:00Z",
        },
    ],
)
def test_headers_that_the_specification_does_not_allow_refuse_the_envelope(protected: dict[str, Any]) -> None:
    chain = making.Ca().signer()
    notation.read(jws(P256, chain), "it")
    with pytest.raises(Unverified, match="it "):
        notation.read(jws(P256, chain, protected=protected), "it")


def test_a_header_that_names_another_algorithm_than_the_key_s_is_refused() -> None:
    key = rsa.generate_private_key(65537, 2048)
    chain = making.Ca().signer(key=key)
    notation.read(jws(key, chain), "it")
    with pytest.raises(Unverified, match="not made with the key"):
        notation.read(jws(key, chain, protected={"alg": "PS512"}), "it")


def test_a_certificate_in_the_store_has_to_be_a_signer_s(tmp_path: Path) -> None:
    ca = making.Ca()
    with pytest.raises(UntrustedImage, match="key is not for signatures"):
        check(rules(tmp_path, ca), jws(ca.key, [ca.certificate]))


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1())])
def test_keys_of_other_kinds_verify_nothing(key: making.Private) -> None:
    with pytest.raises(Unverified):
        notation.read(jws(key, making.Ca().signer(key=key)), "it")


CA = making.Ca()
ENVELOPE = jws(P256, CA.signer())
STRICT = dict.fromkeys(("authenticity", "authenticTimestamp", "expiry", "revocation"), "enforce")


@given(st.data())
def test_an_envelope_with_any_byte_changed_is_refused_or_says_the_same(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(ENVELOPE) - 1))
    touched = ENVELOPE[:place] + bytes([data.draw(st.integers(0, 255))]) + ENVELOPE[place + 1 :]
    roots = {notation.X509: (CA.certificate,), notation.SIGNING_AUTHORITY: ()}
    wanted = Requirements((notation_policy.Notarised("mine", STRICT, roots, ()),))
    good = check(wanted, ENVELOPE)
    try:
        found = check(wanted, touched)
    except UntrustedImage:
        return
    assert found == good
