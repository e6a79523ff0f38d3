"""Images judged at their pull and when containers are made of them: what is asked, what is kept, what is refused."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from forgeone_shim.attestation.evidence import Endorsement, Evidence, Kind, Subject
from forgeone_shim.attestation.requirements import Requirements
from forgeone_shim.attestation.rules import Warned
from forgeone_shim.config.model import PackagesConfig, SignaturesConfig
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded, ForgeError, InvalidInput, Unavailable, UntrustedImage
from forgeone_shim.registry import endorsing, layout, vetting
from forgeone_shim.registry.endorsing import subjects
from forgeone_shim.registry.evidence import cosign_tag, fallback_tag
from forgeone_shim.registry.layout import Archive
from forgeone_shim.registry.model import Image
from forgeone_shim.registry.modules import VARIANT
from forgeone_shim.registry.reference import Reference
from forgeone_shim.registry.service import ImageService
from forgeone_shim.registry.vetting import Case, Vetting
from tests.unit.package.conftest import KEY, Make, make

from .conftest import Node
from .registry_double import Contents, FakeRegistry, Handler, sha256, tar_of
from .test_evidence import BUNDLE, SIMPLE
from .test_packages import serve

__all__ = ["make"]


@dataclass(frozen=True)
class Signed:
    """Demands a bundle that says ``SIGNER signs DIGEST``."""

    signer: str
    wanted: frozenset[Kind] = frozenset({Kind.BUNDLES})
    expires: float | None = None

    def check(self, subject: Subject, evidence: Evidence, now: datetime) -> Endorsement:
        if not {f"{self.signer} signs {digest}".encode() for digest in subject.digests} & {*evidence.bundles}:
            raise UntrustedImage(f"{subject.reference} is not signed by {self.signer}", fix=f"ask {self.signer}")
        return Endorsement((f"key:{self.signer}",), expires=self.expires)


@dataclass(frozen=True)
class Reject:
    """Demands what cannot be had."""

    wanted: frozenset[Kind] = frozenset()

    def check(self, subject: Subject, evidence: Evidence, now: datetime) -> Endorsement:
        raise UntrustedImage(f"{subject.reference} is rejected")


class Policies:
    """Rules by repository, or by namespace and repository."""

    def __init__(self, digest: str = "one", **rules: Signed | Reject) -> None:
        self.digest, self.rules = digest, rules
        self.checks = 0

    def required(self, reference: Reference, namespace: str = "") -> Requirements:
        self.checks += 1
        name = reference.repository
        found = self.rules.get(f"{namespace}_{name}", self.rules.get(name))
        return Requirements(() if found is None else (found,))


class Listener:
    """A witness that remembers."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []

    def endorsed(self, subject: Subject, namespace: str, found: Endorsement, deadline: Deadline) -> None:
        self.heard.append(("endorsed", subject.digest, namespace, *found.signers))

    def refused(self, subject: Subject, namespace: str, why: str, deadline: Deadline) -> str:
        self.heard.append(("refused", subject.digest, namespace, why))
        return "audit:7"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Policies:
    """What policies the node's files hold, to be changed before it reads them."""
    held = Policies(app=Signed("alice"))

    def read(config: SignaturesConfig, before: Vetting | None = None) -> Vetting | None:
        return Vetting(held, None) if config.policy else None

    monkeypatch.setattr(vetting.Vetting, "open", read)
    monkeypatch.setattr("forgeone_shim.registry.source._ROUNDS", 1)
    return held


@pytest.fixture
def listener(node: Node, loaded: Policies) -> Listener:
    listener = Listener()
    node.images = ImageService(
        node.store,
        node.root,
        node.config,
        node.layers,
        pinned=(),
        layers_in_use=lambda: set(node.in_use),
        signatures=SignaturesConfig(policy="/policy.json"),
        witness=listener,
    )
    return listener


def reload(node: Node) -> None:
    node.images.reconfigure(node.config, [], signatures=SignaturesConfig(policy="/policy.json"))


def sign(contents: Contents, digest: str, signer: str = "alice") -> str:
    """Returns the digest of the signature's blob."""
    contents.referrers = contents.referrers if contents.referrers is not None else {}
    data = f"{signer} signs {digest}".encode()
    entry = contents.add_artifact(layers=[(BUNDLE, data, {})], subject=digest, kind=BUNDLE)
    contents.referrers.setdefault(digest, []).append(entry)
    return sha256(data)


