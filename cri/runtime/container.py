"""The verbs of a container, in order of life."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

import msgspec

from cri.api import runtime_pb2 as pb
from cri.call import Call
from cri.runtime.chunks import chunks
from cri.runtime.verbs import Verbs, selected
from cri.translate import container
from cri.translate.fields import at_least, given
from forgeone_shim.errors import InvalidInput
from forgeone_shim.runtime.views import ContainerView


class ContainerVerbs(Verbs):
    """CreateContainer to RemoveContainer, status, lists and the log."""

    def CreateContainer(self, request: pb.CreateContainerRequest, call: Call) -> pb.CreateContainerResponse:
        """A container held before its first instruction; the same name and attempt again is the same container."""
        sandbox_id = given("pod_sandbox_id", request.pod_sandbox_id)
        if not request.HasField("config"):
            raise InvalidInput("config", "is missing")
        spec = container.spec(request.config)
        return pb.CreateContainerResponse(container_id=self._runtime.create_container(sandbox_id, spec, call.deadline))

    def StartContainer(self, request: pb.StartContainerRequest, call: Call) -> pb.StartContainerResponse:
        """Let it run."""
        self._runtime.start_container(given("container_id", request.container_id), call.deadline)
        return pb.StartContainerResponse()

    def StopContainer(self, request: pb.StopContainerRequest, call: Call) -> pb.StopContainerResponse:
        """It does not run any more, if there ever was such a container."""
        container_id = given("container_id", request.container_id)
        self._runtime.stop_container(container_id, at_least("timeout", request.timeout), call.deadline)
        return pb.StopContainerResponse()

    def RemoveContainer(self, request: pb.RemoveContainerRequest, call: Call) -> pb.RemoveContainerResponse:
        """There is no such container any more, if there ever was. One that runs is killed: kubelets rely on it."""
        self._runtime.remove_container(given("container_id", request.container_id), call.deadline)
        return pb.RemoveContainerResponse()

    def ContainerStatus(self, request: pb.ContainerStatusRequest, _call: Call) -> pb.ContainerStatusResponse:
        """One container."""
        view = self._runtime.container(given("container_id", request.container_id))
        response = pb.ContainerStatusResponse(status=container.status(view))
        if request.verbose:
            response.info["info"] = _info(view)
        return response

    def ListContainers(self, request: pb.ListContainersRequest, _call: Call) -> pb.ListContainersResponse:
        """The containers that fit the filter."""
        return pb.ListContainersResponse(containers=self._containers(request.filter))

    def StreamContainers(
        self, request: pb.StreamContainersRequest, _call: Call
    ) -> Iterator[pb.StreamContainersResponse]:
        """The same in pieces."""
        for piece in chunks(self._containers(request.filter)):
            yield pb.StreamContainersResponse(containers=piece)

    def ReopenContainerLog(self, request: pb.ReopenContainerLogRequest, _call: Call) -> pb.ReopenContainerLogResponse:
        """Its log goes to a new file of the old name."""
        self._runtime.reopen_log(given("container_id", request.container_id))
        return pb.ReopenContainerLogResponse()

    def _containers(self, wanted: pb.ContainerFilter) -> list[pb.Container]:
        selector = dict(wanted.label_selector)
        any_state = not wanted.HasField("state")
        return [
            item
            for view, item in self._container_items.of(self._runtime.containers())
            if view.id.startswith(wanted.id)
            and view.sandbox_id.startswith(wanted.pod_sandbox_id)
            and (any_state or container.state(view) == wanted.state.state)
            and selected(view.spec.labels, selector)
        ]


def _info(view: ContainerView) -> str:
    return msgspec.json.encode(
        {
            "sandboxID": view.sandbox_id,
            "engine": view.engine,
            "pid": view.pid,
            "state": view.state,
            "bundle": view.bundle,
            "runtimeSpec": posixpath.join(view.bundle, "config.json"),
            "stopSignal": view.stop_signal,
            "stdin": view.spec.stdin,
            "tty": view.spec.tty,
            "user": view.user,
            # Not the whole configuration: its environment holds secrets.
            "mounts": view.spec.mounts,
            "resources": view.spec.resources,
            "security": view.spec.security,
        }
    ).decode()
