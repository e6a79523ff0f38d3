"""CheckpointContainer, CheckpointPod and RestorePod."""

from __future__ import annotations

from cri.api import runtime_pb2 as pb
from cri.call import Call
from cri.runtime.verbs import Verbs
from cri.translate import container, sandbox
from cri.translate.fields import at_least, given
from forgeone_shim.errors import InvalidInput

_CONTAINER_SECONDS = 120.0
"""How long a checkpoint of a container may take where the caller does not say."""


class CheckpointVerbs(Verbs):
    """What saves containers and pods, and makes pods of what was saved."""

    def CheckpointContainer(self, request: pb.CheckpointContainerRequest, call: Call) -> pb.CheckpointContainerResponse:
        """The running container is in the archive, and goes on."""
        container_id, location = given("container_id", request.container_id), given("location", request.location)
        seconds = at_least("timeout", request.timeout) or _CONTAINER_SECONDS
        with call.deadline.within(seconds) as deadline:
            self._runtime.checkpoint_container(container_id, location, deadline)
        return pb.CheckpointContainerResponse()

    def CheckpointPod(self, request: pb.CheckpointPodRequest, call: Call) -> pb.CheckpointPodResponse:
        """The containers named are in the directory, as of one moment, and go on."""
        if call.deadline.remaining() is None:
            raise InvalidInput("deadline", "a checkpoint of a pod must have one")
        self._runtime.checkpoint_pod(
            given("pod_sandbox_id", request.pod_sandbox_id),
            given("output_path", request.output_path),
            [given(f"container_ids[{number}]", id_) for number, id_ in enumerate(request.container_ids)],
            dict(request.options),
            call.deadline,
        )
        return pb.CheckpointPodResponse()

    def RestorePod(self, request: pb.RestorePodRequest, call: Call) -> pb.RestorePodResponse:
        """There is a pod whose containers will go on where they were, once they are started."""
        if call.deadline.remaining() is None:
            raise InvalidInput("deadline", "a restore of a pod must have one")
        if not request.HasField("config"):
            raise InvalidInput("config", "is missing")
        sandbox_id, restored = self._runtime.restore_pod(
            given("checkpoint_path", request.checkpoint_path),
            sandbox.spec(request.config, request.runtime_handler),
            [
                container.spec(config, f"container_configs[{number}]")
                for number, config in enumerate(request.container_configs)
            ],
            dict(request.options),
            call.deadline,
        )
        return pb.RestorePodResponse(
            pod_sandbox_id=sandbox_id,
            restored_containers=[pb.RestoredContainer(name=one.name, container_id=one.id) for one in restored],
        )