def name(registry: FakeRegistry, repository: str = "app", tag: str = "v1") -> str:
    return f"{registry.host}/{repository}:{tag}"


def test_a_signed_image_comes_and_says_who_signed_it(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, loaded: Policies
) -> None:
    digest = contents.add_image("v1")["digest"]
    sign(contents, digest)
    image = node.images.pull(name(registry), None, NEVER, namespace="team")
    assert listener.heard == [("endorsed", digest, "team", "key:alice")]
    before = len(registry.seen), loaded.checks
    assert node.images.endorsement(image, name(registry), "team", NEVER).signers == ("key:alice",)
    assert (len(registry.seen), loaded.checks) == before


def test_of_an_image_that_nobody_signed_nothing_comes(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener
) -> None:
    manifest = contents.add_image("v1")
    with pytest.raises(UntrustedImage) as caught:
        node.images.pull(name(registry), None, NEVER)
    text = f"SignatureValidationFailed: {name(registry)} is not signed by alice [audit:7] (ask alice)"
    assert str(caught.value) == text
    assert listener.heard == [("refused", manifest["digest"], "", f"{name(registry)} is not signed by alice")]
    assert node.left_over() == []
    assert not {path.rpartition("/")[2] for path in registry.paths("/blobs/")} & {*contents.layer_digests(manifest)}


def test_a_signature_over_the_index_counts_for_what_it_names(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener
) -> None:
    entry = {**contents.add_image(), "platform": {"os": "linux", "architecture": "amd64"}}
    index = contents.add_index("v1", entries=[entry])
    sign(contents, index["digest"])
    image = node.images.pull(name(registry), None, NEVER)
    reload(node)
    assert node.images.endorsement(image, name(registry), "", NEVER).signers == ("key:alice",)


def test_what_was_found_at_the_pull_counts_without_the_registry(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, loaded: Policies
) -> None:
    digest = contents.add_image("v1")["digest"]
    sign(contents, digest)
    sign(contents, digest, "bob")
    image = node.images.pull(name(registry), None, NEVER)
    loaded.rules["app"] = Signed("bob")
    reload(node)
    registry.seen.clear()
    assert node.images.endorsement(image, name(registry), "", NEVER).signers == ("key:bob",)
    assert registry.seen == []


def test_an_image_from_before_the_policy_is_judged_when_a_container_is_made(
    node: Node, registry: FakeRegistry, contents: Contents, loaded: Policies
) -> None:
    digest = contents.add_image("v1")["digest"]
    image = node.images.pull(name(registry), None, NEVER)
    assert node.images.endorsement(image, name(registry), "", NEVER) == Endorsement()
    reload(node)
    with pytest.raises(UntrustedImage, match="not signed by alice"):
        node.images.endorsement(image, name(registry), "", NEVER)
    sign(contents, digest)
    assert node.images.endorsement(image, name(registry), "", NEVER).signers == ("key:alice",)
    # It is kept from now on, through a restart and with the registry gone.
    contents.manifests.clear()
    contents.blobs.clear()
    reload(node)
    image = node.images.resolve(image.id)
    assert node.images.endorsement(image, name(registry), "", NEVER).signers == ("key:alice",)
    node.images.remove(image.id)
    assert node.left_over() == []


def test_a_policy_that_became_stricter_counts_for_what_is_here(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, loaded: Policies
) -> None:
    sign(contents, contents.add_image("v1")["digest"])
    image = node.images.pull(name(registry), None, NEVER)
    loaded.rules["app"] = Reject()
    reload(node)
    registry.seen.clear()
    with pytest.raises(UntrustedImage, match="is rejected"):
        node.images.endorsement(image, name(registry), "", NEVER)
    assert registry.seen == []


def test_each_namespace_has_its_own_policy(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, loaded: Policies
) -> None:
    sign(contents, contents.add_image("v1")["digest"])
    loaded.rules["strict_app"] = Signed("bob")
    image = node.images.pull(name(registry), None, NEVER, namespace="lax")
    with pytest.raises(UntrustedImage, match="bob"):
        node.images.pull(name(registry), None, NEVER, namespace="strict")
    with pytest.raises(UntrustedImage, match="bob"):
        node.images.endorsement(image, name(registry), "strict", NEVER)
    assert node.images.endorsement(image, name(registry), "lax", NEVER).signers == ("key:alice",)


