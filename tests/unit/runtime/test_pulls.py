"""What the audit log is told of images that came, or did not: durable before the pull goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from forgeone_shim.attestation.evidence import Endorsement, Statement, Subject
from forgeone_shim.registry.reference import Reference
from forgeone_shim.runtime.chronicle import Chronicle
from forgeone_shim.runtime.pulls import Pulls
from tests.unit.audit.logs import Node, soon

IMAGE = Subject(Reference.parse("acme.example/app:v1"), "sha256:1", "sha256:2")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    made.start()
    yield made
    made.close()


def pulls(node: Node) -> Pulls:
    assert node.log is not None
    return Pulls(Chronicle(node.log, lambda _: None))


def test_who_stands_behind_an_image_is_told_without_what_they_attest(node: Node) -> None:
    found = Endorsement(
        ("key:alice",), (Statement("https://slsa.dev/provenance/v1", {"big": "x"}, "key:alice"),), ("w",)
    )
    pulls(node).endorsed(IMAGE, "team", found, soon())
    (event,) = [event for event in node.events() if event.type == "dev.forgeone.image.endorsed"]
    assert (event.subject, event.data) == (
        "image/sha256:1",
        {
            "image": {"ref": "acme.example/app:v1", "digest": "sha256:1", "index": "sha256:2"},
            "namespace": "team",
            "signers": ["key:alice"],
            "attestations": [{"type": "https://slsa.dev/provenance/v1", "signer": "key:alice"}],
            "warnings": ["w"],
        },
    )


def test_a_refusal_is_there_before_it_is_told(node: Node) -> None:
    entry = pulls(node).refused(IMAGE, "", "it is not signed", soon())
    event = node.events()[-1]
    assert entry == f"audit:{event.id}"
    assert event.type == "dev.forgeone.denied"
    assert {key: event.data[key] for key in ("point", "rule", "reason")} == {
        "point": "pull",
        "rule": "signatures",
        "reason": "it is not signed",
    }
