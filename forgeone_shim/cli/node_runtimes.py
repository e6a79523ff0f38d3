"""The CRI sockets of a node, for the installer, which knows no CRI."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import grpc

from cri.api import runtime_pb2 as cri
from forgeone_shim.cli.client import Client, RemoteError, unreachable
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, Unavailable
from forgeone_shim.node.work import Pod

_INTERVAL: Final = 0.5
_CALL: Final = 30.0
_BEYOND_GRACE: Final = 30.0


class CriRuntimes:
    """See :class:`forgeone_shim.node.work.Runtimes`."""

    def ready(self, socket: Path, version: str, deadline: Deadline) -> None:
        """Status is asked for again and again: CRI has no event for it."""
        pause = threading.Event()
        while True:
            why = _unready(socket, version, deadline)
            if not why:
                return
            if deadline.passed:
                raise FailedPrecondition(f"forgeoned is not ready: {why}", fix="journalctl -u forgeoned")
            pause.wait(deadline.remaining(_INTERVAL))

    def pods(self, socket: Path, deadline: Deadline) -> tuple[Pod, ...]:
        """As the protocol says."""
        with Client(str(socket)) as client:
            request = cri.ListPodSandboxRequest()
            items = client.call(client.runtime.ListPodSandbox, request, deadline.remaining(_CALL)).items
        return tuple(_pod(item) for item in items)

    def remove(self, socket: Path, pod: str, grace: int, deadline: Deadline) -> None:
        """As the protocol says; the containers of a pod are stopped one after another, as a kubelet's are not: none of
        them shall miss another that has gone.
        """
        with Client(str(socket)) as client:
            request = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=pod))
            for item in client.call(client.runtime.ListContainers, request, deadline.remaining(_CALL)).containers:
                if item.state == cri.CONTAINER_RUNNING:
                    stop = cri.StopContainerRequest(container_id=item.id, timeout=grace)
                    client.call(client.runtime.StopContainer, stop, deadline.remaining(grace + _BEYOND_GRACE))
            limit = deadline.remaining(_CALL)
            client.call(client.runtime.StopPodSandbox, cri.StopPodSandboxRequest(pod_sandbox_id=pod), limit)
            limit = deadline.remaining(_CALL)
            client.call(client.runtime.RemovePodSandbox, cri.RemovePodSandboxRequest(pod_sandbox_id=pod), limit)


def condition(socket: Path, deadline: Deadline) -> tuple[str, str]:
    """forgeoned's version, and why it is not ready (empty: it is). Readiness of the network is an add-on's to bring.

    :raises Unavailable: it does not answer.
    """
    with Client(str(socket)) as client:
        try:
            found = client.runtime.Version(
                cri.VersionRequest(), timeout=deadline.remaining(_CALL), wait_for_ready=socket.exists()
            )
        except grpc.RpcError as error:
            why = unreachable(str(socket)) or error.details() or error.code().name
            raise Unavailable(f"no answer from {socket}: {why}") from None
        status = client.call(client.runtime.Status, cri.StatusRequest(), deadline.remaining(_CALL)).status
    conditions = {item.type: item for item in status.conditions}
    ready = conditions.get("RuntimeReady")
    if ready is None:
        return found.runtime_version, "it does not say whether it is"
    return found.runtime_version, "" if ready.status else f"{ready.reason}: {ready.message}"


def _unready(socket: Path, version: str, deadline: Deadline) -> str:
    try:
        found, why = condition(socket, deadline)
    except (Unavailable, RemoteError) as error:
        return str(error)
    return why or ("" if found == version else f"version {found} answers, not {version}")


def _pod(item: object) -> Pod:
    about = item.metadata  # type: ignore[attr-defined]
    running = item.state == cri.SANDBOX_READY  # type: ignore[attr-defined]
    return Pod(item.id, about.uid, about.namespace, about.name, running)  # type: ignore[attr-defined]