def test_a_pull_that_began_before_a_reload_is_not_shared_with_one_that_came_after(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, loaded: Policies
) -> None:
    (layer,) = contents.layer_digests(contents.add_image("v1"))
    rule = loaded.rules.pop("app")
    going, go = threading.Event(), threading.Event()

    def hold(handler: Handler) -> bool:
        if handler.path.endswith(layer):
            going.set()
            go.wait(10)
        return False

    registry.hook = hold
    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(node.images.pull, name(registry), None, NEVER)
        assert going.wait(10)
        loaded.rules["app"] = rule
        reload(node)
        after = pool.submit(node.images.pull, name(registry), None, NEVER)
        try:
            with pytest.raises(UntrustedImage, match="not signed by alice"):
                after.result(10)
        finally:
            go.set()
    assert before.result(10).repo_tags == (name(registry),)
    with pytest.raises(UntrustedImage, match="not signed by alice"):
        node.images.endorsement(before.result(), name(registry), "", NEVER)


@dataclass(frozen=True)
class SimplySigned:
    """Demands a signature of before bundles."""

    wanted: frozenset[Kind] = frozenset({Kind.SIMPLE})

    def check(self, subject: Subject, evidence: Evidence, now: datetime) -> Endorsement:
        if not evidence.simple:
            raise UntrustedImage(f"{subject.reference} is not signed simply")
        return Endorsement(("key:simple",))


def test_what_namespaces_ask_for_in_different_forms_is_kept_beside_each_other(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, loaded: Policies
) -> None:
    digest = contents.add_image("v1")["digest"]
    sign(contents, digest)
    contents.add_artifact(cosign_tag(digest, "sig"), layers=[(SIMPLE, b"a payload", {})])
    loaded.rules["other_app"] = cast(Signed, SimplySigned())
    node.images.pull(name(registry), None, NEVER, namespace="one")
    image = node.images.pull(name(registry), None, NEVER, namespace="other")
    contents.manifests.clear()
    contents.blobs.clear()
    for _ in range(2):
        reload(node)
        registry.seen.clear()
        signers = [node.images.endorsement(image, name(registry), one, NEVER).signers for one in ("one", "other")]
        assert signers == [("key:alice",), ("key:simple",)]
        assert registry.seen == []
    node.images.remove(image.id)
    assert node.left_over() == []


def test_what_a_container_needs_beside_what_was_kept_is_added(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, loaded: Policies
) -> None:
    digest = contents.add_image("v1")["digest"]
    sign(contents, digest)
    contents.add_artifact(cosign_tag(digest, "sig"), layers=[(SIMPLE, b"a payload", {})])
    image = node.images.pull(name(registry), None, NEVER)
    loaded.rules["other_app"] = cast(Signed, SimplySigned())
    assert node.images.endorsement(image, name(registry), "other", NEVER).signers == ("key:simple",)
    contents.referrers = {}
    reload(node)
    image = node.images.resolve(image.id)
    assert node.images.endorsement(image, name(registry), "", NEVER).signers == ("key:alice",)


def test_a_name_is_judged_by_its_own_policy_whatever_else_the_image_is_called(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, loaded: Policies
) -> None:
    """The same bytes under a name that demands nothing open no door to one that does."""
    contents.add_image("v1")
    image = node.images.pull(name(registry, "free"), None, NEVER)
    assert node.images.endorsement(image, name(registry, "free"), "", NEVER).signers == ()
    with pytest.raises(UntrustedImage, match="not signed by alice"):
        node.images.endorsement(image, name(registry), "", NEVER)
    # By its id it is what it was pulled as.
    for said in (image.id, image.id.removeprefix("sha256:"), image.id[7:20], ""):
        assert node.images.endorsement(image, said, "", NEVER).signers == ()


def test_the_same_files_packed_otherwise_under_another_name_stay_signed_under_theirs(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, loaded: Policies
) -> None:
    layers = [tar_of({"hello": b"hello"})]
    digest = contents.add_image("v1", layers=layers, packed="gzip")["digest"]
    sign(contents, digest)
    image = node.images.pull(name(registry), None, NEVER)
    contents.add_image("v2", layers=layers, packed="zstd")
    assert node.images.pull(name(registry, "free", "v2"), None, NEVER).id == image.id
    reload(node)
    image = node.images.resolve(image.id)
    assert image.manifest_digest != digest
    registry.seen.clear()
    assert node.images.endorsement(image, name(registry), "", NEVER).signers == ("key:alice",)
    assert registry.seen == []


