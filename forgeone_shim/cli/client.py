"""The CLI's end of the socket: CRI and ForgeOne's own service over one channel, names resolved to ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket
from typing import Any, Final

import grpc

from cri.api import runtime_pb2 as cri
from cri.api import runtime_pb2_grpc as cri_grpc
from forgeone_shim.errors import FailedPrecondition, ForgeError, InvalidInput, NotFound, Unavailable
from forgeone_shim.rpc import node_pb2_grpc

DEFAULT_SOCKET = "/run/forgeone/forgeone.sock"
# A stop waits for the container's own grace period; nothing else may take longer than this.
PATIENCE = 120.0
_HINT = "is forgeoned running? --socket or FORGEONE_SOCKET names its socket, which is root's"
_MAX_MESSAGE = 64 * 1024 * 1024
# An id, or as much of one as lists show, which is no other's by chance.
_SHOWN: Final = re.compile("[0-9a-f]{12,64}")


class RemoteError(ForgeError):
    """forgeoned refused or failed a call; ``code`` is the gRPC status code's name."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


class Noun(StrEnum):
    """What an id on the command line may stand for."""

    POD = "pod"
    CONTAINER = "container"


@dataclass(frozen=True, slots=True)
class Target:
    """A pod or container that a name or id prefix stands for; ``item`` is its CRI list entry."""

    noun: Noun
    id: str
    name: str
    item: Any


class Client:
    """Stubs over one channel. A context manager."""

    def __init__(self, path: str) -> None:
        self.socket = path.removeprefix("unix://")
        limits = [("grpc.max_receive_message_length", _MAX_MESSAGE), ("grpc.max_send_message_length", _MAX_MESSAGE)]
        self._channel = grpc.insecure_channel(f"unix://{self.socket}", options=limits)
        self.runtime = cri_grpc.RuntimeServiceStub(self._channel)
        self.images = cri_grpc.ImageServiceStub(self._channel)
        self.node = node_pb2_grpc.NodeStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: Callable[..., Any], request: object, timeout: float | None = PATIENCE) -> Any:
        """One unary call; a failure is a ForgeError with the server's own words."""
        with self.errors():
            return method(request, timeout=timeout)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns a gRPC failure of the block into a ForgeError."""
        try:
            yield
        except grpc.RpcError as error:
            raise self._explain(error) from None

    def pods(self, id_: str = "") -> list[Any]:
        """Every sandbox (whose id begins so), newest first."""
        request = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(id=id_))
        items = self.call(self.runtime.ListPodSandbox, request).items
        return sorted(items, key=lambda item: -item.created_at)

    def containers(self, pod_id: str = "", id_: str = "") -> list[Any]:
        """Every container (of a pod, or whose id begins so), newest first."""
        request = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=pod_id, id=id_))
        return sorted(self.call(self.runtime.ListContainers, request).containers, key=lambda item: -item.created_at)

    def status(self, container_id: str, *, verbose: bool = False) -> tuple[Any, Mapping[str, str]]:
        """ContainerStatus and the runtime's own additions."""
        request = cri.ContainerStatusRequest(container_id=container_id, verbose=verbose)
        answer = self.call(self.runtime.ContainerStatus, request)
        return answer.status, answer.info

    def find(self, name: str, *nouns: Noun) -> Target:
        """What ``name`` (a name, an id or a unique beginning of one) stands for.

        ``nouns`` are looked through in their order; without any, containers before pods.

        :raises NotFound: nothing does.
        :raises InvalidInput: several things do.
        """
        if not name:
            raise InvalidInput("name", "is empty")
        # By its id, what ForgeOne has is found even while another runtime beside it does not answer.
        by_id = (name, "") if _SHOWN.fullmatch(name) else ("",)
        for id_, noun in product(by_id, nouns or (Noun.CONTAINER, Noun.POD)):
            items = self.containers(id_=id_) if noun is Noun.CONTAINER else self.pods(id_)
            found = match(name, noun, items)
            if found is not None:
                return found
        raise NotFound(" or ".join(sorted(nouns or Noun)), name)

    def _explain(self, error: grpc.RpcError) -> ForgeError:
        code = error.code()
        # A registry that does not answer is UNAVAILABLE too; only the socket itself tells whether forgeoned is there.
        why = unreachable(self.socket) if code is grpc.StatusCode.UNAVAILABLE else ""
        if why:
            return Unavailable(f"no answer from {self.socket}: {why}", fix=_HINT)
        return RemoteError(code.name, error.details() or "")


def unreachable(path: str) -> str:
    """Why nobody can be reached at a unix socket; empty when somebody can."""
    with socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            return error.strerror or str(error)
    return ""


def match(name: str, noun: Noun, items: list[Any]) -> Target | None:
    """The one of ``items`` that is called ``name``, or has that id or an id that begins so."""
    exact = [item for item in items if item.id == name]
    named = exact or [item for item in items if item.metadata.name == name]
    found = named or [item for item in items if item.id.startswith(name)]
    if len(found) > 1:
        ids = ", ".join(item.id[:13] for item in found[:5])
        raise InvalidInput("name", f"{name!r} is more than one {noun}: {ids}", fix="use an id")
    return Target(noun, found[0].id, found[0].metadata.name, found[0]) if found else None


def running_container(client: Client, name: str) -> Target:
    """A running container by its own name or id, or the only one running in the pod of that name or id."""
    found = client.find(name)
    if found.noun is Noun.CONTAINER:
        return found
    live = [item for item in client.containers(found.id) if item.state == cri.CONTAINER_RUNNING]
    if len(live) != 1:
        raise FailedPrecondition(f"pod {name!r} has {len(live)} running containers", fix="name the container")
    return Target(Noun.CONTAINER, live[0].id, live[0].metadata.name, live[0])


def any_container(client: Client, name: str) -> str:
    """The id of the container that ``name`` means, or of its pod's only one; also of one that has ended."""
    found = client.find(name)
    if found.noun is Noun.CONTAINER:
        return found.id
    items = client.containers(found.id)
    if len(items) != 1:
        raise FailedPrecondition(f"pod {name!r} has {len(items)} containers", fix="name the container")
    return str(items[0].id)
