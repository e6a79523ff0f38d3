"""ClusterImagePolicy: which images a policy is about, and who has to have spoken for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forgeone_shim.attestation import dsse, image_policies
from forgeone_shim.attestation.evidence import Endorsement, Evidence, LegacyAttestation, Subject
from forgeone_shim.attestation.image_policies import ImagePolicy
from forgeone_shim.attestation.keyless import TrustedRoot
from forgeone_shim.attestation.policyfiles import Files
from forgeone_shim.attestation.requirements import Requirements
from forgeone_shim.errors import InvalidInput, UntrustedImage
from forgeone_shim.registry.reference import Reference
from tests.unit.attestation import making
from tests.unit.attestation.making import DIGEST, NOW, OTHER, P256, STRANGER, bundle, pem, simple, subject

KEY = {"key": {"data": pem(P256).decode()}}
STRANGERS = {"key": {"data": pem(STRANGER).decode()}}
SIGNED = Evidence(bundles=(bundle(P256),))
ROOT = TrustedRoot.parse(making.fixture("sigstore-conformance/production-root.json"), "root")


def roots(name: str) -> TrustedRoot:
    if name:
        raise InvalidInput("roots", f"there is no trusted root {name}")
    return ROOT


def document(*authorities: dict[str, Any], globs: tuple[str, ...] = ("**",), **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "policy.sigstore.dev/v1beta1",
        "kind": "ClusterImagePolicy",
        "metadata": {"name": "mine"},
        "spec": {"images": [{"glob": glob} for glob in globs], "authorities": list(authorities), **spec},
    }


def read(tmp_path: Path, of: object) -> ImagePolicy:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(of))
    return image_policies.read(path, Files(), roots)


def check(policy: ImagePolicy, evidence: Evidence, about: Subject | None = None) -> Endorsement:
    return Requirements((policy.rule,)).check(about or subject(), evidence, NOW)


@pytest.mark.parametrize(
    ("glob", "image", "fits"),
    [
        ("**", "busybox", True),
        ("*", "busybox", True),
        ("*", "registry.example/app", False),
        ("*/*", "team/app", True),
        ("index.docker.io/library/busybox:*", "busybox", True),
        ("docker.io/library/*", "busybox", True),
        ("registry.example/team/*", "registry.example/team/app:v1", True),
        ("registry.example/team/*", "registry.example/team/app/sub:v1", False),
        ("registry.example/**", "registry.example/team/app/sub:v1", True),
        ("registry.example/team/app**", f"registry.example/team/app@{DIGEST}", True),
        ("registry.example/team/app:*", f"registry.example/team/app:v1@{DIGEST}", True),
        ("registry.example/team/app:*", f"registry.example/team/app@{DIGEST}", False),
        ("registry.example/team/app@sha256:*", f"registry.example/team/app@{DIGEST}", True),
        ("registry.example/team/app:v2", "registry.example/team/app:v1", False),
        ("my-registry.example/**", "my.registry.example/team/app", False),
        ("myXregistry.example/**", "my.registry.example/team/app", False),
        ("index.docker.io/**", "busybox", True),
        ("localhost/app:*", "localhost/app", True),
        ("**/app:*", "registry.example/team/app", True),
    ],
)
def test_globs_are_matched_as_policy_controller_matches_them(tmp_path: Path, glob: str, image: str, fits: bool) -> None:
    assert read(tmp_path, document(KEY, globs=(glob,))).about(Reference.parse(image)) is fits


def test_one_of_the_authorities_is_enough(tmp_path: Path) -> None:
    policy = read(tmp_path, document(KEY, STRANGERS))
    assert len(check(policy, SIGNED).signers) == 1
    assert len(check(policy, Evidence(bundles=(bundle(P256),), simple=(simple(STRANGER),))).signers) == 2
    with pytest.raises(UntrustedImage, match="refused by ClusterImagePolicy mine: it is not signed"):
        check(policy, Evidence())
    with pytest.raises(UntrustedImage, match=r"about 1 artifacts"):
        check(policy, SIGNED, subject(digest=OTHER))


@pytest.mark.parametrize(
    ("form", "in_bundle", "legacy"), [("", True, True), ("bundle", True, False), ("legacy", False, True)]
)
def test_the_form_of_signature_that_is_asked_for_counts_alone(
    tmp_path: Path, form: str, in_bundle: bool, legacy: bool
) -> None:
    policy = read(tmp_path, document({**KEY, "signatureFormat": form} if form else KEY))
    for evidence, good in ((SIGNED, in_bundle), (Evidence(simple=(simple(P256),)), legacy)):
        if good:
            assert check(policy, evidence).signers
        else:
            with pytest.raises(UntrustedImage):
                check(policy, evidence)


def test_in_mode_warn_the_image_passes_and_the_reason_is_told(tmp_path: Path) -> None:
    policy = read(tmp_path, document(KEY, mode="warn"))
    found = check(policy, Evidence())
    assert found.signers == ()
    assert found.warnings == ("registry.example/team/app:v1: refused by ClusterImagePolicy mine: it is not signed",)
    assert check(policy, SIGNED).warnings == ()


@pytest.mark.parametrize("legacy", [True, False])
def test_an_attestation_that_is_asked_for_has_to_be_there_by_that_authority(tmp_path: Path, legacy: bool) -> None:
    asked = {**KEY, "attestations": [{"name": "built", "predicateType": "slsaprovenance1"}]}
    policy = read(tmp_path, document(asked))

    def attested(key: making.Private, kind: str = making.SLSA, digest: str = DIGEST) -> Evidence:
        payload = making.statement(digest, kind, making.PROVENANCE)
        if not legacy:
            return Evidence(bundles=(bundle(key, payload),))
        signature = dsse.Signature("", making.sign(key, dsse.pae(making.IN_TOTO, payload)))
        envelope = dsse.encode(dsse.Envelope(making.IN_TOTO, payload, (signature,)))
        return Evidence(attestations=(LegacyAttestation(envelope),))

    found = check(policy, attested(P256))
    assert [each.predicate_type for each in found.attestations] == [making.SLSA]
    assert found.signers
    for evidence in (attested(STRANGER), attested(P256, "https://example.com/x"), attested(P256, digest=OTHER), SIGNED):
        with pytest.raises(UntrustedImage, match=r"no trusted attestation of type https://slsa\.dev/provenance/v1"):
            check(policy, evidence)


def test_a_signature_can_be_asked_for_by_the_type_of_its_statement(tmp_path: Path) -> None:
    types = [{"name": "signed", "predicateType": making.SIGN}, {"name": "built", "predicateType": "slsaprovenance1"}]
    policy = read(tmp_path, document({**KEY, "attestations": types}))
    attested = bundle(P256, making.statement(DIGEST, making.SLSA, making.PROVENANCE))
    assert check(policy, Evidence(bundles=(bundle(P256), attested))).signers
    for evidence in (SIGNED, Evidence(bundles=(attested,))):
        with pytest.raises(UntrustedImage, match="no trusted attestation of type"):
            check(policy, evidence)


def test_static_authorities_need_no_evidence(tmp_path: Path) -> None:
    passing = read(tmp_path, document({"static": {"action": "pass"}}))
    assert not passing.rule.wanted
    assert check(passing, Evidence()) == Endorsement()
    failing = read(tmp_path, document({"static": {"action": "fail", "message": "not here"}}))
    with pytest.raises(UntrustedImage, match="not here"):
        check(failing, SIGNED)
    assert check(read(tmp_path, document({"static": {"action": "fail"}}, KEY)), SIGNED).signers


def test_a_log_by_url_is_that_of_the_default_trusted_root(tmp_path: Path) -> None:
    policy = read(tmp_path, document({**KEY, "ctlog": {"url": "https://rekor.sigstore.dev"}}))
    with pytest.raises(UntrustedImage, match="no entry of a transparency log"):
        check(policy, SIGNED)
    assert check(read(tmp_path, document({**KEY, "ctlog": {}})), SIGNED).signers


def test_keys_may_sign_with_the_hash_that_is_named_alone(tmp_path: Path) -> None:
    key = making.rsa.generate_private_key(65537, 2048)
    policy = read(tmp_path, document({"key": {"data": pem(key).decode(), "hashAlgorithm": "sha512"}}))
    payload = making.simple_payload()
    good = making.SimpleSignature(payload, making.b64(making.sign(key, payload, making.hashes.SHA512())))
    assert check(policy, Evidence(simple=(good,))).signers
    with pytest.raises(UntrustedImage):
        check(policy, Evidence(simple=(simple(key),)))


KEYLESS = {"identities": [{"issuer": "https://example.com", "subject": "a@example.com"}]}


DEAD = (
    "busybox*",
    "busybox:*",
    "library/busybox:*",
    "registry.example",
    "registry.example*",
    "registry.example/team/app",
    "registry.example:5000/app",
    "registry.example/**/app",
    "registry.example/team/",
    "docker.io/busybox:*",
    "index.docker.io/*",
)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"apiVersion": "v1"}, "apiVersion"),
        ({"kind": "Pod"}, "kind"),
        ({"metadata": {}}, r"metadata\.name"),
        ({"spec": {"images": [], "authorities": [KEY]}}, r"spec\.images"),
        ({"spec": {"images": [{"glob": "**"}], "authorities": []}}, r"spec\.authorities"),
        ({"spec": {"images": [{"glob": "a b"}], "authorities": [KEY]}}, r"spec\.images\[0\]\.glob"),
        (document(KEY, mode="loud"), r"spec\.mode"),
        (document(KEY, match=[{"resource": "pods"}]), "match"),
        (document(KEY, policy={"type": "cue", "data": ""}), r"\.spec: policy cannot be held to on a node"),
        (document(KEY, polcy={}), r"\.spec: .*unknown field `polcy`"),
        (document({}), r"authorities\[0\]"),
        (document({**KEY, "static": {"action": "pass"}}), r"authorities\[0\]"),
        (
            document({"static": {"action": "pass"}, "attestations": [{"name": "x", "predicateType": "y"}]}),
            "static asks",
        ),
        (document({"static": {"action": "pass"}, "ctlog": {}}), "static asks"),
        *((document(KEY, globs=(glob,)), r"glob.*matches no image") for glob in DEAD),
        (document({"key": {"secretRef": {"name": "x"}}}), r"authorities\[0\]\.key"),
        (document({"key": {"kms": "awskms://x"}}), r"authorities\[0\]\.key"),
        (document({"key": {"data": "nonsense"}}), r"authorities\[0\]\.key\.data"),
        (document({"key": {"data": making.fixture("sigstore-conformance/malformed.pub").decode()}}), r"key\.data"),
        (document({**KEY, "source": [{"oci": "x"}]}), "source"),
        (document({**KEY, "rfc3161timestamp": {}}), "rfc3161timestamp"),
        (document({**KEY, "ctlog": {"trustRootRef": "absent"}}), r"ctlog.*absent"),
        (document({**KEY, "attestations": [{"name": "x", "predicateType": "y", "policy": {}}]}), "policy"),
        (document({"keyless": {"identities": []}}), "identities"),
        (document({"keyless": {"identities": [{"issuer": "x"}]}}), r"identities\[0\].*subject"),
        (document({"keyless": {"identities": [{"issuer": "x", "issuerRegExp": "x", "subject": "y"}]}}), "issuer"),
        (document({"keyless": {"identities": [{"issuer": "x", "subjectRegExp": "("}]}}), "subjectRegExp"),
        (document({"keyless": {**KEYLESS, "trustRootRef": "absent"}}), "absent"),
        (
            document({"keyless": {**KEYLESS, "url": "https://fulcio.elsewhere.example"}}),
            r"keyless\.url.*no certificate",
        ),
        (document({**KEY, "ctlog": {"url": "https://rekor.elsewhere.example"}}), r"ctlog\.url.*no log"),
        (document({"keyless": {**KEYLESS, "ca-cert": {"data": "x"}}}), "keyless"),
    ],
)
def test_what_cannot_be_held_to_is_refused_when_it_is_read(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        read(tmp_path, {**document(KEY), **change})


def test_a_url_has_to_be_one_of_the_trusted_root_s(tmp_path: Path) -> None:
    keyless = {**KEYLESS, "url": "http://fulcio.sigstore.dev/"}
    assert read(tmp_path, document({"keyless": keyless, "ctlog": {"url": "https://rekor.sigstore.dev"}})).rule.wanted


def test_yaml_is_read_as_kubectl_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    indented = "\n".join(f"          {line}" for line in pem(P256).decode().splitlines())
    path.write_text(
        "apiVersion: policy.sigstore.dev/v1alpha1\nkind: ClusterImagePolicy\nmetadata:\n  name: mine\n"
        "  creationTimestamp: 2024-01-01T00:00:00Z\nspec:\n  images:\n  - glob: '**'\n  authorities:\n"
        f"  - key:\n      data: |\n{indented}\nstatus: {{}}\n"
    )
    assert check(image_policies.read(path, Files(), roots), SIGNED).signers
