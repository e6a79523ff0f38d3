"""RuntimeService of two runtimes: each verb is ours, the other one's, or both's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from cri.api import runtime_pb2 as pb
from cri.call import Call, Relayed
from cri.upstream import lists, merge
from cri.upstream.choice import Choice, Side
from cri.upstream.events import Both
from cri.upstream.link import RUNTIME, Link
from cri.upstream.metrics import MetricVerbs
from cri.upstream.side import Links, RuntimePort, Sides, contract_of
from forgeone_shim.errors import NotFound

PATIENCE: Final = 10.0
"""Seconds that Status waits for the other runtime: one that hangs is told of, and not waited for with it."""

BY_POD: Final = frozenset(
    {
        "StopPodSandbox",
        "RemovePodSandbox",
        "PodSandboxStatus",
        "UpdatePodSandboxResources",
        "PortForward",
        "PodSandboxStats",
        "CheckpointPod",
    }
)
"""Verbs of one pod."""

BY_CONTAINER: Final = frozenset(
    {
        "StartContainer",
        "StopContainer",
        "RemoveContainer",
        "ContainerStatus",
        "UpdateContainerResources",
        "ReopenContainerLog",
        "ExecSync",
        "Exec",
        "Attach",
        "ContainerStats",
        "CheckpointContainer",
    }
)
"""Verbs of one container."""

# What takes its time, and must end when its client goes away.
_LONG: Final = frozenset(
    {
        "RunPodSandbox",
        "StopPodSandbox",
        "RemovePodSandbox",
        "CreateContainer",
        "StartContainer",
        "StopContainer",
        "RemoveContainer",
        "ExecSync",
        "CheckpointContainer",
        "CheckpointPod",
        "RestorePod",
    }
)
# CRI: "must not return an error" for what is not there; older runtimes do.
_IDEMPOTENT: Final = frozenset({"StopPodSandbox", "RemovePodSandbox", "StopContainer", "RemoveContainer"})
_ENDS_POD: Final = frozenset({"StopPodSandbox", "RemovePodSandbox"})
# Nobody has been told anything of the other runtime by these.
_NO_ANSWER: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
)

Behaviour = Callable[[Any, Call], Any]


class RuntimeFront:
    """The verbs by their names, in :attr:`verbs`, over our own servicer."""

    def __init__(self, own: object, runtime: RuntimePort, links: Links, sides: Sides, choice: Choice) -> None:
        self._own: Mapping[str, Behaviour] = {method.name: getattr(own, method.name) for method in RUNTIME.methods}
        self._runtime, self._links, self._sides, self._choice = runtime, links, sides, choice
        metrics = MetricVerbs(self._own)
        special: dict[str, Callable[[Any, Link, Call], Any]] = {
            "Status": self._status,
            "UpdateRuntimeConfig": self._update_config,
            "RunPodSandbox": self._run,
            "RestorePod": self._restore,
            "CreateContainer": self._create,
            "ListMetricDescriptors": metrics.descriptors,
            "ListPodSandboxMetrics": metrics.pods,
            "StreamPodSandboxMetrics": metrics.pieces,
        }
        self.verbs: Mapping[str, Behaviour] = MappingProxyType(
            {
                "Version": self._own["Version"],
                "RuntimeConfig": self._own["RuntimeConfig"],
                "GetContainerEvents": Both(self._own["GetContainerEvents"], links),
                **{name: self._beside(name, does) for name, does in special.items()},
                **{name: self._beside(name, self._of_pod(name)) for name in BY_POD},
                **{name: self._beside(name, self._of_container(name)) for name in BY_CONTAINER},
                **{name: self._beside(name, self._list(name, lists.unary)) for name in lists.LISTS},
                **{name: self._beside(name, self._list(name, lists.stream)) for name in lists.STREAMS},
            }
        )

    def _beside(self, name: str, does: Callable[[Any, Link, Call], Any]) -> Behaviour:
        """A verb that is ours alone while there is no other runtime."""
        own, links = self._own[name], self._links

        def verb(request: Any, call: Call) -> Any:
            link = links.now
            return own(request, call) if link is None else does(request, link, call)

        return verb

    # -- one pod or container

    def _of_pod(self, name: str) -> Callable[[Any, Link, Call], Any]:
        def verb(request: Any, link: Link, call: Call) -> Any:
            side = self._sides.of_pod(request.pod_sandbox_id, link, call)
            answer = self._either(name, side, request, link, call)
            if name in _ENDS_POD:
                self._choice.wanted.gone(request.pod_sandbox_id)
            return answer

        return verb

    def _of_container(self, name: str) -> Callable[[Any, Link, Call], Any]:
        def verb(request: Any, link: Link, call: Call) -> Any:
            side = self._sides.of_container(request.container_id, link, call)
            return self._either(name, side, request, link, call)

        return verb

    def _either(self, name: str, side: Side, request: Message, link: Link, call: Call) -> Any:
        if side is Side.OURS:
            return self._own[name](request, call)
        try:
            return link.begin(name, request, call)() if name in _LONG else link.ask(name, request, call)
        except Relayed as error:
            if error.code is grpc.StatusCode.NOT_FOUND and name in _IDEMPOTENT:
                return b""
            raise

    # -- what is made

    def _run(self, request: pb.RunPodSandboxRequest, link: Link, call: Call) -> Any:
        """By its handler. A pod with a contract is not started where nobody would keep it."""
        if self._sides.of_handler(request.runtime_handler) is Side.OURS:
            return self._own["RunPodSandbox"](request, call)
        self._may_go(request.config, request.runtime_handler, call)
        answer = link.begin("RunPodSandbox", request, call)()
        id_ = pb.RunPodSandboxResponse.FromString(answer).pod_sandbox_id
        self._runtime.beside.forwarded(id_, _pod(request.config), request.runtime_handler, link.socket)
        return answer

    def _restore(self, request: pb.RestorePodRequest, link: Link, call: Call) -> Any:
        if self._sides.of_handler(request.runtime_handler) is Side.OURS:
            return self._own["RestorePod"](request, call)
        self._may_go(request.config, request.runtime_handler, call)
        for one in request.container_configs:
            self._without_contract(request.config, one.annotations, request.runtime_handler, call)
        answer = link.begin("RestorePod", request, call)()
        id_ = pb.RestorePodResponse.FromString(answer).pod_sandbox_id
        self._runtime.beside.forwarded(id_, _pod(request.config), request.runtime_handler, link.socket)
        return answer

    def _create(self, request: pb.CreateContainerRequest, link: Link, call: Call) -> Any:
        """Where its pod is. An image that is on the other side alone is looked for here from now on."""
        side = self._sides.of_pod(request.pod_sandbox_id, link, call)
        image = request.config.image
        if side is Side.OURS:
            try:
                return self._own["CreateContainer"](request, call)
            except NotFound as error:
                if error.noun != "image" or self._runtime.beside.has_image(error.name):
                    raise
                self._wanted(request, side, error.name)
                raise NotFound(
                    error.noun, error.name, where="ForgeOne", fix="it is pulled for this pod at the next attempt"
                ) from error
        self._without_contract(request.sandbox_config, request.config.annotations, "", call)
        try:
            return link.begin("CreateContainer", request, call)()
        except Relayed as error:
            if error.code not in _NO_ANSWER and not _has_image(link, image, call):
                self._wanted(request, side, image.image)
            raise

    def _wanted(self, request: pb.CreateContainerRequest, side: Side, name: str) -> None:
        """``name`` is what was not found: the container's image, or one that is a volume of it."""
        image = request.config.image
        names = (name, image.user_specified_image) if name == image.image else (name,)
        self._choice.wanted.mark(names, side, request.pod_sandbox_id)

    def _may_go(self, config: pb.PodSandboxConfig, handler: str, call: Call) -> None:
        self._without_contract(config, config.annotations, handler, call)
        if self._links.held:
            self._runtime.beside.demand(_pod(config), config.annotations, handler, call.deadline)

    def _without_contract(
        self, config: pb.PodSandboxConfig, annotations: Mapping[str, str], handler: str, call: Call
    ) -> None:
        annotation = contract_of(annotations)
        if annotation:
            self._runtime.beside.refuse(_pod(config), annotation, handler, call.deadline)

    # -- lists

    def _list(self, name: str, both: Callable[..., Any]) -> Callable[[Any, Link, Call], Any]:
        own = self._own[name]

        def verb(request: Any, link: Link, call: Call) -> Any:
            return own(request, call) if self._ours_alone(request) else both(name, own, request, link, call)

        return verb

    def _ours_alone(self, request: Any) -> bool:
        wanted = request.filter
        return self._sides.only_ours(wanted.id, getattr(wanted, "pod_sandbox_id", ""))

    # -- the node

    def _status(self, request: pb.StatusRequest, link: Link, call: Call) -> pb.StatusResponse:
        status = link.begin("Status", request, call, PATIENCE)
        driver = link.begin("RuntimeConfig", pb.RuntimeConfigRequest(), call, PATIENCE)
        ours: pb.StatusResponse = self._own["Status"](request, call)
        here: pb.RuntimeConfigResponse = self._own["RuntimeConfig"](pb.RuntimeConfigRequest(), call)
        upstream: merge.Upstream | str
        try:
            upstream = merge.Upstream(pb.StatusResponse.FromString(status()), _driver(driver))
        except Relayed as error:
            link.answers_now = False
            upstream = f"{link.socket} does not answer: {error}"
        return merge.status(ours, upstream, default=self._links.default, driver=here.linux.cgroup_driver)

    def _update_config(self, request: pb.UpdateRuntimeConfigRequest, link: Link, call: Call) -> Any:
        theirs = link.begin("UpdateRuntimeConfig", request, call)
        ours = self._own["UpdateRuntimeConfig"](request, call)
        try:
            theirs()
        except Relayed as error:
            if error.code is not grpc.StatusCode.UNIMPLEMENTED:
                raise
        return ours


def _pod(config: pb.PodSandboxConfig) -> dict[str, Any]:
    of = config.metadata
    return {"namespace": of.namespace, "name": of.name, "uid": of.uid, "attempt": of.attempt}


def _driver(answer: Callable[[], bytes]) -> pb.CgroupDriver.ValueType | None:
    """``None``: it does not tell, as those before CRI 1.28."""
    try:
        return pb.RuntimeConfigResponse.FromString(answer()).linux.cgroup_driver
    except Relayed as error:
        if error.code is grpc.StatusCode.UNIMPLEMENTED:
            return None
        raise


def _has_image(link: Link, image: pb.ImageSpec, call: Call) -> bool:
    """Whether the other runtime has it; as far as can be told now."""
    try:
        answer = link.ask("ImageStatus", pb.ImageStatusRequest(image=pb.ImageSpec(image=image.image)), call)
    except Relayed:
        return True
    return pb.ImageStatusResponse.FromString(answer).HasField("image")
