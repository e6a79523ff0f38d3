"""The methods about what containers do: what is asked for, and what is told."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from forgeone_shim.config.reload import Outcome
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.dna.behaviour import drift, seccomp
from forgeone_shim.dna.behaviour.baseline import Baseline, parse
from forgeone_shim.dna.behaviour.profile import Profile, Seen
from forgeone_shim.errors import InvalidInput
from forgeone_shim.rpc import node_pb2
from forgeone_shim.rpc.node import NodeServicer
from forgeone_shim.runtime.watching import Finding, Observed

CALL = SimpleNamespace(deadline=NEVER)
USUAL = Baseline(image="sha256:1", engine="native", machine="x86_64", containers=2, system=(Seen("read", 3),))
SEEN = Profile(machine="x86_64", system=(Seen("read", 1), Seen("bpf", 2)))


class Behaviours:
    """Remembers what it was asked."""

    def __init__(self, *, compared: bool = True) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.compared = compared

    def find(self, container_id: str) -> Finding:
        self.asked.append(("find", container_id))
        observed = Observed(
            container="c1", image="sha256:1", engine="native", group=7, level=2, drift=("bpf",), acted=1, baseline="d"
        )
        known = USUAL if self.compared else None
        return Finding(observed, SEEN, known, None if known is None else drift.drift(known, SEEN))

    def learn(self, container_id: str, deadline: Deadline, *, anew: bool) -> Baseline:
        self.asked.append(("learn", container_id, anew))
        return USUAL

    def pin(self, image: str, deadline: Deadline) -> Baseline:
        self.asked.append(("pin", image))
        return USUAL

    def adopt(self, document: bytes, deadline: Deadline) -> Baseline:
        self.asked.append(("adopt", document))
        return parse(document)

    def unpin(self, image: str, deadline: Deadline) -> None:
        self.asked.append(("unpin", image))

    def filter(self, image: str) -> dict[str, Any]:
        self.asked.append(("filter", image))
        return seccomp.export(USUAL)


def _unused() -> Outcome:
    raise AssertionError


@pytest.fixture
def behaviours() -> Behaviours:
    return Behaviours()


@pytest.fixture
def servicer(behaviours: Behaviours) -> NodeServicer:
    return NodeServicer(SimpleNamespace(behaviours=behaviours), _unused)


def test_what_a_container_did_is_one_document(servicer: NodeServicer, behaviours: Behaviours) -> None:
    request = node_pb2.GetBehaviourRequest(container_id="c")
    found = json.loads(servicer.GetBehaviour(request, CALL).document)
    assert found["system"] == [{"name": "read", "count": 1}, {"name": "bpf", "count": 2}]
    assert found["baseline"] == {"digest": "d", "containers": 2}
    assert (found["drift"]["system"], found["drift"]["amount"], found["answered"]) == (["bpf"], 0.5, ["bpf"])
    behaviours.compared = False
    found = json.loads(servicer.GetBehaviour(request, CALL).document)
    assert (found["baseline"], found["drift"], found["ended"]) == (None, None, False)


def test_a_baseline_is_told_with_the_document_that_its_digest_is_of(
    servicer: NodeServicer, behaviours: Behaviours
) -> None:
    told = servicer.LearnBehaviour(node_pb2.LearnBehaviourRequest(container_id="c", anew=True), CALL).baseline
    assert (told.digest, told.containers, told.system_calls, told.host_calls) == (USUAL.digest, 2, 1, 0)
    again = servicer.PinBaseline(node_pb2.PinBaselineRequest(document=told.document), CALL).baseline
    assert again.digest == told.digest
    assert behaviours.asked == [("learn", "c", True), ("adopt", told.document.encode())]


def test_images_are_named(servicer: NodeServicer, behaviours: Behaviours) -> None:
    servicer.PinBaseline(node_pb2.PinBaselineRequest(image="i"), CALL)
    servicer.UnpinBaseline(node_pb2.UnpinBaselineRequest(image="i"), CALL)
    profile = servicer.ExportSeccompProfile(node_pb2.ExportSeccompProfileRequest(image="i"), CALL).profile
    assert "read" in json.loads(profile)["syscalls"][0]["names"]
    assert behaviours.asked == [("pin", "i"), ("unpin", "i"), ("filter", "i")]
    for method, request in (
        (servicer.PinBaseline, node_pb2.PinBaselineRequest()),
        (servicer.UnpinBaseline, node_pb2.UnpinBaselineRequest()),
        (servicer.ExportSeccompProfile, node_pb2.ExportSeccompProfileRequest()),
    ):
        with pytest.raises(InvalidInput, match="image: is empty"):
            method(request, CALL)
