"""What a client was told of another runtime's pods, and what it has missed while nobody could be asked. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from cri.api import runtime_pb2 as pb

_GONE: Final = 4096
# How far a life has come, by the last event that told of it.
_POD_STATES: Final = MappingProxyType(
    {pb.SANDBOX_READY: pb.CONTAINER_STARTED_EVENT, pb.SANDBOX_NOTREADY: pb.CONTAINER_STOPPED_EVENT}
)
_CONTAINER_STATES: Final = MappingProxyType(
    {
        pb.CONTAINER_CREATED: pb.CONTAINER_CREATED_EVENT,
        pb.CONTAINER_RUNNING: pb.CONTAINER_STARTED_EVENT,
        pb.CONTAINER_EXITED: pb.CONTAINER_STOPPED_EVENT,
        pb.CONTAINER_UNKNOWN: pb.CONTAINER_CREATED_EVENT,
    }
)
_NOTHING: Final = -1
_STEPS: Final = (
    pb.CONTAINER_CREATED_EVENT,
    pb.CONTAINER_STARTED_EVENT,
    pb.CONTAINER_STOPPED_EVENT,
    pb.CONTAINER_DELETED_EVENT,
)


@dataclass(frozen=True, slots=True)
class Listed:
    """All pods and containers at one moment."""

    pods: Mapping[str, pb.PodSandbox]
    containers: Mapping[str, pb.Container]

    @classmethod
    def of(cls, pods: Iterable[pb.PodSandbox], containers: Iterable[pb.Container]) -> Listed:
        """By their ids."""
        return cls({one.id: one for one in pods}, {one.id: one for one in containers})


@dataclass(frozen=True, slots=True)
class Missed:
    """An event that nobody told of: ``id`` is a pod's or container's, ``pod`` the one it is about."""

    id: str
    pod: pb.PodSandbox
    type: pb.ContainerEventType.ValueType


@dataclass(slots=True)
class _Life:
    pod: str
    known: int = _NOTHING
    told: int = _NOTHING


@dataclass(slots=True)
class Track:
    """Follows lives by events and lists. An event is told once: lives go one way."""

    _lives: dict[str, _Life] = field(default_factory=dict)
    _pods: dict[str, pb.PodSandbox] = field(default_factory=dict)
    _gone: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def news(self, event: pb.ContainerEventResponse) -> bool:
        """Take an event in; whether the client is to be told of it."""
        id_, step, status = event.container_id, event.container_event_type, event.pod_sandbox_status
        if id_ in self._gone:
            return False
        life = self._lives.setdefault(id_, _Life(status.id or id_))
        if status.id:
            self._pods[status.id] = _item(status)
        if step <= life.told:
            return False
        life.told, life.known = step, max(step, life.known)
        if step == pb.CONTAINER_DELETED_EVENT:
            self._end(id_)
        return True

    def begin(self, now: Listed) -> None:
        """The client lists by itself from here on: nothing of this has been missed."""
        self._pods.update(now.pods)
        for id_, pod, known in _all(now):
            life = self._lives.setdefault(id_, _Life(pod))
            life.known = max(life.known, known)

    def missed(self, now: Listed) -> list[Missed]:
        """What has happened since the last event or list, in an order that can have been; it counts as told then.

        Pods come before their containers, and go after them.
        """
        self._pods.update(now.pods)
        found: list[Missed] = []
        for id_, pod, known in _all(now):
            life = self._lives.setdefault(id_, _Life(pod))
            found += self._up_to(id_, life, known)
        here = now.pods.keys() | now.containers.keys()
        away = [(id_, life) for id_, life in self._lives.items() if id_ not in here]
        for id_, life in sorted(away, key=lambda one: one[0] in self._pods):
            found += self._up_to(id_, life, pb.CONTAINER_DELETED_EVENT)
            self._end(id_)
        return found

    def _up_to(self, id_: str, life: _Life, step: int) -> list[Missed]:
        pod = self._pods.get(life.pod) or pb.PodSandbox(id=life.pod)
        steps = [one for one in _STEPS if life.known < one <= step]
        if steps:
            life.known = life.told = step
        return [Missed(id_, pod, one) for one in steps]

    def _end(self, id_: str) -> None:
        life = self._lives.pop(id_)
        if life.pod == id_:
            self._pods.pop(id_, None)
        self._gone[id_] = None
        while len(self._gone) > _GONE:
            self._gone.popitem(last=False)


def _all(now: Listed) -> Iterable[tuple[str, str, int]]:
    """Id, pod, and how far it has come: pods first."""
    for pod in now.pods.values():
        yield pod.id, pod.id, _POD_STATES.get(pod.state, pb.CONTAINER_CREATED_EVENT)
    for one in now.containers.values():
        yield one.id, one.pod_sandbox_id, _CONTAINER_STATES.get(one.state, pb.CONTAINER_CREATED_EVENT)


def _item(status: pb.PodSandboxStatus) -> pb.PodSandbox:
    return pb.PodSandbox(
        id=status.id,
        metadata=status.metadata,
        state=status.state,
        created_at=status.created_at,
        labels=status.labels,
        annotations=status.annotations,
        runtime_handler=status.runtime_handler,
    )


def last_status(pod: pb.PodSandbox) -> pb.PodSandboxStatus:
    """What can be said of a pod that is gone: what was known of it."""
    return pb.PodSandboxStatus(
        id=pod.id,
        metadata=pod.metadata,
        state=pb.SANDBOX_NOTREADY,
        created_at=pod.created_at,
        labels=pod.labels,
        annotations=pod.annotations,
        runtime_handler=pod.runtime_handler,
    )
