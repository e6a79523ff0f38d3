"""All policies of a node together: which are about an image, and what is remembered of the files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from forgeone_shim.attestation import certificates
from forgeone_shim.attestation.certificates import Profile
from forgeone_shim.attestation.evidence import MAX_ITEMS, Evidence, Kind
from forgeone_shim.attestation.requirements import Requirements
from forgeone_shim.attestation.signed import Unverified
from forgeone_shim.attestation.trust import Sources, TrustPolicy
from forgeone_shim.errors import FailedPrecondition, InvalidInput, UntrustedImage
from forgeone_shim.registry.reference import Reference
from tests.unit.attestation import making
from tests.unit.attestation.making import NOW, P256, STRANGER, b64, bundle, jws, pem, simple, subject

SIGNED = Evidence(bundles=(bundle(P256),))
APP = Reference.parse("registry.example/team/app:v1")
CA = making.Ca()


def keyed(key: making.Private = P256) -> dict[str, object]:
    return {"type": "sigstoreSigned", "keyData": b64(pem(key)), "signedIdentity": {"type": "matchRepository"}}


def image_policy(name: str, glob: str, key: making.Private) -> dict[str, object]:
    return {
        "apiVersion": "policy.sigstore.dev/v1beta1",
        "kind": "ClusterImagePolicy",
        "metadata": {"name": name},
        "spec": {"images": [{"glob": glob}], "authorities": [{"key": {"data": pem(key).decode()}}]},
    }


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """One policy of each kind."""
    for name in ("namespaces", "images", "roots/x509/ca/mine"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "policy.json", {"default": [keyed()]})
    write(tmp_path / "namespaces/free.json", {"default": [{"type": "insecureAcceptAnything"}]})
    write(tmp_path / "images/strict.json", image_policy("strict", "registry.example/strict/**", STRANGER))
    (tmp_path / "roots/x509/ca/mine/root.pem").write_bytes(CA.pem)
    write(
        tmp_path / "trustpolicy.json",
        {
            "version": "1.0",
            "trustPolicies": [
                {
                    "name": "notarised",
                    "registryScopes": ["registry.example/notarised"],
                    "signatureVerification": {"level": "strict"},
                    "trustStores": ["ca:mine"],
                    "trustedIdentities": ["*"],
                }
            ],
        },
    )
    return Sources(
        tmp_path / "policy.json",
        tmp_path / "namespaces",
        tmp_path / "images",
        tmp_path / "trustpolicy.json",
        tmp_path / "roots",
    )


def write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document))


def test_every_policy_that_is_about_an_image_has_to_be_met(sources: Sources) -> None:
    trust = TrustPolicy.load(sources)
    assert trust.required(APP).check(subject(), SIGNED, NOW).signers
    strict = trust.required(Reference.parse("registry.example/strict/app"))
    about = subject("registry.example/strict/app")
    with pytest.raises(UntrustedImage, match="ClusterImagePolicy strict"):
        strict.check(about, SIGNED, NOW)
    assert len(strict.check(about, Evidence(bundles=(bundle(P256), bundle(STRANGER))), NOW).signers) == 2
    notarised = trust.required(Reference.parse("registry.example/notarised"))
    assert notarised.wanted == {Kind.BUNDLES, Kind.SIMPLE, Kind.ATTESTATIONS, Kind.NOTATION}
    with pytest.raises(UntrustedImage, match="trust policy notarised"):
        notarised.check(subject("registry.example/notarised"), SIGNED, NOW)
    both = Evidence(bundles=SIGNED.bundles, notation=(jws(P256, CA.signer()),))
    assert len(notarised.check(subject("registry.example/notarised"), both, NOW).signers) == 2


def test_a_namespace_has_a_policy_of_its_own_in_place_of_the_node_s(sources: Sources) -> None:
    trust = TrustPolicy.load(sources)
    for namespace, free in (("", False), ("other", False), ("../policy", False), ("free", True)):
        required = trust.required(APP, namespace)
        assert (required.wanted == frozenset()) is free
    # What is not in the namespace's own file still counts.
    assert trust.required(Reference.parse("registry.example/strict/app"), "free").wanted


@pytest.mark.parametrize(("unmatched", "warnings"), [("allow", 0), ("warn", 1), ("deny", None)])
def test_an_image_that_no_policy_is_about_is_as_the_node_has_it(
    sources: Sources, unmatched: str, warnings: int | None
) -> None:
    trust = TrustPolicy.load(Sources(images=sources.images, unmatched=unmatched))
    required = trust.required(APP)
    assert not required.wanted
    if warnings is None:
        with pytest.raises(UntrustedImage, match="no policy of this node is about it"):
            required.check(subject(), SIGNED, NOW)
    else:
        assert len(required.check(subject(), SIGNED, NOW).warnings) == warnings


def test_the_digest_changes_with_every_file_that_was_read(sources: Sources, tmp_path: Path) -> None:
    seen = {TrustPolicy.load(sources).digest}
    assert TrustPolicy.load(sources).digest in seen
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file():
            path.write_bytes(path.read_bytes() + b"\n")
            seen.add(TrustPolicy.load(sources).digest)
    (tmp_path / "images/more.json").write_bytes((tmp_path / "images/strict.json").read_bytes())
    seen.add(TrustPolicy.load(sources).digest)
    seen.add(TrustPolicy.load(Sources(sources.policy, unmatched="deny")).digest)
    seen.add(TrustPolicy.load(Sources(sources.policy, unmatched="warn")).digest)
    assert len(seen) == 9


def test_a_bad_file_refuses_them_all_by_name(sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "images/broken.yaml").write_text("kind: [")
    with pytest.raises(InvalidInput, match=r"images/broken\.yaml"):
        TrustPolicy.load(sources)
    (tmp_path / "images/broken.yaml").rename(tmp_path / "images/broken.yml")
    with pytest.raises(FailedPrecondition, match=r"images/broken\.yml: would not be read"):
        TrustPolicy.load(sources)
    (tmp_path / "images/broken.yml").unlink()
    for absent in (Sources(images=tmp_path / "absent"), Sources(namespaces=tmp_path / "absent")):
        with pytest.raises(FailedPrecondition, match="absent: No such file"):
            TrustPolicy.load(absent)
    (tmp_path / "policy.json").unlink()
    with pytest.raises(FailedPrecondition, match=r"policy\.json: No such file"):
        TrustPolicy.load(sources)
    (tmp_path / "policy.json").mkdir()
    with pytest.raises(FailedPrecondition, match=r"policy\.json"):
        TrustPolicy.load(sources)


def test_a_way_to_a_policy_that_others_could_turn_is_not_believed(sources: Sources, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(FailedPrecondition, match="can be written by everybody"):
        TrustPolicy.load(Sources(policy=sources.policy))


def test_a_way_to_an_empty_directory_that_others_could_turn_is_not_believed(tmp_path: Path) -> None:
    policies = tmp_path / "way/images"
    policies.mkdir(parents=True)
    TrustPolicy.load(Sources(images=policies))
    policies.parent.chmod(0o777)
    for sources in (Sources(images=policies), Sources(namespaces=policies)):
        with pytest.raises(FailedPrecondition, match="way can be written by everybody"):
            TrustPolicy.load(sources)


@pytest.mark.parametrize("path", ["open/link/policy.json", "first/policy.json", "around/policy.json", "open/file"])
def test_a_link_that_others_could_turn_to_another_file_of_root_s_is_not_believed(
    sources: Sources, tmp_path: Path, path: str
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open/link").symlink_to(tmp_path)
    (tmp_path / "open/file").symlink_to("../policy.json")
    (tmp_path / "first").symlink_to("open/link")
    (tmp_path / "around").symlink_to("open/../open/link")
    moved = Sources(policy=tmp_path / path)
    assert TrustPolicy.load(moved).required(APP).wanted
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(FailedPrecondition, match="open can be written by everybody"):
        TrustPolicy.load(moved)
    assert TrustPolicy.load(sources)


@pytest.mark.parametrize("name", ["Prod", "prod_1", "a.b", "-a", "x" * 64])
def test_a_file_that_is_no_namespace_s_is_refused(sources: Sources, tmp_path: Path, name: str) -> None:
    (tmp_path / "namespaces" / f"{name}.json").write_bytes((tmp_path / "policy.json").read_bytes())
    with pytest.raises(InvalidInput, match="is not the name of a namespace"):
        TrustPolicy.load(sources)


def test_no_more_evidence_is_looked_at_than_the_limit(sources: Sources) -> None:
    required = TrustPolicy.load(sources).required(APP)
    junk = tuple(bundle(STRANGER) for _ in range(2)) * (MAX_ITEMS // 2)
    with pytest.raises(UntrustedImage, match=f"has {MAX_ITEMS + 1} bundles"):
        required.check(subject(), Evidence(bundles=(*junk, bundle(P256))), NOW)
    assert required.check(subject(), Evidence(bundles=(*junk[1:], bundle(P256))), NOW).signers


def test_a_refusal_stays_short_whatever_was_found(sources: Sources) -> None:
    junk = tuple(f"{'x' * 5000}{number}".encode() for number in range(MAX_ITEMS))
    with pytest.raises(UntrustedImage) as caught:
        TrustPolicy.load(sources).required(APP).check(subject(), Evidence(bundles=junk), NOW)
    assert len(str(caught.value)) < 2000


def test_what_evidence_says_reaches_no_terminal_as_it_is(sources: Sources) -> None:
    hostile = simple(P256, making.simple_payload("sha256:\x1b[2J\n"))
    with pytest.raises(UntrustedImage) as caught:
        TrustPolicy.load(sources).required(APP).check(subject(), Evidence(simple=(hostile,)), NOW)
    assert str(caught.value).isprintable()


def test_one_of_the_names_of_a_digest_has_to_fit(sources: Sources) -> None:
    said = json.loads(making.statement(name="registry.example/other"))
    required = TrustPolicy.load(sources).required(APP)
    with pytest.raises(UntrustedImage):
        required.check(subject(), Evidence(bundles=(bundle(P256, json.dumps(said).encode()),)), NOW)
    said["subject"].append({**said["subject"][0], "name": "registry.example/team/app"})
    assert required.check(subject(), Evidence(bundles=(bundle(P256, json.dumps(said).encode()),)), NOW).signers


def test_what_needs_no_evidence_needs_none(sources: Sources) -> None:
    assert Requirements().check(subject(), Evidence(), NOW).signers == ()
    assert TrustPolicy.load(sources).required(APP, "free").check(subject(), Evidence(), NOW).signers == ()


def test_whoever_asks_does_not_load_what_verifies() -> None:
    check = (
        "import sys, forgeone_shim.attestation.requirements;"
        "sys.exit(any(n.split('.')[0] in ('cryptography', 'sigstore', 'yaml') for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_sigstore_and_patterns_are_loaded_only_for_signers_without_keys(sources: Sources) -> None:
    check = (
        "import sys; from pathlib import Path; from forgeone_shim.attestation.trust import Sources, TrustPolicy;"
        f"TrustPolicy.load(Sources(Path({str(sources.policy)!r})));"
        "sys.exit(bool({'sigstore', 'cel_expr_python'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


ODD = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
ISSUES = making.usage(key_cert_sign=True)
AUTHORITY, NONE = x509.BasicConstraints(True, None), x509.BasicConstraints(False, None)


@pytest.mark.parametrize(
    ("of_leaf", "of_issuer", "fault"),
    [
        ([(making.usage(), True)], [(AUTHORITY, True), (ISSUES, True)], ""),
        ([(making.usage(), True), (ODD, False)], [(AUTHORITY, True), (ISSUES, True), (ODD, False)], ""),
        ([(making.usage(), True)], [(AUTHORITY, True)], ""),
        ([(making.usage(), True), (ODD, True)], [(AUTHORITY, True), (ISSUES, True)], r"1\.2\.3\.4"),
        ([(making.usage(), True)], [(AUTHORITY, True), (ISSUES, True), (ODD, True)], r"1\.2\.3\.4"),
        ([(making.usage(), True), (AUTHORITY, True)], [(AUTHORITY, True), (ISSUES, True)], "certificate authority's"),
        ([(making.usage(digital_signature=False), True)], [(AUTHORITY, True), (ISSUES, True)], "not for signatures"),
        ([], [(AUTHORITY, True), (ISSUES, True)], "not trusted"),
        ([(making.usage(), True)], [(ISSUES, True)], "not trusted"),
        ([(making.usage(), True)], [(NONE, True), (ISSUES, True)], "not trusted"),
        ([(making.usage(), True)], [(AUTHORITY, True), (making.usage(), True)], "key is not for certificates"),
        (
            [(making.usage(), True)],
            [(AUTHORITY, True), (ISSUES, True), (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)],
            "not for code signing",
        ),
    ],
)
def test_each_certificate_of_a_path_has_to_allow_what_it_is_used_for(
    of_leaf: Sequence[tuple[x509.ExtensionType, bool]], of_issuer: Sequence[tuple[x509.ExtensionType, bool]], fault: str
) -> None:
    root, day = making.Ca(), making.timedelta(days=1)
    issuer = making.Ca("between", root)
    issuer.certificate = making.certificate(issuer.key, "between", root, of_issuer, -day, day)
    leaf = making.certificate(P256, "signer", issuer, of_leaf, -day, day)
    chain = [leaf, issuer.certificate]
    if fault:
        with pytest.raises(Unverified, match=fault):
            certificates.verify(chain, [root.certificate], NOW, Profile.PRIVATE, "it")
    else:
        assert len(certificates.verify(chain, [root.certificate], NOW, Profile.PRIVATE, "it")) == 3


def test_a_root_that_issues_signers_alone_has_no_authorities_below() -> None:
    ca = making.Ca()
    wanted = [(x509.BasicConstraints(True, 0), True), (making.usage(key_cert_sign=True), True)]
    ca.certificate = making.certificate(
        ca.key, "root", None, wanted, making.timedelta(days=-9), making.timedelta(days=9)
    )
    assert len(certificates.verify(ca.signer(), [ca.certificate], NOW, Profile.PRIVATE, "it")) == 2
    with pytest.raises(Unverified, match="path length"):
        certificates.verify(making.Ca("between", ca).signer(), [ca.certificate], NOW, Profile.PRIVATE, "it")


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ([x509.RFC822Name("a@example.com"), x509.DNSName("build.example.com")], ""),
        ([x509.RFC822Name("a@elsewhere.example")], "name constraints"),
        ([x509.DNSName("build.elsewhere.example")], "name constraints"),
        ([x509.RFC822Name("a@bad.example.com")], "name constraint"),
    ],
)
@pytest.mark.parametrize("at_root", [False, True])
def test_an_authority_vouches_for_the_names_alone_that_it_may(
    names: list[x509.GeneralName], fault: str, at_root: bool
) -> None:
    root, day = making.Ca(), making.timedelta(days=1)
    permitted = [x509.RFC822Name("example.com"), x509.RFC822Name("bad.example.com"), x509.DNSName("example.com")]
    limited = x509.NameConstraints(permitted, [x509.RFC822Name("bad.example.com")])
    extensions = [(AUTHORITY, True), (ISSUES, True), (limited, True)]
    issuer = root if at_root else making.Ca("between", root)
    issuer.certificate = making.certificate(
        issuer.key, "root" if at_root else "between", None if at_root else root, extensions, -day, day
    )
    alternative = x509.SubjectAlternativeName(names)
    leaf = making.certificate(P256, "signer", issuer, [(making.usage(), True), (alternative, False)], -day, day)
    chain = [leaf] if at_root else [leaf, issuer.certificate]
    if fault:
        with pytest.raises(Unverified, match=fault):
            certificates.verify(chain, [root.certificate], NOW, Profile.PRIVATE, "it")
    else:
        assert certificates.verify(chain, [root.certificate], NOW, Profile.PRIVATE, "it")


@pytest.mark.parametrize(
    ("der", "text"),
    [
        (b"\x0c\x03abc", "abc"),
        (b"\x0c\x81\x80" + b"a" * 128, "a" * 128),
        (b"\x0c\x82\x01\x00" + b"a" * 256, "a" * 256),
        (b"", None),
        (b"\x0c", None),
        (b"\x0c\x03ab", None),
        (b"\x0c\x03abcd", None),
        (b"\x04\x03abc", None),
        (b"\x0c\x80abc", None),
        (b"\x0c\x01\xff", None),
    ],
)
def test_fulcio_s_extensions_are_texts_or_refuse_their_certificate(der: bytes, text: str | None) -> None:
    issuer = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8"), der)
    leaf = making.Ca().signer(issuer)[0]
    if text is None and der:
        with pytest.raises(Unverified, match="cannot be read"):
            certificates.names(leaf, "it")
    else:
        assert certificates.names(leaf, "it").issuer == (text or "")


def test_a_certificate_with_two_issuers_has_none() -> None:
    extensions = [
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1"), b"https://one"),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8"), b"\x0c\x0bhttps://two"),
    ]
    with pytest.raises(Unverified, match="two issuers"):
        certificates.names(making.Ca().signer(*extensions)[0], "it")


def test_a_signature_is_not_taken_for_another_repository_with_the_same_key(sources: Sources) -> None:
    required = TrustPolicy.load(sources).required(Reference.parse("registry.example/team/other:v1"))
    moved = Evidence(simple=(simple(P256),), bundles=(bundle(P256, making.statement(name=str(APP))),))
    with pytest.raises(UntrustedImage, match=r"is for 'registry\.example/team/app"):
        required.check(subject("registry.example/team/other:v1"), moved, NOW)