def test_a_manifest_that_nobody_signed_does_not_say_how_a_signed_one_runs(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, loaded: Policies
) -> None:
    """The same config and layers, under another name, called WebAssembly by an annotation."""
    digest = contents.add_image("v1")["digest"]
    sign(contents, digest)
    image = node.images.pull(name(registry), None, NEVER)
    document = json.loads(contents.manifests[digest][1])
    document["annotations"] = {VARIANT: "compat"}
    contents.add_manifest(document, "v2")
    other = node.images.pull(name(registry, "free", "v2"), None, NEVER)
    assert other.annotations == {VARIANT: "compat"}
    assert node.images.resolve(name(registry)).annotations == image.annotations == {}
    assert node.images.resolve(image.id).annotations == {}
    node.images.pull(name(registry), None, NEVER)
    assert node.images.resolve(other.id).annotations == other.annotations
    reload(node)
    assert node.images.endorsement(node.images.resolve(image.id), name(registry), "", NEVER).signers == ("key:alice",)


def test_a_name_with_another_images_digest_is_refused(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener
) -> None:
    sign(contents, contents.add_image("v1")["digest"])
    image = node.images.pull(name(registry), None, NEVER)
    with pytest.raises(UntrustedImage, match="is not the image"):
        node.images.endorsement(image, f"{registry.host}/app@{sha256(b'another')}", "", NEVER)


def test_a_registry_that_cannot_be_asked_is_no_verdict(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener
) -> None:
    contents.add_image("v1")
    registry.hook = lambda handler: "/referrers/" in handler.path and handler.answer(503)
    with pytest.raises(Unavailable, match=r"not signed by alice; .*server error 503"):
        node.images.pull(name(registry), None, NEVER)
    assert listener.heard == []
    assert node.left_over() == []


