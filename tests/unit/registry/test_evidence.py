"""Where signatures are found: by the API, by tags, behind lists that lie, on mirrors, and within limits."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.attestation.evidence import Evidence, Kind
from forgeone_shim.deadline import NEVER
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.registry import evidence
from forgeone_shim.registry.evidence import Found, cosign_tag, fallback_tag, parse_artifact, parse_list, search
from forgeone_shim.registry.hosts import Endpoint
from forgeone_shim.registry.reference import Reference
from forgeone_shim.registry.source import Source
from forgeone_shim.registry.transport import Session, TlsContexts

from .registry_double import Contents, FakeRegistry, Handler, sha256

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
DSSE = "application/vnd.dsse.envelope.v1+json"
JOSE = "application/jose+json"
NOTARY = "application/vnd.cncf.notary.signature"
EMPTY = "application/vnd.oci.empty.v1+json"
EVERY = frozenset(Kind)
IMAGE = sha256(b"the image")
INDEX = sha256(b"its index")


@pytest.fixture
def session() -> Iterator[Session]:
    session = Session(TlsContexts(), NEVER, 10.0)
    yield session
    session.close()


def found(session: Session, *registries: FakeRegistry, digests: tuple[str, ...] = (IMAGE,), **changes: object) -> Found:
    """What a search finds with these endpoints, in their order."""
    endpoints = [Endpoint("http", one.host, "/v2", **changes) for one in registries]  # type: ignore[arg-type]
    return search(Source(session, Reference.parse("acme.example/app:v1"), endpoints), digests, EVERY)


def bundle(contents: Contents, data: bytes = b"a bundle", subject: str = IMAGE, **entry: object) -> dict[str, object]:
    made = contents.add_artifact(layers=[(BUNDLE, data, {})], subject=subject, kind=BUNDLE)
    return {**made, **entry}


def test_without_a_wish_nobody_is_asked(session: Session, registry: FakeRegistry) -> None:
    source = Source(session, Reference.parse("acme.example/app:v1"), [Endpoint("http", registry.host, "/v2")])
    assert search(source, (IMAGE,), ()) == Found(Evidence())
    assert registry.seen == []


def test_an_image_nobody_signed_has_no_evidence_and_that_is_no_trouble(
    session: Session, registry: FakeRegistry
) -> None:
    assert found(session, registry) == Found(Evidence())


def test_referrers_are_found_by_the_api_over_all_its_pages(
    session: Session, registry: FakeRegistry, contents: Contents
) -> None:
    entries = [bundle(contents, b"bundle %d" % number) for number in range(5)]
    entries.append(contents.add_artifact(layers=[(JOSE, b"a jws", {})], subject=IMAGE, kind=NOTARY))
    contents.referrers, registry.page_size = {IMAGE: entries}, 2
    result = found(session, registry)
    assert sorted(result.evidence.bundles) == [b"bundle %d" % number for number in range(5)]
    assert result.evidence.notation == (b"a jws",)
    assert not any(path.endswith(fallback_tag(IMAGE)) for path in registry.paths())


def test_of_a_list_without_end_the_last_entries_are_kept(
    session: Session, registry: FakeRegistry, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forgeone_shim.registry.source.MAX_REFERRERS", 3)
    contents.referrers = {IMAGE: [bundle(contents, b"%d" % number) for number in range(5)]}
    registry.page_size = 2
    assert sorted(found(session, registry).evidence.bundles) == [b"2", b"3", b"4"]


@pytest.mark.parametrize("status", [400, 403, 404, 405, 406, 501])
def test_without_the_api_the_tag_that_stands_in_for_it_counts(
    session: Session, registry: FakeRegistry, contents: Contents, status: int
) -> None:
    contents.add_index(fallback_tag(IMAGE), entries=[bundle(contents)])
    registry.hook = lambda handler: "/referrers/" in handler.path and handler.answer(status)
    assert found(session, registry) == Found(Evidence(bundles=(b"a bundle",)))


def test_a_page_for_people_is_no_list(session: Session, registry: FakeRegistry, contents: Contents) -> None:
    contents.add_index(fallback_tag(IMAGE), entries=[bundle(contents)])

    def hook(handler: Handler) -> bool:
        return "/referrers/" in handler.path and handler.answer(200, b"<html>", {"Content-Type": "text/html"})

    registry.hook = hook
    assert found(session, registry).evidence.bundles == (b"a bundle",)


@pytest.mark.parametrize("said", ["", EMPTY, "application/vnd.oci.image.config.v1+json"])
def test_a_list_that_lost_an_artifacts_type_is_not_believed(
    session: Session, registry: FakeRegistry, contents: Contents, said: str
) -> None:
    contents.referrers = {IMAGE: [bundle(contents, artifactType=said)]}
    assert found(session, registry).evidence.bundles == (b"a bundle",)


def test_a_list_that_says_another_type_is_read_when_nothing_else_is_there(
    session: Session, registry: FakeRegistry, contents: Contents
) -> None:
    lying = bundle(contents, artifactType="application/spdx+json")
    contents.referrers = {IMAGE: [lying]}
    assert found(session, registry).evidence.bundles == (b"a bundle",)
    contents.referrers = {IMAGE: [lying, bundle(contents, b"an honest one")]}
    assert found(session, registry).evidence.bundles == (b"an honest one",)


def test_cosigns_tags_are_looked_at_with_their_annotations(
    session: Session, registry: FakeRegistry, contents: Contents
) -> None:
    notes = {
        "dev.cosignproject.cosign/signature": "c2ln",
        "dev.sigstore.cosign/certificate": "a certificate",
        "dev.sigstore.cosign/chain": "its chain",
        "dev.sigstore.cosign/bundle": "{}",
    }
    contents.add_artifact(
        cosign_tag(IMAGE, "sig"), layers=[(SIMPLE, b"same payload", notes), (SIMPLE, b"same payload", {})]
    )
    contents.add_artifact(cosign_tag(IMAGE, "att"), layers=[(DSSE, b"an envelope", notes)])
    result = found(session, registry).evidence
    assert [(one.payload, one.signature, one.certificate, one.chain, one.rekor) for one in result.simple] == [
        (b"same payload", "c2ln", "a certificate", "its chain", "{}"),
        (b"same payload", "", "", "", ""),
    ]
    assert [(one.envelope, one.certificate) for one in result.attestations] == [(b"an envelope", "a certificate")]


def test_only_what_is_wanted_is_asked_for(session: Session, registry: FakeRegistry) -> None:
    source = Source(session, Reference.parse("acme.example/app:v1"), [Endpoint("http", registry.host, "/v2")])
    search(source, (IMAGE,), {Kind.ATTESTATIONS})
    assert not {cosign_tag(IMAGE, "sig")} & {path.rpartition("/")[2] for path in registry.paths()}
    registry.seen.clear()
    search(source, (IMAGE,), {Kind.BUNDLES})
    assert [path.rpartition("/")[2] for path in registry.paths()] == [IMAGE, fallback_tag(IMAGE)]


def test_an_index_and_the_manifest_chosen_from_it_are_both_asked_about(
    session: Session, registry: FakeRegistry, contents: Contents
) -> None:
    contents.referrers = {IMAGE: [bundle(contents, b"of the image")], INDEX: [bundle(contents, b"of the index")]}
    result = found(session, registry, digests=(IMAGE, INDEX))
    assert sorted(result.evidence.bundles) == [b"of the image", b"of the index"]


def test_a_mirror_without_signatures_leads_to_the_registry_behind_it(
    session: Session, registry: FakeRegistry, another: FakeRegistry
) -> None:
    registry.contents.referrers = {}
    another.contents.referrers = {IMAGE: [bundle(another.contents)]}
    assert found(session, registry, another) == Found(Evidence(bundles=(b"a bundle",)))


def test_a_host_without_the_capability_is_not_asked_for_referrers(
    session: Session, registry: FakeRegistry, contents: Contents
) -> None:
    contents.referrers = {IMAGE: [bundle(contents)]}
    assert not found(session, registry, referrers=False).evidence
    assert registry.paths("/referrers/") == []


def test_who_cannot_be_asked_is_told_beside_what_others_have(
    session: Session, registry: FakeRegistry, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forgeone_shim.registry.source._ROUNDS", 1)
    contents.add_artifact(cosign_tag(IMAGE, "sig"), layers=[(SIMPLE, b"a payload", {})])
    registry.hook = lambda handler: "/referrers/" in handler.path and handler.answer(500)
    result = found(session, registry)
    assert [one.payload for one in result.evidence.simple] == [b"a payload"]
    assert result.unreached
    assert "server error 500" in result.problems[0]


def test_a_blob_that_is_not_there_or_another_is_told(
    session: Session, registry: FakeRegistry, contents: Contents
) -> None:
    contents.referrers = {IMAGE: [bundle(contents, b"first"), bundle(contents, b"second")]}
    del contents.blobs[sha256(b"first")]
    result = found(session, registry)
    assert result.evidence.bundles == (b"second",)
    assert sha256(b"first") in result.problems[0]


def test_a_list_or_manifest_that_is_none_is_told_and_passed_over(
    session: Session, registry: FakeRegistry, contents: Contents
) -> None:
    good = bundle(contents)
    bad = contents.add_manifest({"schemaVersion": 2, "mediaType": good["mediaType"], "layers": "none"})
    contents.referrers = {IMAGE: [{"mediaType": 1}, {**good, "digest": "sha256:../.."}, bad, good]}
    result = found(session, registry)
    assert result.evidence.bundles == (b"a bundle",)
    assert "malformed" in result.problems[0]
    assert not result.unreached


def test_of_too_many_the_newest_are_read(
    session: Session, registry: FakeRegistry, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "MAX_MANIFESTS", 2)
    contents.referrers = {IMAGE: [bundle(contents, b"%d" % number) for number in range(4)]}
    result = found(session, registry)
    assert sorted(result.evidence.bundles) == [b"2", b"3"]
    assert result.problems == ("of 4 referrers 2 were read",)


def test_what_is_too_large_is_passed_over_and_never_asked_for(
    session: Session, registry: FakeRegistry, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "MAX_TOTAL", 100)
    monkeypatch.setattr(evidence, "MAX_ITEM", 80)
    sizes = (81, 70, 29)
    contents.referrers = {IMAGE: [bundle(contents, bytes([65 + n]) * size) for n, size in enumerate(sizes)]}
    result = found(session, registry)
    assert [len(data) for data in result.evidence.bundles] == [29, 70]
    assert len(result.problems) == 1
    assert len(registry.paths("/blobs/")) == 2


def test_manifests_of_signatures_fill_no_memory_with_what_is_written_beside_them(
    session: Session, registry: FakeRegistry, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Annotations hold certificates, or whatever their author likes."""
    monkeypatch.setattr(evidence, "MAX_BESIDE", 6000)
    layers = [(SIMPLE, b"%d" % number, {"dev.sigstore.cosign/certificate": "x" * 2000}) for number in range(3)]
    contents.referrers = {IMAGE: [contents.add_artifact(layers=[layer], subject=IMAGE) for layer in layers]}
    result = found(session, registry)
    assert len(result.evidence.simple) == 2
    assert [problem.partition(" with ")[2].partition(" ")[2] for problem in result.problems] == [
        "bytes was passed over"
    ]
    assert not result.unreached


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=10),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(
                    st.sampled_from(["schemaVersion", "manifests", "layers", "digest", "mediaType", "size"]),
                    inner,
                    max_size=6,
                )
            ),
            max_leaves=20,
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_no_document_does_more_than_be_refused(data: bytes) -> None:
    for parse in (parse_list, parse_artifact):
        try:
            parse(data, "", "it")
        except FailedPrecondition as error:
            assert error.what.startswith("it is malformed")
