"""Every kind of policy file, from the node's configuration to an image that comes or does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from forgeone_shim.attestation.evidence import Endorsement
from forgeone_shim.config.model import SignaturesConfig
from forgeone_shim.deadline import NEVER
from forgeone_shim.errors import UntrustedImage
from forgeone_shim.registry.evidence import cosign_tag
from tests.unit.attestation.making import P256, Ca, bundle, jws, pem, statement

from .conftest import Node
from .registry_double import Contents, FakeRegistry
from .test_evidence import BUNDLE, DSSE, JOSE, NOTARY

SLSA = "https://slsa.dev/provenance/v1"
BUILT = {"buildDefinition": {"buildType": "make"}, "runDetails": {"builder": {"id": "here"}}}
LONG = timedelta(days=3000)


@pytest.fixture
def trusting(node: Node, tmp_path: Path) -> Callable[..., None]:
    """Reads these files as the node's policies."""
    directory = tmp_path / "trust"
    directory.mkdir(mode=0o755)

    def settle(files: dict[str, bytes | dict[str, object]], **settings: str) -> None:
        for name, content in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        named = {key: str(directory / value) if key != "unmatched" else value for key, value in settings.items()}
        node.images.reconfigure(node.config, [], signatures=SignaturesConfig(**named))  # type: ignore[arg-type]

    return settle


def refer(contents: Contents, digest: str, media_type: str, data: bytes, kind: str = "") -> None:
    contents.referrers = contents.referrers if contents.referrers is not None else {}
    entry = contents.add_artifact(layers=[(media_type, data, {})], subject=digest, kind=kind or media_type)
    contents.referrers.setdefault(digest, []).append(entry)


def pulled(node: Node, registry: FakeRegistry) -> Endorsement:
    """What a container would be made by."""
    name = f"{registry.host}/team/app:v1"
    return node.images.endorsement(node.images.pull(name, None, NEVER), name, "", NEVER)


def about(registry: FakeRegistry, mode: str = "enforce", **authority: object) -> dict[str, object]:
    key = {"key": {"data": pem(P256).decode()}, **authority}
    spec = {"images": [{"glob": f"{registry.host}/team/**"}], "authorities": [key], "mode": mode}
    kind = {"apiVersion": "policy.sigstore.dev/v1beta1", "kind": "ClusterImagePolicy"}
    return {**kind, "metadata": {"name": "team"}, "spec": spec}


def test_a_cluster_image_policy_asks_for_a_key(
    node: Node, registry: FakeRegistry, contents: Contents, trusting: Callable[..., None]
) -> None:
    digest = contents.add_image("v1")["digest"]
    trusting({"images/team.json": about(registry)}, images_dir="images")
    with pytest.raises(UntrustedImage, match="it is not signed"):
        pulled(node, registry)
    refer(contents, digest, BUNDLE, bundle(P256, statement("sha256:" + "0" * 64)))
    with pytest.raises(UntrustedImage, match="this image is not among them"):
        pulled(node, registry)
    refer(contents, digest, BUNDLE, bundle(P256, statement(digest)))
    assert len(pulled(node, registry).signers) == 1


@pytest.mark.parametrize("form", ["bundle", "tag"])
def test_a_cluster_image_policy_asks_for_provenance(
    node: Node, registry: FakeRegistry, contents: Contents, trusting: Callable[..., None], form: str
) -> None:
    digest = contents.add_image("v1")["digest"]
    wanted = [{"name": "built", "predicateType": "slsaprovenance1"}]
    trusting({"images/team.json": about(registry, attestations=wanted)}, images_dir="images")
    refer(contents, digest, BUNDLE, bundle(P256, statement(digest)))
    with pytest.raises(UntrustedImage, match="no trusted attestation of type"):
        pulled(node, registry)
    made = bundle(P256, statement(digest, SLSA, BUILT))
    if form == "bundle":
        refer(contents, digest, BUNDLE, made)
    else:
        envelope = json.dumps(json.loads(made)["dsseEnvelope"]).encode()
        contents.add_artifact(cosign_tag(digest, "att"), layers=[(DSSE, envelope, {})])
    found = pulled(node, registry)
    assert [(each.predicate_type, each.signer) for each in found.attestations] == [(SLSA, found.signers[0])]


def test_a_policy_that_warns_lets_an_image_come_and_says_what_it_lacks(
    node: Node, registry: FakeRegistry, contents: Contents, trusting: Callable[..., None]
) -> None:
    contents.add_image("v1")
    trusting({"images/team.json": about(registry, "warn")}, images_dir="images")
    found = pulled(node, registry)
    assert (found.signers, len(found.warnings)) == ((), 1)
    assert "it is not signed" in found.warnings[0]


@pytest.mark.parametrize(("unmatched", "warnings"), [("allow", 0), ("warn", 1), ("deny", None)])
def test_an_image_that_no_policy_is_about_goes_by_unmatched(
    node: Node,
    registry: FakeRegistry,
    contents: Contents,
    trusting: Callable[..., None],
    unmatched: str,
    warnings: int | None,
) -> None:
    contents.add_image("v1")
    policy = about(registry)
    policy["spec"] |= {"images": [{"glob": "other.example/**"}]}  # type: ignore[operator]
    trusting({"images/team.json": policy}, images_dir="images", unmatched=unmatched)
    if warnings is None:
        with pytest.raises(UntrustedImage, match="no policy of this node is about it"):
            pulled(node, registry)
    else:
        assert len(pulled(node, registry).warnings) == warnings
    assert registry.paths("/referrers/") == []


def test_a_notary_project_policy_asks_for_a_certificate(
    node: Node, registry: FakeRegistry, contents: Contents, trusting: Callable[..., None]
) -> None:
    digest, ca, stranger = contents.add_image("v1")["digest"], Ca(), Ca("stranger")
    policy = {
        "name": "team",
        "registryScopes": [f"{registry.host}/team/app"],
        "signatureVerification": {"level": "strict"},
        "trustStores": ["ca:example"],
        "trustedIdentities": ["x509.subject: C=US, ST=WA, O=Example"],
    }
    files = {
        "trustpolicy.json": {"version": "1.0", "trustPolicies": [policy]},
        "roots/x509/ca/example/root.crt": ca.pem,
    }
    trusting(files, notation="trustpolicy.json", roots_dir="roots")
    with pytest.raises(UntrustedImage):
        pulled(node, registry)
    refer(contents, digest, JOSE, jws(P256, stranger.signer(since=-LONG, until=LONG), digest), NOTARY)
    with pytest.raises(UntrustedImage):
        pulled(node, registry)
    refer(contents, digest, JOSE, jws(P256, ca.signer(since=-LONG, until=LONG), digest), NOTARY)
    found = pulled(node, registry)
    assert len(found.signers) == 1
    # It ends with the certificate.
    assert found.expires is not None