def test_an_image_that_is_here_is_refused_where_the_registry_cannot_be_asked(
    node: Node, registry: FakeRegistry, contents: Contents, loaded: Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents.add_image("v1")
    image = node.images.pull(name(registry), None, NEVER)
    reload(node)
    registry.hook = lambda handler: "/referrers/" in handler.path and handler.answer(503)
    with pytest.raises(UntrustedImage, match=r"not signed by alice; .*server error 503"):
        node.images.endorsement(image, name(registry), "", NEVER)

    def stall(handler: Handler) -> bool:
        registry.stall()
        return True

    registry.hook = stall
    monkeypatch.setattr(endorsing, "SEARCH_SECONDS", 0.2)
    with pytest.raises(UntrustedImage, match="did not answer in time"):
        node.images.endorsement(image, name(registry), "", NEVER)
    with pytest.raises(DeadlineExceeded):
        node.images.endorsement(image, name(registry), "", Deadline.after(0.1))


def test_all_names_of_an_image_together_wait_no_longer_for_registries_than_one(
    node: Node, registry: FakeRegistry, contents: Contents, loaded: Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents.add_image("v1", "v2", "v3", "v4")
    for tag in ("v1", "v2", "v3", "v4"):
        image = node.images.pull(name(registry, tag=tag), None, NEVER)
    reload(node)

    def stall(handler: Handler) -> bool:
        registry.stall()
        return True

    registry.hook = stall
    monkeypatch.setattr(endorsing, "SEARCH_SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(UntrustedImage, match="did not answer in time"):
        node.images.endorsement(image, image.id, "", NEVER)
    assert time.monotonic() - began < 2.5


def test_what_is_kept_counts_without_credentials_that_can_be_read(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, tmp_path: Path
) -> None:
    sign(contents, contents.add_image("v1")["digest"])
    image = node.images.pull(name(registry), None, NEVER)
    (tmp_path / "auth.json").write_text("{")
    node.config = replace(node.config, auth_file=str(tmp_path / "auth.json"))
    reload(node)
    assert node.images.endorsement(image, name(registry), "", NEVER).signers == ("key:alice",)
    # Where they are needed it is the image that is refused.
    node.images.remove(image.id)
    with pytest.raises(UntrustedImage, match=r"auth.json: holds credentials and others"):
        node.images.endorsement(image, name(registry), "other", NEVER)


def test_a_verdict_is_asked_for_again_when_it_has_expired(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, loaded: Policies
) -> None:
    sign(contents, contents.add_image("v1")["digest"])
    loaded.rules["app"] = Signed("alice", expires=1.0)
    image = node.images.pull(name(registry), None, NEVER)
    before = loaded.checks
    node.images.endorsement(image, name(registry), "", NEVER)
    node.images.endorsement(image, name(registry), "", NEVER)
    assert loaded.checks == before + 2


def test_newer_evidence_takes_the_place_of_the_older(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener
) -> None:
    digest = contents.add_image("v1")["digest"]
    sign(contents, digest)
    first = node.images.pull(name(registry), None, NEVER)
    sign(contents, digest, "bob")
    second = node.images.pull(name(registry), None, NEVER)
    old, new = *first.evidence.values(), *second.evidence.values()
    assert old != new
    assert (node.images.document(old), node.images.document(new) is not None) == (None, True)
    assert old not in second.blobs
    # Removed and pulled again it is there again, whatever is remembered.
    node.images.remove(second.id)
    assert node.left_over() == []
    assert [*node.images.pull(name(registry), None, NEVER).evidence.values()] == [new]
    node.images.collect_garbage()
    assert node.images.document(new) is not None


def test_kept_evidence_that_was_tampered_with_is_none(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener
) -> None:
    sign(contents, contents.add_image("v1")["digest"])
    image = node.images.pull(name(registry), None, NEVER)
    (digest,) = image.evidence.values()
    (node.root / "images" / "sha256" / digest[7:]).write_bytes(b"mallory")
    contents.referrers = {}
    reload(node)
    with pytest.raises(UntrustedImage, match="not signed by alice"):
        node.images.endorsement(image, name(registry), "", NEVER)


def test_who_signed_a_package_stands_behind_it_without_other_evidence(
    node: Node,
    registry: FakeRegistry,
    contents: Contents,
    listener: Listener,
    loaded: Policies,
    make: Make,
    tmp_path: Path,
) -> None:
    (tmp_path / "keys").mkdir(mode=0o755)
    (tmp_path / "keys" / "it.pem").write_bytes(KEY.public.pem())
    digest = serve(contents, make())
    keys = PackagesConfig(trusted_keys=str(tmp_path / "keys"))
    node.images.reconfigure(node.config, [], keys)
    loaded.rules["logger"] = Signed("alice")
    image = node.images.pull(name(registry, "logger"), None, NEVER)
    assert listener.heard == [("endorsed", digest, "", f"key:{KEY.public.id}")]
    assert node.images.endorsement(image, name(registry, "logger"), "", NEVER).signers == (f"key:{KEY.public.id}",)
    loaded.rules["logger"] = Reject()
    reload(node)
    with pytest.raises(UntrustedImage, match="is rejected"):
        node.images.endorsement(image, name(registry, "logger"), "", NEVER)


def test_a_key_that_was_taken_away_stands_behind_no_package_that_is_here(
    node: Node,
    registry: FakeRegistry,
    contents: Contents,
    listener: Listener,
    loaded: Policies,
    make: Make,
    tmp_path: Path,
) -> None:
    key = tmp_path / "keys" / "it.pem"
    key.parent.mkdir(mode=0o755)
    key.write_bytes(KEY.public.pem())
    serve(contents, make())
    node.images.reconfigure(node.config, [], PackagesConfig(trusted_keys=str(key.parent)))
    loaded.rules["logger"] = Signed("alice")
    image = node.images.pull(name(registry, "logger"), None, NEVER)
    key.chmod(0o666)
    with pytest.raises(UntrustedImage, match="not signed by alice"):
        node.images.endorsement(image, name(registry, "logger"), "", NEVER)
    key.unlink()
    with pytest.raises(UntrustedImage, match="not signed by alice"):
        node.images.endorsement(image, name(registry, "logger"), "", NEVER)
    node.images.reconfigure(node.config, [], signatures=SignaturesConfig())
    assert node.images.endorsement(image, name(registry, "logger"), "", NEVER) == Endorsement()


def test_an_unsigned_package_has_to_meet_the_policies(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, loaded: Policies, make: Make
) -> None:
    serve(contents, make(key=None))
    node.images.reconfigure(node.config, [], PackagesConfig(trusted_keys="/nowhere", unsigned="allow"))
    loaded.rules["logger"] = Signed("alice")
    with pytest.raises(UntrustedImage, match="not signed by alice"):
        node.images.pull(name(registry, "logger"), None, NEVER)


def test_an_image_cannot_say_itself_that_it_is_a_signed_package(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener
) -> None:
    made = contents.add_image()
    document = json.loads(contents.manifests[made["digest"]][1])
    document["annotations"] = {"forgeone.dev/package-signers": KEY.public.id}
    contents.add_manifest(document, "v1")
    with pytest.raises(UntrustedImage, match="not signed by alice"):
        node.images.pull(name(registry), None, NEVER)


def test_only_so_many_verdicts_are_remembered(loaded: Policies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vetting, "MAX_VERDICTS", 2)
    made = Vetting(loaded, None)
    cases = [Case(Subject(Reference.parse(f"free:v{number}"), sha256(b"x"))) for number in range(3)]
    for case in cases:
        made.vet(case, (), pytest.fail, lambda: None, NEVER)
    assert [made.known(case) is not None for case in cases] == [False, True, True]


def test_policies_that_cannot_be_read_change_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(config: SignaturesConfig, before: Vetting | None = None) -> Vetting | None:
        raise InvalidInput("policy.json", "is malformed")

    before = node.images._settings
    monkeypatch.setattr(vetting.Vetting, "open", fails)
    with pytest.raises(ForgeError, match="malformed"):
        node.images.reconfigure(replace(node.config, keep_blobs=True), ["*"], signatures=SignaturesConfig(policy="/x"))
    assert node.images._settings is before


def index_of(*digests: str) -> bytes:
    entries = [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": one, "size": 1} for one in digests]
    return json.dumps({"schemaVersion": 2, "manifests": entries}).encode()


@pytest.fixture
def image() -> Iterator[Image]:
    return Image(
        id=sha256(b"config"),
        repo_tags=("a.example/x:v1", "b.example/y:v2"),
        repo_digests=(f"a.example/x@{sha256(b'index')}", f"c.example/z@{sha256(b'manifest')}"),
        manifest_digest=sha256(b"manifest"),
    )


def test_an_image_is_judged_by_what_led_to_it(image: Image) -> None:
    manifest, index, inner = sha256(b"manifest"), sha256(b"index"), sha256(b"inner")
    reference = Reference.parse("a.example/x:v1")

    def judged(kept: dict[str, bytes], said: str = "a.example/x:v1") -> list[Subject]:
        return subjects(image, said, kept.get)

    assert judged({index: index_of(manifest)}) == [Subject(reference, manifest, index)]
    assert judged({index: index_of(inner), inner: index_of(manifest)}) == [Subject(reference, manifest, index)]
    # An index that does not lead to it, or is not kept, lends it no signature.
    for kept in ({}, {index: index_of(inner)}, {index: b"{}"}, {index: index_of(index)}):
        assert judged(kept) == [Subject(reference, manifest)]
    assert judged({}, "d.example/other") == [Subject(Reference.parse("d.example/other"), manifest)]
    assert [str(one.reference) for one in judged({}, image.id)] == [*image.repo_tags, image.repo_digests[1]]
    assert fallback_tag(manifest) == manifest.replace(":", "-")


def archive(contents: Contents, path: Path, *entries: dict[str, object]) -> Path:
    """A layout of everything that a registry has, with this index."""
    held = {**contents.blobs, **{name: data for name, (_, data) in contents.manifests.items() if ":" in name}}
    blobs = [layout.Blob(name, len(data), lambda data=data: io.BytesIO(data)) for name, data in held.items()]
    with path.open("wb") as file:
        layout.write(file, entries, blobs)
    return path


def load(node: Node, path: Path, said: str = "") -> Image:
    with path.open("rb") as file:
        (image,) = node.images.load(Archive(cast(BinaryIO, file), path.name), NEVER, said)
        return image


def noted(entry: dict[str, object], **notes: str) -> dict[str, object]:
    return {**entry, "annotations": {key.replace("_", "."): value for key, value in notes.items()}}


@pytest.mark.parametrize("form", ["subject", "kind", "tag"])
def test_signatures_come_with_an_archive_and_count_when_a_container_is_made(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, tmp_path: Path, form: str
) -> None:
    made = contents.add_image()
    digest = str(made["digest"])
    said = f"alice signs {digest}".encode()
    signature = contents.add_artifact(layers=[(BUNDLE, said, {})], subject=digest if form == "subject" else "")
    if form == "kind":
        signature = noted(signature, kind="dev.cosignproject.cosign/sigs")
    elif form == "tag":
        listing = contents.add_index(entries=[signature])
        signature = noted(listing, org_opencontainers_image_ref_name=fallback_tag(digest))
    image = load(node, archive(contents, tmp_path / "it.tar", made, signature), name(registry))
    assert image.repo_tags == (name(registry),)
    contents.manifests.clear()
    assert node.images.endorsement(image, name(registry), "", NEVER).signers == ("key:alice",)
    node.images.remove(image.id)
    assert node.left_over() == []


def test_what_is_kept_of_those_who_signed_goes_with_an_export(
    node: Node,
    make_node: Callable[..., Node],
    registry: FakeRegistry,
    contents: Contents,
    listener: Listener,
    loaded: Policies,
    tmp_path: Path,
) -> None:
    """From a node that reaches the registry to one that does not."""
    entry = {**contents.add_image(), "platform": {"os": "linux", "architecture": "amd64"}}
    index = str(contents.add_index("v1", entries=[entry])["digest"])
    sign(contents, index)
    notes = {"dev.cosignproject.cosign/signature": "c2ln", "dev.sigstore.cosign/certificate": "it"}
    contents.add_artifact(cosign_tag(index, "sig"), layers=[(SIMPLE, b"a payload", notes)])
    loaded.rules["app"] = replace(Signed("alice"), wanted=frozenset(Kind))
    node.images.reconfigure(replace(node.config, keep_blobs=True), [])
    node.images.pull(name(registry), None, NEVER)
    path = tmp_path / "it.tar"
    path.write_bytes(b"".join(node.images.export([name(registry)])))
    assert path.read_bytes() == b"".join(node.images.export([name(registry)]))
    there = make_node()
    image = load(there, path)
    assert image.repo_tags == (name(registry),)
    reload(there)
    registry.seen.clear()
    assert there.images.endorsement(image, name(registry), "", NEVER).signers == ("key:alice",)
    assert registry.seen == []
    # And on: the same evidence is in an export of what was imported.
    first, second = (one.evidence for one in (*node.images.list(), *there.images.list()))
    assert first == second


def test_an_archive_without_signatures_is_taken_and_refused_when_a_container_is_made(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, tmp_path: Path
) -> None:
    made = contents.add_image()
    other = contents.add_artifact(layers=[(BUNDLE, b"alice signs it", {})], subject=sha256(b"another"))
    image = load(node, archive(contents, tmp_path / "it.tar", made, other), name(registry))
    assert image.evidence == {}
    with pytest.raises(UntrustedImage, match="not signed by alice"):
        node.images.endorsement(image, name(registry), "", NEVER)
    with pytest.raises(InvalidInput, match="holds no image"):
        load(node, archive(contents, tmp_path / "it.tar", other), name(registry))


def test_an_archive_that_understates_its_signatures_does_not_fill_the_memory(
    node: Node, registry: FakeRegistry, contents: Contents, listener: Listener, tmp_path: Path
) -> None:
    """One blob under many signatures is as many pieces of evidence."""
    made, large = contents.add_image(), bytes(1 << 20)
    layers = [(SIMPLE, large, {"dev.cosignproject.cosign/signature": str(number)}) for number in range(64)]
    entry = contents.add_artifact(layers=layers)
    document = json.loads(contents.manifests[entry["digest"]][1])
    for layer in document["layers"]:
        layer["size"] = 1
    image = load(node, archive(contents, tmp_path / "it.tar", made, contents.add_manifest(document)), name(registry))
    assert image.evidence == {}


def test_what_would_only_be_warned_of_is_looked_for_again_soon(
    node: Node,
    registry: FakeRegistry,
    contents: Contents,
    listener: Listener,
    loaded: Policies,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded.rules["app"] = cast(Signed, Warned(Signed("alice")))
    digest = contents.add_image("v1")["digest"]
    image = node.images.pull(name(registry), None, NEVER)
    assert listener.heard == [("endorsed", digest, "")]
    sign(contents, digest)
    assert node.images.endorsement(image, name(registry), "", NEVER).signers == ()
    monkeypatch.setattr(vetting, "WARNED_SECONDS", -1.0)
    reload(node)
    contents.referrers = {}
    assert node.images.endorsement(image, name(registry), "", NEVER).signers == ()
    sign(contents, digest)
    assert node.images.endorsement(image, name(registry), "", NEVER).signers == ("key:alice",)
