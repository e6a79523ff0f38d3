"""Which pods are on which networks, in the state store: written before the first ADD, forgotten after the last DEL.

What is stored is all that DEL needs, so that it does not matter what has become of the configuration's file.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from engines.base import DNSConfig
from forgeone_shim.network.cni.config import NetworkList
from forgeone_shim.state.store import StateStore

MEMBERS: Final = "cni.member"


class Stage(StrEnum):
    """How far a pod's networks are: some may have been added, all have been, or all are to be deleted."""

    INTENDED = "intended"
    ATTACHED = "attached"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Joined:
    """A network a pod is on by an interface; ``result`` is that of the last plugin of it that was added."""

    network: NetworkList
    ifname: str
    result: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A pod on CNI networks: how it was attached, and what it got.

    ``path`` are the folders plugins were found in.
    """

    sandbox_id: str
    netns: str
    args: dict[str, str]
    capabilities: dict[str, Any]
    path: tuple[str, ...]
    joined: tuple[Joined, ...]
    stage: Stage = Stage.INTENDED
    ips: tuple[str, ...] = ()
    mac: str = ""
    dns: DNSConfig | None = None

    def with_result(self, index: int, result: dict[str, Any]) -> Member:
        """The same with a result of one of its networks."""
        done = replace(self.joined[index], result=result)
        return replace(self, joined=(*self.joined[:index], done, *self.joined[index + 1 :]))


class Members:
    """Thread-safe. Read from the store once: nobody else writes there."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._members = dict(store.items(MEMBERS, Member))

    def get(self, sandbox_id: str) -> Member | None:
        """What is stored of a pod."""
        return self._members.get(sandbox_id)

    def all(self) -> list[Member]:
        """What is stored of every pod."""
        with self._lock:
            return list(self._members.values())

    def save(self, member: Member) -> Member:
        """Store it before anything else is done."""
        self._store.put(MEMBERS, member.sandbox_id, member)
        with self._lock:
            self._members[member.sandbox_id] = member
        return member

    def forget(self, sandbox_id: str) -> None:
        """Nothing is left of the pod."""
        self._store.delete(MEMBERS, sandbox_id)
        with self._lock:
            self._members.pop(sandbox_id, None)
