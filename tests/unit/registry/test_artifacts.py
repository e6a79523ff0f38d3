"""OCI artifacts: their files as layers, told apart from images."""

from __future__ import annotations

import json
from hashlib import sha256 as sha
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.deadline import NEVER
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.registry import artifacts
from forgeone_shim.registry.manifest import OCI_MANIFEST, Manifest, parse_manifest

from .conftest import Node
from .registry_double import OCI_LAYER, Contents, FakeRegistry, pack, sha256, tar_of
from .test_pull import pull_fails

DIGEST = sha256(b"x")
TITLE = artifacts.TITLE


def descriptor(contents: Contents, data: bytes, media_type: str = "application/octet-stream", **notes: str) -> Any:
    return contents.add_blob(data, media_type) | {"annotations": notes}


def artifact(contents: Contents, tag: str, *layers: Any, kind: str = "application/vnd.example.model") -> Any:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": kind,
        "config": contents.add_blob(b"{}", artifacts.EMPTY_CONFIG),
        "layers": list(layers),
        "annotations": {artifacts.CREATED: "2026-01-01T00:00:00Z"},
    }
    return contents.add_manifest(document, tag)


def test_an_artifact_s_files_are_pulled_under_their_titles(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    made = artifact(
        contents,
        "v1",
        descriptor(contents, b"weights" * 1000, **{TITLE: "model.bin"}),
        descriptor(contents, b"words", **{TITLE: "docs/en/read.me"}),
        descriptor(contents, b"nameless"),
    )
    image = node.images.pull(f"{registry.host}/model:v1", None, NEVER)
    assert (image.id, image.artifact) == (made["digest"], "application/vnd.example.model")
    assert (image.repo_tags, image.created) == ((f"{registry.host}/model:v1",), "2026-01-01T00:00:00Z")
    trees = [node.layers.path(layer) for layer in image.layers]
    assert (trees[0] / "model.bin").read_bytes() == b"weights" * 1000
    assert (trees[1] / "docs/en/read.me").read_bytes() == b"words"
    assert (trees[2] / sha(b"nameless").hexdigest()).read_bytes() == b"nameless"
    node.images.remove(image.id)
    assert node.left_over() == []


def test_two_artifacts_with_the_same_empty_config_are_two_images(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    for tag in ("a", "b"):
        artifact(contents, tag, descriptor(contents, tag.encode(), **{TITLE: "file"}))
        node.images.pull(f"{registry.host}/model:{tag}", None, NEVER)
    assert len(node.images.list()) == 2


def test_the_same_bytes_under_two_names_are_two_files(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    same = [descriptor(contents, b"same", **{TITLE: name}) for name in ("one", "two")]
    artifact(contents, "v1", *same)
    first, second = node.images.pull(f"{registry.host}/model:v1", None, NEVER).layers
    assert (node.layers.path(first) / "one").read_bytes() == (node.layers.path(second) / "two").read_bytes() == b"same"


def test_a_directory_as_oras_packs_it_is_unpacked(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    tar = tar_of({"data/a": b"1"})
    notes = {TITLE: "data", "io.deis.oras.content.unpack": "true", "io.deis.oras.content.digest": sha256(tar)}
    artifact(contents, "v1", descriptor(contents, pack(tar, "gzip"), OCI_LAYER + "+gzip", **notes))
    image = node.images.pull(f"{registry.host}/model:v1", None, NEVER)
    assert (node.layers.path(image.layers[0]) / "data/a").read_bytes() == b"1"


def test_a_file_with_other_bytes_than_promised_is_refused(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    layer = descriptor(contents, b"right", **{TITLE: "file"})
    artifact(contents, "v1", layer)
    contents.blobs[layer["digest"]] = b"wrong"
    pull_fails(node, f"{registry.host}/model:v1", FailedPrecondition, "digest|says")


@pytest.mark.parametrize(
    ("notes", "why"),
    [
        ({TITLE: "../evil"}, "no relative path"),
        ({TITLE: "/etc/passwd"}, "no relative path"),
        ({TITLE: "a//b"}, "no relative path"),
        ({TITLE: "."}, "no relative path"),
        ({TITLE: "new\nline"}, "no relative path"),
        ({TITLE: "x" * 300}, "no relative path"),
        ({TITLE: "d", "io.deis.oras.content.unpack": "true"}, "no sha256 digest"),
    ],
)
def test_a_layer_that_cannot_be_a_file_is_refused(notes: dict[str, str], why: str) -> None:
    with pytest.raises(FailedPrecondition, match=why):
        _parse([{"mediaType": "text/plain", "digest": DIGEST, "size": 1, "annotations": notes}])


@pytest.mark.parametrize("titles", [("a", "a"), ("a", "a/b"), ("a/b/c", "a/b")])
def test_files_that_take_each_other_s_place_are_refused(titles: tuple[str, str]) -> None:
    layers = [
        {"mediaType": "text/plain", "digest": sha256(title.encode() + bytes([n])), "size": 1, "annotations": notes}
        for n, title in enumerate(titles)
        for notes in [{TITLE: title}]
    ]
    with pytest.raises(FailedPrecondition, match="take the place"):
        _parse(layers)


def test_a_manifest_with_an_empty_config_and_no_type_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="artifactType"):
        _parse([], artifactType="")


def test_a_config_that_is_no_image_s_tells_the_type() -> None:
    config = {"mediaType": "application/vnd.wasm.config.v0+json", "digest": DIGEST, "size": 2}
    assert _parse([], artifactType="", config=config).artifact == config["mediaType"]


@given(st.text(max_size=40))
def test_no_title_leads_out_of_the_layer(title: str) -> None:
    try:
        found = artifacts.part(DIGEST, {TITLE: title})
    except ValueError:
        return
    assert not found.file.startswith("/")
    assert ".." not in found.file.split("/")
    assert "\0" not in found.file


def _parse(layers: list[Any], **changes: Any) -> Manifest:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example",
        "config": {"mediaType": artifacts.EMPTY_CONFIG, "digest": DIGEST, "size": 2},
        "layers": layers,
        **changes,
    }
    parsed = parse_manifest(json.dumps(document).encode(), OCI_MANIFEST, "manifest x")
    assert isinstance(parsed, Manifest)
    return parsed
