"""Which of two runtimes an image is asked of, pulled into or missed in. Pure.

CRI names an image without the pod it is for, and each runtime has a store of its own: an image that one has is of no
use to a pod of the other. Kubelets say nearly enough: a pull carries the pod's name, and ImageStatus its annotations,
among them the time at which the kubelet first saw it. What is said decides, then what the pods tell that there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from forgeone_shim.errors import InvalidInput
from forgeone_shim.registry.reference import Reference

LATELY: Final = 120 * 10**9
"""Nanoseconds in which a pod still waits for containers, once it or its newest container was made."""

_WANTED: Final = 1024
# Kubelets put these among a pod's annotations, for themselves: the first differs after a kubelet's restart.
_SEEN: Final = "kubernetes.io/config.seen"
_LOCAL: Final = "kubernetes.io/config."


class Side(StrEnum):
    """One of the two runtimes."""

    OURS = "forgeone"
    UPSTREAM = "upstream"

    @property
    def other(self) -> Side:
        """Not this one."""
        return Side.UPSTREAM if self is Side.OURS else Side.OURS


@dataclass(frozen=True, slots=True)
class PodKey:
    """What a kubelet calls a pod."""

    namespace: str
    name: str
    uid: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Pod:
    """A ready pod."""

    key: PodKey
    annotations: Mapping[str, str] = field(default_factory=dict)


class Pods(Protocol):
    """The ready pods there are, asked for no earlier than they are needed."""

    def ours(self) -> Sequence[Pod]:
        """ForgeOne's."""

    def upstream(self) -> Sequence[Pod]:
        """The other runtime's; none while it does not answer."""

    def active(self, since: int) -> frozenset[Side] | None:
        """Who has pods that were made, or had a container made, since then (ns since the epoch); ``None``: unknown."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call says of an image: its name or id, a runtime handler if any, the annotations of its pod."""

    image: str
    handler: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


class Wanted:
    """Images that a pod's runtime was found to lack while the other one has them. Thread-safe.

    Until such an image is pulled there it counts as absent, so that the kubelet pulls it, with its credentials.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._marks: dict[tuple[str, Side], str] = {}

    def mark(self, images: Iterable[str], side: Side, sandbox_id: str) -> None:
        """A container of that pod needs the image of these names on that side."""
        with self._lock:
            for image in filter(None, images):
                self._marks.pop((canonical(image), side), None)
                self._marks[canonical(image), side] = sandbox_id
            while len(self._marks) > _WANTED:
                del self._marks[next(iter(self._marks))]

    def arrived(self, images: Iterable[str], side: Side) -> None:
        """An image of these names is there."""
        with self._lock:
            for image in images:
                self._marks.pop((canonical(image), side), None)

    def gone(self, sandbox_id: str) -> None:
        """No container of that pod will need anything any more."""
        with self._lock:
            self._marks = {mark: pod for mark, pod in self._marks.items() if pod != sandbox_id}

    def on(self, image: str) -> tuple[Side, ...]:
        """Where an image of that name is missed."""
        with self._lock:
            return tuple(side for side in Side if (canonical(image), side) in self._marks)


class Choice:
    """The rules."""

    def __init__(self, side_of: Callable[[str], Side], now: Callable[[], int]) -> None:
        """``side_of`` says whose a handler is, the empty one too; ``now`` is in nanoseconds since the epoch."""
        self.wanted = Wanted()
        self._side_of, self._now = side_of, now

    def pull(self, asked: Asked, pod: PodKey | None, pods: Pods) -> Side:
        """Where an image is to be pulled to.

        A handler that is named decides; then the pod that it is for, by its name, else by its annotations; where an
        image of that name is missed; the pods that wait for containers, if they are all of one runtime; and last
        whoever runs pods that name no handler.
        """
        if asked.handler:
            return self._side_of(asked.handler)
        if pod is not None:
            # A uid is one pod's: where it is here nobody else is asked.
            if any(one.key == pod for one in pods.ours()):
                return Side.OURS
            if any(one.key == pod for one in pods.upstream()):
                return Side.UPSTREAM
        return self._told(asked, pods) or self._side_of("")

    def look(self, asked: Asked, pods: Pods) -> tuple[Side, ...]:
        """Whose image of that name counts: the first that has one.

        As with a pull; where that leaves it open an image of either runtime counts.
        """
        if asked.handler:
            return (self._side_of(asked.handler),)
        side, first = self._told(asked, pods), self._side_of("")
        return (side,) if side else (first, first.other)

    def _told(self, asked: Asked, pods: Pods) -> Side | None:
        side = _by_annotations(asked.annotations, pods) or _one(self.wanted.on(asked.image))
        return side or _one(pods.active(self._now() - LATELY) or ())


def canonical(image: str) -> str:
    """One spelling for all that name the same image; an id is its own."""
    try:
        return str(Reference.parse(image))
    except InvalidInput:
        return image


def _by_annotations(asked: Mapping[str, str], pods: Pods) -> Side | None:
    """Whose the pod with these annotations is: by all of them, by when it was seen, or by those that others gave it."""
    if _SEEN in asked and any(pod.annotations == asked for pod in pods.ours()):
        # No two pods were seen in the same nanosecond: nobody else is asked.
        return Side.OURS
    for part in (_all, _seen, _lasting):
        wanted = part(asked)
        if not wanted:
            continue
        mine = any(part(pod.annotations) == wanted for pod in pods.ours())
        if mine is not any(part(pod.annotations) == wanted for pod in pods.upstream()):
            return Side.OURS if mine else Side.UPSTREAM
    return None


def _all(annotations: Mapping[str, str]) -> dict[str, str]:
    return dict(annotations)


def _seen(annotations: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in annotations.items() if key == _SEEN}


def _lasting(annotations: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in annotations.items() if not key.startswith(_LOCAL)}


def _one(sides: Iterable[Side]) -> Side | None:
    found = set(sides)
    return found.pop() if len(found) == 1 else None
