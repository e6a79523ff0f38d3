"""The verbs of a sandbox, in order of life."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import msgspec

from cri.api import runtime_pb2 as pb
from cri.call import Call
from cri.runtime.chunks import chunks
from cri.runtime.verbs import Verbs, selected
from cri.translate import container, sandbox
from cri.translate.fields import given
from forgeone_shim.errors import InvalidInput
from forgeone_shim.runtime.views import SandboxView


class SandboxVerbs(Verbs):
    """RunPodSandbox to RemovePodSandbox, status and lists."""

    def RunPodSandbox(self, request: pb.RunPodSandboxRequest, call: Call) -> pb.RunPodSandboxResponse:
        """A ready pod; the same name, uid and attempt again is the same pod."""
        if not request.HasField("config"):
            raise InvalidInput("config", "is missing")
        spec = sandbox.spec(request.config, request.runtime_handler)
        return pb.RunPodSandboxResponse(pod_sandbox_id=self._runtime.run_sandbox(spec, call.deadline))

    def StopPodSandbox(self, request: pb.StopPodSandboxRequest, call: Call) -> pb.StopPodSandboxResponse:
        """No container runs and no address is held any more, if there ever was such a pod."""
        self._runtime.stop_sandbox(given("pod_sandbox_id", request.pod_sandbox_id), call.deadline)
        return pb.StopPodSandboxResponse()

    def RemovePodSandbox(self, request: pb.RemovePodSandboxRequest, call: Call) -> pb.RemovePodSandboxResponse:
        """There is no such pod any more, if there ever was."""
        self._runtime.remove_sandbox(given("pod_sandbox_id", request.pod_sandbox_id), call.deadline)
        return pb.RemovePodSandboxResponse()

    def PodSandboxStatus(self, request: pb.PodSandboxStatusRequest, _call: Call) -> pb.PodSandboxStatusResponse:
        """One pod and its containers, as they were no earlier than the answer's ``timestamp``."""
        # The time comes first: what happens in between is then told again by an event, not taken for known.
        timestamp = time.time_ns()
        view = self._runtime.sandbox(given("pod_sandbox_id", request.pod_sandbox_id))
        response = pb.PodSandboxStatusResponse(
            status=sandbox.status(view),
            containers_statuses=[container.status(one) for one in self._runtime.containers(view.id)],
            timestamp=timestamp,
        )
        if request.verbose:
            response.info["info"] = _info(view, self._runtime.network_details(view.id))
        return response

    def ListPodSandbox(self, request: pb.ListPodSandboxRequest, _call: Call) -> pb.ListPodSandboxResponse:
        """The pods that fit the filter."""
        return pb.ListPodSandboxResponse(items=self._sandboxes(request.filter))

    def StreamPodSandboxes(
        self, request: pb.StreamPodSandboxesRequest, _call: Call
    ) -> Iterator[pb.StreamPodSandboxesResponse]:
        """The same in pieces."""
        for piece in chunks(self._sandboxes(request.filter)):
            yield pb.StreamPodSandboxesResponse(pod_sandboxes=piece)

    def _sandboxes(self, wanted: pb.PodSandboxFilter) -> list[pb.PodSandbox]:
        selector = dict(wanted.label_selector)
        any_state = not wanted.HasField("state")
        return [
            item
            for view, item in self._sandbox_items.of(self._runtime.sandboxes())
            if view.id.startswith(wanted.id)
            and (any_state or sandbox.state(view) == wanted.state.state)
            and selected(view.spec.labels, selector)
        ]


def _info(view: SandboxView, network: Mapping[str, object]) -> str:
    return msgspec.json.encode(
        {
            "state": view.state,
            **({"unknown": view.unknown} if view.unknown else {}),
            "runtimeHandler": view.handler,
            "engine": view.engine,
            **({"placed": view.placed} if view.placed else {}),
            "networkNamespace": view.netns,
            "ips": view.ips,
            "config": view.spec,
            **network,
        }
    ).decode()
