"""containers-policy.json: what it asks, and every way in which an image does not have it."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.attestation import containers_policy, scopes
from forgeone_shim.attestation.evidence import Endorsement, Evidence, Subject
from forgeone_shim.attestation.policyfiles import Files
from forgeone_shim.attestation.requirements import Requirements
from forgeone_shim.errors import FailedPrecondition, InvalidInput, UntrustedImage
from forgeone_shim.registry.reference import Reference
from tests.unit.attestation import making
from tests.unit.attestation.making import DIGEST, INDEX, NOW, OTHER, P256, STRANGER, b64, bundle, pem, simple, subject

REPOSITORY = {"type": "matchRepository"}
KEY = {"type": "sigstoreSigned", "keyData": b64(pem(P256)), "signedIdentity": REPOSITORY}
SIGNED = Evidence(bundles=(bundle(P256),))


def policy(tmp_path: Path, *requirements: dict[str, Any], scope: str = "registry.example/team") -> Requirements:
    """What a policy with one scope asks of the image that all tests are about."""
    return asked(tmp_path, {"default": [{"type": "reject"}], "transports": {"docker": {scope: list(requirements)}}})


def asked(tmp_path: Path, document: object, image: str = "registry.example/team/app:v1") -> Requirements:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(document))
    return Requirements(containers_policy.read(path, Files()).required(Reference.parse(image)))


def check(rules: Requirements, evidence: Evidence, about: Subject | None = None) -> Endorsement:
    return rules.check(about or subject(), evidence, NOW)


@pytest.mark.parametrize(
    "key",
    [
        P256,
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["p256", "p384", "p521", "ed25519", "rsa"],
)
def test_a_bundle_and_a_simple_signature_are_enough_for_every_kind_of_key(tmp_path: Path, key: making.Private) -> None:
    rules = policy(tmp_path, {**KEY, "keyData": b64(pem(key))})
    for evidence in (Evidence(bundles=(bundle(key),)), Evidence(simple=(simple(key),))):
        (signer,) = check(rules, evidence).signers
        assert signer.startswith("key:sha256:")
    with pytest.raises(UntrustedImage, match="of none of the trusted keys"):
        check(rules, Evidence(bundles=(bundle(STRANGER),)))


def test_what_cosign_signed_is_verified_as_it_was_made(tmp_path: Path) -> None:
    image = "sha256:634a8f35b5f16dcf4aaa0822adc0b1964bb786fca12f6831de8ddc45e5986a00"
    document = {
        "default": [
            {
                "type": "sigstoreSigned",
                "keyPath": str(making.FIXTURES / "containers-image/cosign.pub"),
                "signedIdentity": REPOSITORY,
            }
        ]
    }
    named = "192.168.64.2:5000/cosign-signed-single-sample:tag"
    rules = asked(tmp_path, document, named)
    evidence = Evidence(simple=(making.cosign_signature("valid"),))
    assert check(rules, evidence, subject(named, image)).signers
    with pytest.raises(UntrustedImage, match="another image"):
        check(rules, evidence, subject(named, DIGEST))
    with pytest.raises(UntrustedImage, match=r"is for '192.168.64.2:5000/cosign-signed-single-sample'"):
        check(rules, evidence, subject("192.168.64.2:5000/another:tag", image))


def test_a_signature_over_bytes_alone_is_none_of_an_image(tmp_path: Path) -> None:
    signed = json.loads(making.fixture("sigstore-conformance/managed-key.json"))
    digest = base64.b64decode(signed["messageSignature"]["messageDigest"]["digest"]).hex()
    key = making.fixture("sigstore-conformance/managed-key.pub")
    rules = policy(tmp_path, {**KEY, "keyData": b64(key)})
    with pytest.raises(UntrustedImage, match="does not say that they are an image"):
        check(rules, Evidence(bundles=(json.dumps(signed).encode(),)), subject(digest=f"sha256:{digest}"))


def test_a_log_that_the_policy_names_has_to_have_the_signature(tmp_path: Path) -> None:
    log = making.Log()
    rules = policy(tmp_path, {**KEY, "rekorPublicKeyData": b64(pem(log.key))})
    good = [
        Evidence(bundles=(bundle(P256, log=log),)),
        Evidence(bundles=(bundle(P256, log=log, promised=False),)),
        Evidence(simple=(simple(P256, log=log),)),
    ]
    for evidence in good:
        assert check(rules, evidence).signers
    elsewhere = making.Log()
    bad = [
        SIGNED,
        Evidence(bundles=(bundle(P256, log=elsewhere),)),
        Evidence(bundles=(bundle(P256, log=elsewhere, promised=False),)),
        Evidence(simple=(replace(simple(P256), rekor=simple(STRANGER, log=log).rekor),)),
    ]
    for evidence in bad:
        with pytest.raises(UntrustedImage, match="log"):
            check(rules, evidence)


def test_cosign_s_own_log_entries_are_verified(tmp_path: Path) -> None:
    here = making.FIXTURES / "containers-image"
    image = "sha256:0489474da8ea22426ece86ace6c1c0026ab2fd3cdfbbd62b7e94650266c37d9a"
    named = "192.168.64.2:5000/cosign-signed/key-1:tag"
    one = {
        "type": "sigstoreSigned",
        "keyPaths": [str(here / "cosign.pub"), str(here / "cosign2.pub")],
        "rekorPublicKeyPath": str(here / "rekor.pub"),
        "signedIdentity": REPOSITORY,
    }
    evidence = Evidence(simple=(making.cosign_signature("key-rekor-valid"),))
    assert check(asked(tmp_path, {"default": [one]}, named), evidence, subject(named, image)).signers


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, ""),
        ({"subjectEmail": "somebody@redhat.com"}, "who is not trusted"),
        ({"oidcIssuer": "https://accounts.google.com"}, "who is not trusted"),
        ({"buildSignerURI": "https://github.com/a/b"}, "who is not trusted"),
    ],
)
def test_fulcio_s_certificates_are_as_good_as_the_identity_in_them(
    tmp_path: Path, change: dict[str, str], fault: str
) -> None:
    here = making.FIXTURES / "containers-image"
    image = "sha256:0489474da8ea22426ece86ace6c1c0026ab2fd3cdfbbd62b7e94650266c37d9a"
    named = "192.168.64.2:5000/cosign-signed/fulcio-rekor-1:tag"
    fulcio = {
        "caPath": str(here / "fulcio_v1.crt.pem"),
        "oidcIssuer": "https://github.com/login/oauth",
        "subjectEmail": "mitr@redhat.com",
    }
    one = {
        "type": "sigstoreSigned",
        "fulcio": {**fulcio, **change},
        "rekorPublicKeyPath": str(here / "rekor.pub"),
        "signedIdentity": REPOSITORY,
    }
    rules = asked(tmp_path, {"default": [one]}, named)
    evidence = Evidence(simple=(making.cosign_signature("fulcio-rekor-valid"),))
    if fault:
        with pytest.raises(UntrustedImage, match=fault):
            check(rules, evidence, subject(named, image))
    else:
        assert check(rules, evidence, subject(named, image)).signers == ("keyless:mitr@redhat.com",)


@pytest.mark.parametrize(
    ("wanted", "fault"),
    [
        ({"subjectEmail": "qiwan@redhat.com"}, ""),
        ({"subjectHostname": "myhost.example.com"}, ""),
        ({"subjectEmail": "qiwan@redhat.com", "subjectHostname": "other.example.com"}, "not of the host"),
        ({"subjectEmail": "other@redhat.com"}, "not of the email"),
    ],
)
def test_a_private_ca_s_certificates_are_verified_as_cosign_takes_them(
    tmp_path: Path, wanted: dict[str, str], fault: str
) -> None:
    here = making.FIXTURES / "containers-image"
    image = "sha256:253c890b744fe3efa923b68e3a1be07bd007eb44ba29da1e7deb1d4c53b3e212"
    pki = {
        "caRootsPath": str(here / "pki_root_crts.pem"),
        "caIntermediatesPath": str(here / "pki_intermediate_crts.pem"),
        **wanted,
    }
    one = {"type": "sigstoreSigned", "pki": pki, "signedIdentity": REPOSITORY}
    rules = asked(tmp_path, {"default": [one]}, "localhost:5000/test:tag")
    evidence = Evidence(simple=(making.cosign_signature("pki-valid"),))
    about = subject("localhost:5000/test:tag", image)
    if fault:
        with pytest.raises(UntrustedImage, match=fault):
            check(rules, evidence, about)
    else:
        found = check(rules, evidence, about)
        assert found.signers == (f"x509:{next(iter(wanted.values()))}",)
        assert found.expires is not None


@pytest.mark.parametrize("type_", ["atomic container signature", "package signature", ""])
def test_a_simple_signature_has_to_be_one_of_an_image(tmp_path: Path, type_: str) -> None:
    payload = making.simple_payload().replace(b"cosign container image signature", type_.encode())
    evidence = Evidence(simple=(simple(P256, payload),))
    if type_.startswith("atomic"):
        assert check(policy(tmp_path, KEY), evidence).signers
    else:
        with pytest.raises(UntrustedImage, match="not an image"):
            check(policy(tmp_path, KEY), evidence)


def test_a_certificate_that_ended_or_is_of_another_ca_is_worth_nothing(tmp_path: Path) -> None:
    ca, stranger = making.Ca(), making.Ca()
    mail = x509.SubjectAlternativeName([x509.RFC822Name("a@example.com")])
    pki = {"caRootsData": b64(ca.pem), "subjectEmail": "a@example.com"}
    rules = policy(tmp_path, {"type": "sigstoreSigned", "pki": pki, "signedIdentity": REPOSITORY})
    assert check(rules, Evidence(bundles=(bundle(P256, chain=ca.signer(mail)[:1]),))).signers == ("x509:a@example.com",)
    ended = ca.signer(mail, until=-making.timedelta(hours=1))
    for chain in (ended, stranger.signer(mail), ca.signer(mail, purposes=[making.ExtendedKeyUsageOID.SERVER_AUTH])):
        with pytest.raises(UntrustedImage, match="certificate is not trusted"):
            check(rules, Evidence(bundles=(bundle(P256, chain=chain[:1]),)))
    with pytest.raises(UntrustedImage, match="not made with the key of its certificate"):
        check(rules, Evidence(bundles=(bundle(STRANGER, chain=ca.signer(mail)[:1]),)))
    with pytest.raises(UntrustedImage, match="has no certificate"):
        check(rules, SIGNED)


def test_a_signature_over_the_index_counts_for_what_was_chosen_from_it(tmp_path: Path) -> None:
    rules = policy(tmp_path, KEY)
    evidence = Evidence(bundles=(bundle(P256, making.statement(INDEX)),))
    assert check(rules, evidence, subject(index=INDEX)).signers
    with pytest.raises(UntrustedImage):
        check(rules, evidence)


def test_an_attestation_is_handed_on_and_is_no_signature(tmp_path: Path) -> None:
    rules = policy(tmp_path, KEY)
    attested = bundle(P256, making.statement(DIGEST, making.SLSA, making.PROVENANCE))
    with pytest.raises(UntrustedImage, match="no signature of anybody"):
        check(rules, Evidence(bundles=(attested,)))
    (found,) = check(rules, Evidence(bundles=(attested, bundle(P256)))).attestations
    assert (found.predicate_type, found.predicate) == (making.SLSA, making.PROVENANCE)


def test_strangers_attestations_are_left_out(tmp_path: Path) -> None:
    found = [
        bundle(STRANGER, making.statement(DIGEST, making.SLSA, making.PROVENANCE)),
        bundle(P256, making.statement(OTHER, making.SLSA, making.PROVENANCE)),
        bundle(P256, making.statement(DIGEST, making.SLSA, {"no": "builder"})),
        bundle(P256),
    ]
    assert check(policy(tmp_path, KEY), Evidence(bundles=tuple(found))).attestations == ()


DEFAULT: dict[str, str] = {}
EXACT = {"type": "matchExact"}
REFERENCE = {"type": "exactReference", "dockerReference": "up.example/app:v1"}
UPSTREAM = {"type": "exactRepository", "dockerRepository": "up.example/app"}
REMAP = {"type": "remapIdentity", "prefix": "registry.example/team", "signedPrefix": "up.example"}
TAGGED = "registry.example/team/app:v1"
PINNED = f"registry.example/team/app@{DIGEST}"


@pytest.mark.parametrize(
    ("identity", "image", "said", "good"),
    [
        (DEFAULT, TAGGED, TAGGED, True),
        (DEFAULT, TAGGED, "registry.example/team/app:v2", False),
        (DEFAULT, TAGGED, "registry.example/team/app", False),
        (DEFAULT, PINNED, "registry.example/team/app:v9", True),
        (DEFAULT, PINNED, "registry.example/team/other:v9", False),
        (DEFAULT, PINNED, "", True),
        (DEFAULT, TAGGED, "", False),
        (EXACT, TAGGED, TAGGED, True),
        (EXACT, PINNED, TAGGED, False),
        (EXACT, TAGGED, "", False),
        (REPOSITORY, TAGGED, "registry.example/team/app", True),
        (REPOSITORY, TAGGED, "registry.example/team/app/sub", False),
        (REPOSITORY, TAGGED, "evil.example/team/app", False),
        (REPOSITORY, TAGGED, "not a name", False),
        (REPOSITORY, TAGGED, "", True),
        (REFERENCE, TAGGED, "up.example/app:v1", True),
        (REFERENCE, TAGGED, "up.example/app:v2", False),
        (UPSTREAM, TAGGED, "up.example/app:v2", True),
        (UPSTREAM, TAGGED, "", False),
        (REMAP, TAGGED, "up.example/app:v1", True),
        (REMAP, TAGGED, TAGGED, False),
        ({**REMAP, "prefix": "registry.example/te"}, TAGGED, TAGGED, True),
    ],
)
def test_the_signer_s_name_for_an_image_has_to_fit(
    tmp_path: Path, identity: dict[str, str], image: str, said: str, good: bool
) -> None:
    one = {**KEY, "signedIdentity": identity} if identity else {k: v for k, v in KEY.items() if k != "signedIdentity"}
    rules = asked(tmp_path, {"default": [one]}, image)
    evidence = Evidence(bundles=(bundle(P256, making.statement(name=said)),))
    if said and said != "not a name":
        evidence = replace(evidence, simple=(simple(P256, making.simple_payload(reference=said)),))
    for part in (Evidence(bundles=evidence.bundles), Evidence(simple=evidence.simple)):
        if part and good:
            assert check(rules, part, subject(image)).signers
        elif part:
            with pytest.raises(UntrustedImage, match=r"asked for|names no image"):
                check(rules, part, subject(image))


@pytest.mark.parametrize(
    ("image", "scope"),
    [
        ("registry.example:5000/a/b/c:v1", "registry.example:5000/a/b/c:v1"),
        ("registry.example:5000/a/b/c:v1", "registry.example:5000/a/b/c"),
        ("registry.example:5000/a/b/c:v1", "registry.example:5000/a"),
        ("registry.example:5000/a/b/c:v1", "registry.example:5000"),
        ("registry.example:5000/a/b/c:v1", "*.example"),
        ("registry.example:5000/a/b/c:v1", ""),
        (f"a.b.example/c:v1@{DIGEST}", f"a.b.example/c@{DIGEST}"),
        ("a.b.example/c", "*.b.example"),
        ("busybox", "docker.io/library/busybox:latest"),
    ],
)
def test_the_most_specific_scope_alone_counts(tmp_path: Path, image: str, scope: str) -> None:
    document = {
        "default": [{"type": "reject"}],
        "transports": {
            "docker": {scope: [{"type": "insecureAcceptAnything"}], "registry.example:50": [{"type": "reject"}]},
            "dir": {"": [{"type": "insecureAcceptAnything"}]},
        },
    }
    assert asked(tmp_path, document, image).rules == ()
    elsewhere = asked(tmp_path, document, "unrelated.test/image")
    assert (elsewhere.rules == ()) is (scope == "")


def test_an_image_that_is_rejected_is_not_looked_at(tmp_path: Path) -> None:
    rules = asked(tmp_path, {"default": [{"type": "reject"}]})
    assert not rules.wanted
    with pytest.raises(UntrustedImage, match=r"^SignatureValidationFailed: registry\.example/team/app:v1: refused by"):
        check(rules, SIGNED)


def test_all_requirements_of_a_scope_have_to_be_met(tmp_path: Path) -> None:
    rules = policy(tmp_path, KEY, {**KEY, "keyData": b64(pem(STRANGER))})
    with pytest.raises(UntrustedImage):
        check(rules, SIGNED)
    assert len(check(rules, Evidence(bundles=(bundle(P256), bundle(STRANGER)))).signers) == 2


def test_gpg_is_not_verified_and_so_refused(tmp_path: Path) -> None:
    rules = policy(tmp_path, {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/keys/gpg"})
    with pytest.raises(UntrustedImage, match="GPG"):
        check(rules, SIGNED)
    assert not rules.wanted


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        {"default": []},
        {"default": [{"type": "reject"}], "extra": 1},
        {"default": [{"type": "unheardOf"}]},
        {"default": [{"type": "reject", "why": "x"}]},
        {"default": [{"type": "sigstoreSigned"}]},
        {"default": [{**KEY, "keyPath": "/a"}]},
        {"default": [{**KEY, "keyData": "!"}]},
        {"default": [{**KEY, "keyData": b64(b"no key")}]},
        {"default": [{**KEY, "keyData": b64(making.fixture("sigstore-conformance/malformed.pub"))}]},
        {"default": [{"type": "sigstoreSigned", "keyPath": "relative.pub"}]},
        {"default": [{**KEY, "signedIdentity": {"type": "any"}}]},
        {"default": [{**KEY, "signedIdentity": {"type": "exactReference", "dockerReference": "A B"}}]},
        {"default": [{**KEY, "signedIdentity": {"type": "exactReference", "dockerReference": "a.example:5000/b"}}]},
        {"default": [{**KEY, "rekorPublicKeyData": b64(b"x"), "rekorPublicKeyPath": "/x"}]},
        {"default": [{"type": "sigstoreSigned", "fulcio": {"caData": b64(making.Ca().pem), "oidcIssuer": "x"}}]},
        {"default": [{"type": "sigstoreSigned", "pki": {"caRootsData": b64(making.Ca().pem)}}]},
        {"default": [{"type": "sigstoreSigned", "pki": {"subjectEmail": "a@b"}}]},
        {
            "default": [
                {
                    "type": "sigstoreSigned",
                    "pki": {"caRootsData": b64(making.Ca().pem + pem(P256)), "subjectEmail": "a@b"},
                }
            ]
        },
    ],
)
def test_a_malformed_policy_is_refused_whole(tmp_path: Path, document: object) -> None:
    with pytest.raises(InvalidInput):
        asked(tmp_path, document)


FULCIO = {"caData": b64(making.Ca().pem), "oidcIssuer": "https://idp", "subjectEmail": "a@b"}
PKI = {"caRootsData": b64(making.Ca().pem), "subjectEmail": "a@b", "subjectHostname": "b"}


@pytest.mark.parametrize("requirement", [KEY, {"type": "sigstoreSigned", "pki": PKI}])
@pytest.mark.parametrize(
    ("field", "empty"),
    [
        ("rekorPublicKeyPath", ""),
        ("rekorPublicKeyPaths", []),
        ("rekorPublicKeyData", ""),
        ("rekorPublicKeyDatas", []),
        ("rekorPublicKeyDatas", [""]),
        ("keyPaths", []),
        ("keyPath", ""),
    ],
)
def test_what_is_there_and_empty_does_not_ask_for_less(
    tmp_path: Path, requirement: dict[str, Any], field: str, empty: object
) -> None:
    assert policy(tmp_path, requirement).rules
    with pytest.raises(InvalidInput, match=field):
        policy(tmp_path, {**requirement, field: empty})


@pytest.mark.parametrize(
    ("of", "field"), [("pki", "subjectEmail"), ("pki", "subjectHostname"), ("fulcio", "subjectEmail")]
)
def test_an_empty_name_is_not_anybody_s(tmp_path: Path, of: str, field: str) -> None:
    log = {"rekorPublicKeyData": b64(pem(P256))} if of == "fulcio" else {}
    wanted = {"pki": PKI, "fulcio": {**FULCIO, "buildSignerURI": "https://b"}}[of]
    assert policy(tmp_path, {"type": "sigstoreSigned", of: wanted, **log}).rules
    with pytest.raises(InvalidInput, match=field):
        policy(tmp_path, {"type": "sigstoreSigned", of: {**wanted, field: ""}, **log})


@pytest.mark.parametrize(
    ("scope", "possible"),
    [
        ("", True),
        ("docker.io", True),
        ("docker.io/library", True),
        ("docker.io/bitnami", True),
        ("docker.io/library/busybox", True),
        (f"docker.io/library/busybox@{DIGEST}", True),
        ("localhost", True),
        ("localhost/app:v1", True),
        ("registry:5000", True),
        ("registry:5000/a/b", True),
        ("[::1]:5000/a", True),
        ("[::1]", True),
        ("*.example", True),
        ("*.registry.example", True),
        ("busybox", False),
        ("busybox:latest", False),
        ("library/busybox", False),
        ("docker.io/busybox:latest", False),
        ("index.docker.io", False),
        ("index.docker.io/library/busybox", False),
        ("Registry.example", False),
        ("registry.example/Team", False),
        ("registry.example/", False),
        ("registry.example/team/", False),
        ("registry.example/team/*", False),
        ("*.example/team", False),
        ("*", False),
        ("https://registry.example", False),
        (f"registry.example/app:v1@{DIGEST}", False),
    ],
)
def test_a_scope_without_images_is_refused(tmp_path: Path, scope: str, possible: bool) -> None:
    if possible:
        assert policy(tmp_path, KEY, scope=scope)
    else:
        with pytest.raises(InvalidInput, match="has no image in it"):
            policy(tmp_path, KEY, scope=scope)


@given(reference=st.from_regex(r"([a-z]{1,4}\.example(:[1-9][0-9]?)?/)?[a-z]{1,4}(/[a-z]{1,4})?(:v1)?", fullmatch=True))
def test_every_scope_of_an_image_may_be_in_a_policy(reference: str) -> None:
    assert all(scopes.possible(scope) for scope in scopes.of(Reference.parse(reference)))


def test_a_transport_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="'Docker' is no transport"):
        asked(tmp_path, {"default": [{"type": "reject"}], "transports": {"Docker": {"": [{"type": "reject"}]}}})


def test_a_key_twice_in_the_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}')
    with pytest.raises(InvalidInput, match="twice"):
        containers_policy.read(path, Files())


def test_files_that_others_can_write_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    path.chmod(0o666)
    with pytest.raises(FailedPrecondition, match="everybody"):
        containers_policy.read(path, Files())
