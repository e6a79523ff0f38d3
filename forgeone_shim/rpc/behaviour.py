"""The methods of ``forgeone.v1.Node`` about what containers do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

import msgspec

from forgeone_shim.deadline import Deadline
from forgeone_shim.dna.behaviour.baseline import Baseline
from forgeone_shim.errors import InvalidInput
from forgeone_shim.rpc import node_pb2
from forgeone_shim.runtime.watching import Finding


class Behaviours(Protocol):
    """The part of :class:`~forgeone_shim.runtime.behaviours.Behaviours` these methods use."""

    def find(self, container_id: str) -> Finding:
        """What a watched container did."""

    def learn(self, container_id: str, deadline: Deadline, *, anew: bool) -> Baseline:
        """What it did is usual."""

    def pin(self, image: str, deadline: Deadline) -> Baseline:
        """What was learned of an image is its baseline."""

    def adopt(self, document: bytes, deadline: Deadline) -> Baseline:
        """One from elsewhere is."""

    def unpin(self, image: str, deadline: Deadline) -> None:
        """It has none."""

    def filter(self, image: str) -> dict[str, Any]:
        """A seccomp profile of what is usual for an image."""


class Node(Protocol):
    """Who has them."""

    @property
    def behaviours(self) -> Behaviours:
        """What containers do."""


class Call(Protocol):
    """The call under way."""

    @property
    def deadline(self) -> Deadline:
        """The client's."""


class BehaviourMethods:
    """A part of the servicer."""

    def __init__(self, node: Node) -> None:
        self.__node = node

    def GetBehaviour(self, request: node_pb2.GetBehaviourRequest, _call: Call) -> node_pb2.GetBehaviourResponse:
        """One document."""
        found = self.__node.behaviours.find(request.container_id)
        return node_pb2.GetBehaviourResponse(document=msgspec.json.encode(document(found)).decode())

    def LearnBehaviour(self, request: node_pb2.LearnBehaviourRequest, call: Call) -> node_pb2.LearnBehaviourResponse:
        """What is known of its image now."""
        made = self.__node.behaviours.learn(request.container_id, call.deadline, anew=request.anew)
        return node_pb2.LearnBehaviourResponse(baseline=_baseline(made))

    def PinBaseline(self, request: node_pb2.PinBaselineRequest, call: Call) -> node_pb2.PinBaselineResponse:
        """What containers are compared with now."""
        if request.document:
            made = self.__node.behaviours.adopt(request.document.encode(), call.deadline)
        else:
            made = self.__node.behaviours.pin(_given(request.image), call.deadline)
        return node_pb2.PinBaselineResponse(baseline=_baseline(made))

    def UnpinBaseline(self, request: node_pb2.UnpinBaselineRequest, call: Call) -> node_pb2.UnpinBaselineResponse:
        """It is so."""
        self.__node.behaviours.unpin(_given(request.image), call.deadline)
        return node_pb2.UnpinBaselineResponse()

    def ExportSeccompProfile(
        self, request: node_pb2.ExportSeccompProfileRequest, _call: Call
    ) -> node_pb2.ExportSeccompProfileResponse:
        """The profile."""
        made = self.__node.behaviours.filter(_given(request.image))
        return node_pb2.ExportSeccompProfileResponse(profile=msgspec.json.encode(made).decode())


def document(found: Finding) -> dict[str, Any]:
    """What is told of a watched container."""
    observed, baseline = found.observed, found.baseline
    return {
        "container": observed.container,
        "image": observed.image,
        "engine": observed.engine,
        "machine": found.profile.machine,
        "whole": found.profile.whole,
        "executed": observed.executed,
        "ended": observed.profile is not None,
        "system": [asdict(one) for one in found.profile.system],
        "host": [asdict(one) for one in found.profile.host],
        "baseline": None if baseline is None else {"digest": observed.baseline, "containers": baseline.containers},
        "drift": None if found.drift is None else asdict(found.drift),
        "answered": observed.drift[: observed.acted],
    }


def _baseline(one: Baseline) -> node_pb2.Baseline:
    return node_pb2.Baseline(
        digest=one.digest,
        document=one.canonical().decode(),
        image=one.image,
        containers=one.containers,
        system_calls=len(one.system),
        host_calls=len(one.host),
    )


def _given(image: str) -> str:
    if not image:
        raise InvalidInput("image", "is empty")
    return image
