"""Whose a handler, a pod or a container is, and the connection to the other runtime while there is one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from google.protobuf.message import Message

from cri.api import runtime_pb2 as pb
from cri.call import Call, Relayed
from cri.upstream.choice import Side
from cri.upstream.link import Link
from forgeone_shim.config.handlers import BUILT_IN_PREFIX
from forgeone_shim.config.model import UpstreamConfig
from forgeone_shim.contract.parse import PREFIX
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InvalidInput, NotFound
from forgeone_shim.metrics.figures import Figure, gauge
from forgeone_shim.runtime.views import ContainerView, SandboxView

PATIENCE: Final = 5.0
"""Seconds that a runtime has to tell of its pods when the configuration names another."""

_ID: Final = 64
"""Digits of a whole id, of every runtime."""

_CHANCE: Final = 12
"""Digits of random ids that no two share by chance: what people are shown, and type, has as many."""
_ANYWAY: Final = "if no kubelet uses this socket, restart forgeoned instead"


class BesidePort(Protocol):
    """What is asked of ForgeOne beside another runtime (:class:`forgeone_shim.runtime.beside.Beside`)."""

    def handles(self, handler: str) -> bool:
        """Whether pods of that handler run here."""

    def owns(self, id_: str) -> bool:
        """Whether a pod or container of exactly that id is here."""

    def has_image(self, name: str) -> bool:
        """Whether an image of that name or id is here."""

    def forwarded(self, sandbox_id: str, pod: Mapping[str, Any], handler: str, upstream: str) -> None:
        """A pod was started by another runtime: for the audit log."""

    def refuse(self, pod: Mapping[str, Any], annotation: str, handler: str, deadline: Deadline) -> None:
        """A pod with a contract was to be started by another runtime. :raises Denied: always."""

    def demand(self, pod: Mapping[str, Any], annotations: Mapping[str, str], handler: str, deadline: Deadline) -> None:
        """One without is to be. :raises Denied: a policy applies to it, which nobody would keep there."""


class RuntimePort(Protocol):
    """What is asked of the runtime itself."""

    @property
    def beside(self) -> BesidePort:
        """What it answers another runtime's side with."""

    def sandbox(self, id_: str) -> SandboxView:
        """By id or unique prefix; NotFound where there is none."""

    def container(self, id_: str) -> ContainerView:
        """By id or unique prefix; NotFound where there is none."""

    def sandboxes(self) -> list[SandboxView]:
        """All."""

    def containers(self, sandbox_id: str = "") -> list[ContainerView]:
        """All."""


class Links:
    """The connection to the other runtime, replaced when the configuration names another socket. Thread-safe."""

    def __init__(self, config: UpstreamConfig) -> None:
        self._changed = threading.Condition()
        self._default, self._held = config.default_runtime, config.policies == "deny"
        self._waiting: list[Callable[[], None]] = []
        self.now = Link(config.socket) if config.socket else None

    @property
    def default(self) -> Side:
        """Who runs the pods that name no handler."""
        return Side(self._default) if self.now is not None else Side.OURS

    @property
    def held(self) -> bool:
        """Whether no pod may go there to which a policy of this node applies."""
        return self._held

    def figures(self) -> Iterable[Figure]:
        """Whether the other runtime answers; nothing where there is none, or nobody has asked it yet."""
        up = self.now.answers_now if self.now is not None else None
        if up is not None:
            yield gauge("forgeone_upstream_up", "Whether the upstream runtime answered the last call: 1, else 0.", up)

    def check(self, config: UpstreamConfig) -> None:
        """Whether this may be the configuration while a kubelet may use this socket.

        :raises FailedPrecondition: pods would be on no list any more, and a kubelet would make them anew.
        """
        link = self.now
        if link is None or link.socket == config.socket:
            return
        try:
            lost = _pods(link)
            if lost and config.socket:
                successor = Link(config.socket)
                try:
                    lost -= _pods(successor)
                finally:
                    successor.retire()
        except Relayed as error:
            why = f"which pods are on {link.socket}, and would not be listed any more, cannot be told: {error}"
            raise FailedPrecondition(f"upstream.socket: {why}", fix=_ANYWAY) from None
        if lost:
            why = f"{len(lost)} pods on {link.socket} would not be listed any more, such as {min(lost)[:13]}"
            raise FailedPrecondition(f"upstream.socket: {why}", fix=f"remove them first; {_ANYWAY}")

    def follow(self, config: UpstreamConfig) -> None:
        """From now on this is the configuration; calls under way end where they began."""
        with self._changed:
            before, self._default, self._held = self.now, config.default_runtime, config.policies == "deny"
            if config.socket != (before.socket if before is not None else ""):
                self.now = Link(config.socket) if config.socket else None
                self._changed.notify_all()
            else:
                before = None
            told = list(self._waiting) if self.now is not None else []
        for tell in told:
            tell()
        if before is not None:
            before.retire()

    def close(self) -> None:
        """There is no other runtime any more."""
        self.follow(UpstreamConfig())

    @contextmanager
    def when_there(self, tell: Callable[[], None]) -> Iterator[None]:
        """Have ``tell`` called as soon as there is another runtime."""
        with self._changed:
            self._waiting.append(tell)
            there = self.now is not None
        if there:
            tell()
        try:
            yield
        finally:
            with self._changed:
                self._waiting.remove(tell)

    def wait(self, deadline: Deadline) -> Link | None:
        """A connection, once there is one; ``None`` once the caller has gone."""

        def wake() -> None:
            with self._changed:
                self._changed.notify_all()

        deadline.listen(wake)
        try:
            with self._changed:
                while self.now is None and not deadline.passed:
                    self._changed.wait(deadline.remaining())
                return None if deadline.passed else self.now
        finally:
            deadline.ignore(wake)


