"""The runtime about itself: version, readiness, configuration."""

from __future__ import annotations

from typing import Final

from cri.api import runtime_pb2 as pb
from cri.call import Call
from cri.runtime.verbs import Verbs
from cri.translate import enums, node
from forgeone_shim.version import VERSION

RUNTIME_NAME: Final = "forgeone"
# The version of the handshake itself, which kubelet and crictl still compare.
_KUBELET_API_VERSION: Final = "0.1.0"
_API_VERSION: Final = "v1"


class StatusVerbs(Verbs):
    """Version, Status, RuntimeConfig, UpdateRuntimeConfig."""

    def Version(self, _request: pb.VersionRequest, _call: Call) -> pb.VersionResponse:
        """Who answers."""
        return pb.VersionResponse(
            version=_KUBELET_API_VERSION,
            runtime_name=RUNTIME_NAME,
            runtime_version=VERSION,
            runtime_api_version=_API_VERSION,
        )

    def Status(self, request: pb.StatusRequest, _call: Call) -> pb.StatusResponse:
        """Whether pods can run here."""
        response = node.status(self._runtime.status())
        if request.verbose:
            response.info.update(self._info)
        return response

    def RuntimeConfig(self, _request: pb.RuntimeConfigRequest, _call: Call) -> pb.RuntimeConfigResponse:
        """Which cgroup driver the kubelet has to use."""
        driver = enums.CGROUP_DRIVERS[self._runtime.cgroup_driver]
        return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=driver))

    def UpdateRuntimeConfig(
        self, request: pb.UpdateRuntimeConfigRequest, _call: Call
    ) -> pb.UpdateRuntimeConfigResponse:
        """Which addresses the node's pods have."""
        cidr = node.pod_cidr(request.runtime_config)
        if cidr:
            self._runtime.update_pod_cidr(cidr)
        return pb.UpdateRuntimeConfigResponse()
