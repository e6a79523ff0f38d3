"""The verbs that change the limits of what exists."""

from __future__ import annotations

from cri.api import runtime_pb2 as pb
from cri.call import Call
from cri.runtime.verbs import Verbs
from cri.translate import common
from cri.translate.fields import given
from forgeone_shim.errors import InvalidInput


class UpdateVerbs(Verbs):
    """UpdateContainerResources and UpdatePodSandboxResources."""

    def UpdateContainerResources(
        self, request: pb.UpdateContainerResourcesRequest, call: Call
    ) -> pb.UpdateContainerResourcesResponse:
        """It has these limits at once, all of them; those not set stay."""
        container_id = given("container_id", request.container_id)
        if request.HasField("windows"):
            raise InvalidInput("windows", "this is a Linux node")
        self._runtime.update_container(container_id, common.resources("linux", request.linux), call.deadline)
        return pb.UpdateContainerResourcesResponse()

    def UpdatePodSandboxResources(
        self, request: pb.UpdatePodSandboxResourcesRequest, _call: Call
    ) -> pb.UpdatePodSandboxResourcesResponse:
        """They are shown from now on; the pod's cgroup is the kubelet's to write."""
        sandbox_id = given("pod_sandbox_id", request.pod_sandbox_id)
        overhead = common.resources("overhead", request.overhead) if request.HasField("overhead") else None
        resources = common.resources("resources", request.resources) if request.HasField("resources") else None
        self._runtime.update_sandbox(sandbox_id, overhead, resources)
        return pb.UpdatePodSandboxResourcesResponse()