class Sides:
    """Tells whose things are. What is not ForgeOne's is the other runtime's, or nobody's, which that one knows."""

    def __init__(self, links: Links, runtime: RuntimePort) -> None:
        self._links, self._runtime = links, runtime

    def of_handler(self, handler: str) -> Side:
        """Who runs pods of that handler. One that only ForgeOne can mean is ours even where there is none."""
        if not handler:
            return self._links.default
        ours = handler.startswith(BUILT_IN_PREFIX) or self._runtime.beside.handles(handler)
        return Side.OURS if ours else Side.UPSTREAM

    def of_pod(self, id_: str, link: Link, call: Call) -> Side:
        """Whose the pod of that id is, or of that beginning of one.

        :raises InvalidInput: both have such a pod. :raises Relayed: the other one does not say whether it has.
        """
        return self._of("pod_sandbox_id", id_, link, call)

    def of_container(self, id_: str, link: Link, call: Call) -> Side:
        """The same of a container."""
        return self._of("container_id", id_, link, call)

    def only_ours(self, *ids: str) -> bool:
        """Whether a list that is filtered by these ids can hold nothing of the other runtime's."""
        return any(id_ and (self._runtime.beside.owns(id_) or self._shown(id_)) for id_ in ids)

    def _shown(self, id_: str) -> bool:
        fields = ("container_id", "pod_sandbox_id")
        return _CHANCE <= len(id_) < _ID and any(self._begins(field, id_) for field in fields)

    def _of(self, field: str, id_: str, link: Link, call: Call) -> Side:
        if not id_ or self._runtime.beside.owns(id_):
            # An empty one is refused here as well as there.
            return Side.OURS
        if len(id_) >= _ID or not self._begins(field, id_):
            return Side.UPSTREAM
        if len(id_) < _CHANCE and _listed(field, id_, link, call):
            raise InvalidInput(field, f"{id_!r} is the beginning of an id of ForgeOne's and of one of {link.socket}'s")
        return Side.OURS

    def _begins(self, field: str, id_: str) -> bool:
        try:
            _ = self._runtime.container(id_) if field == "container_id" else self._runtime.sandbox(id_)
        except NotFound:
            return False
        return True


def _listed(field: str, id_: str, link: Link, call: Call) -> Sequence[Message]:
    if field == "container_id":
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(id=id_))
        return pb.ListContainersResponse.FromString(link.ask("ListContainers", request, call)).containers
    pods = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(id=id_))
    return pb.ListPodSandboxResponse.FromString(link.ask("ListPodSandbox", pods, call)).items


def _pods(link: Link) -> set[str]:
    """:raises Relayed: it does not say."""
    answer = link.begin("ListPodSandbox", pb.ListPodSandboxRequest(), Call("", Deadline()), PATIENCE)
    return {one.id for one in pb.ListPodSandboxResponse.FromString(answer()).items}


def contract_of(annotations: Mapping[str, str]) -> str:
    """The first annotation by which a pod asks for a contract; empty: it has none."""
    return min((key for key in annotations if key.startswith(PREFIX)), default="")
