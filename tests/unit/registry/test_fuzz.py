"""A registry that serves anything at all: a pull ends with an image or a ForgeError and leaves nothing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError

from .conftest import Node
from .registry_double import OCI_CONFIG, OCI_LAYER, Contents, FakeRegistry, sha256, tar_of

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
