"""A registry that serves anything at all: a pull ends with an image or a ForgeError and leaves nothing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forgeone_shim.config.model import SignaturesConfig
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError
from forgeone_shim.registry.evidence import fallback_tag
from hack.lab.signatures import BUNDLE, Signer

from .conftest import Node
from .registry_double import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Contents, FakeRegistry, sha256, tar_of

SIGNER = Signer()
LAYER = tar_of({"hello": b"hello"})


@pytest.fixture(scope="module")
def server() -> Iterator[FakeRegistry]:
    registry = FakeRegistry()
    yield registry
    registry.close()


def pull(server: FakeRegistry) -> None:
    with tempfile.TemporaryDirectory() as root:
        node = Node(Path(root), progress_timeout=2.0)
        node.plain(server)
        try:
            image = node.images.pull(f"{server.host}/app:v1", None, Deadline.after(20))
            node.images.remove(image.id)
        except ForgeError:
            pass
        left = node.left_over()
        node.images.close()
        node.store.close()
    assert left == []


edits = st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=6), st.integers(0, 40)), min_size=1, max_size=3)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def edited(data: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    for place, new, gone in changes:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + gone :]
    return data


@quick
@given(edits, st.sampled_from(["manifest", "config", "layer"]))
def test_damaged_images(server: FakeRegistry, changes: list[tuple[int, bytes, int]], part: str) -> None:
    """The damage is signed with the right digests, so that it gets past every check of those."""
    contents = server.contents = Contents()
    layer = edited(LAYER, changes) if part == "layer" else LAYER
    described = contents.add_blob(layer, OCI_LAYER)
    config = json.dumps({"os": "linux", "config": {"Cmd": ["sh"]}, "rootfs": {"diff_ids": [sha256(layer)]}}).encode()
    config = edited(config, changes) if part == "config" else config
    manifest = json.dumps(
        {"schemaVersion": 2, "config": contents.add_blob(config, OCI_CONFIG), "layers": [described]}
    ).encode()
    manifest = edited(manifest, changes) if part == "manifest" else manifest
    contents.manifests["v1"] = ("", manifest)
    pull(server)


@settings(quick, max_examples=30)
@given(edits, st.sampled_from(["list", "manifest", "bundle"]))
def test_damaged_signatures(server: FakeRegistry, changes: list[tuple[int, bytes, int]], part: str) -> None:
    """Whatever becomes of them, an image comes by a signature that holds, or not at all."""
    contents = server.contents = Contents()
    digest = str(contents.add_image("v1")["digest"])
    bundle = SIGNER.bundle(digest)
    bundle = edited(bundle, changes) if part == "bundle" else bundle
    layer = contents.add_blob(bundle, BUNDLE)
    manifest = json.dumps({"schemaVersion": 2, "layers": [layer]}).encode()
    manifest = edited(manifest, changes) if part == "manifest" else manifest
    contents.manifests[sha256(manifest)] = (OCI_MANIFEST, manifest)
    entry = {"mediaType": OCI_MANIFEST, "digest": sha256(manifest), "size": len(manifest)}
    listed = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    listed = edited(listed, changes) if part == "list" else listed
    contents.manifests[fallback_tag(digest)] = (OCI_INDEX, listed)
    with tempfile.TemporaryDirectory() as root:
        Path(root, "key.pub").write_bytes(SIGNER.pem)
        rule = {"type": "sigstoreSigned", "keyPath": f"{root}/key.pub", "signedIdentity": {"type": "matchRepository"}}
        Path(root, "policy.json").write_text(json.dumps({"default": [rule]}))
        node = Node(Path(root, "node"), progress_timeout=2.0)
        node.plain(server)
        node.images.reconfigure(node.config, [], signatures=SignaturesConfig(policy=f"{root}/policy.json"))
        name = f"{server.host}/app:v1"
        try:
            image = node.images.pull(name, None, Deadline.after(20))
            assert node.images.endorsement(image, name, "", Deadline.after(20)).signers == (SIGNER.id,)
            node.images.remove(image.id)
        except ForgeError as error:
            assert "app:v1" in error.what
        left = node.left_over()
        node.images.close()
        node.store.close()
    assert left == []


@settings(quick, max_examples=8)
@given(st.binary(max_size=200), st.booleans())
def test_a_server_that_speaks_anything(server: FakeRegistry, answer: bytes, http: bool) -> None:
    def hook(handler: object) -> bool:
        handler.wfile.write((b"HTTP/1.1 " if http else b"") + answer)  # type: ignore[attr-defined]
        handler.close_connection = True  # type: ignore[attr-defined]
        return True

    server.hook = hook
    try:
        pull(server)
    finally:
        server.hook = lambda handler: False
