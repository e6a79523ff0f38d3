"""Nodes that take turns: as many leases as nodes may be unavailable at a time, each held while its node installs.

Clocks of nodes differ, so a lease is taken from a holder that has died only after this process itself has seen it
unchanged for as long as it lasts (as client-go's leader election has it).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from forgeone_shim.errors import ForgeError, NotFound
from forgeone_shim.node.cluster import Cluster, Conflict, Lease

SECONDS: Final = 60
"""How long a lease lasts without a renewal."""

_RENEWALS: Final = 3


@dataclass(frozen=True, slots=True)
class Glance:
    """A lease as it was seen first with this content, at ``since`` on this process's monotonic clock."""

    lease: Lease
    since: float


def names(name: str, slots: int) -> tuple[str, ...]:
    """The leases of a rollout: its name, and that with a number for each further slot."""
    return (name, *(f"{name}-{number}" for number in range(1, slots)))


def choose(glances: Mapping[str, Glance | None], holder: str, now: float) -> tuple[str, float]:
    """Which lease to take (empty: none yet), and in how many seconds one may be free that nobody renews.

    One that is held already by ``holder`` comes first: a process that was killed held it for the same node.
    """
    free, wait = "", float(SECONDS)
    for name, glance in glances.items():
        if glance is None or not glance.lease.holder:
            free = free or name
            continue
        if glance.lease.holder == holder:
            return name, 0.0
        left = glance.since + glance.lease.seconds - now
        if left <= 0:
            free = free or name
        else:
            wait = min(wait, left)
    return free, wait


class Turns:
    """This node's turns among those that have the same leases."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, slots: int, holder: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._names = names(name, slots)
        self._holder = holder
        self._glances: dict[str, Glance] = {}

    @contextmanager
    def turn(self, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Wait for a lease, and hold it for the block; ``waits`` is called once where it has to be waited for.

        A process that is told to end keeps it: what it has begun goes on, and the lease runs out by itself.

        :raises ForgeError: the API server refuses, or does not answer.
        """
        held = self._taken()
        if held is None:
            waits()
        while held is None:
            held = self._awaited()
        keeper = _Keeper(self._cluster, self._namespace, held, self._holder)
        try:
            yield
        except Exception:
            keeper.let_go()
            raise
        except BaseException:
            keeper.stop()
            raise
        keeper.let_go()

    def _taken(self) -> Lease | None:
        name, _ = choose(self._look(), self._holder, time.monotonic())
        if not name:
            return None
        glance = self._glances.get(name)
        try:
            if glance is None:
                return self._cluster.make_lease(self._namespace, name, self._holder, SECONDS)
            return self._cluster.hold_lease(self._namespace, glance.lease, self._holder, SECONDS)
        except Conflict:
            return None

    def _awaited(self) -> Lease | None:
        _, wait = choose(self._look(), self._holder, time.monotonic())
        for lease in self._cluster.watch_leases(self._namespace, max(1, int(wait + 0.999))):
            glance = self._glances.get(lease.name)
            # Each lease that is there is told first, as it was seen.
            if lease.name in self._names and (glance is None or glance.lease.version != lease.version):
                break
        return self._taken()

    def _look(self) -> Mapping[str, Glance | None]:
        now = time.monotonic()
        found: dict[str, Glance | None] = {}
        for name in self._names:
            try:
                lease = self._cluster.lease(self._namespace, name)
            except NotFound:
                self._glances.pop(name, None)
                found[name] = None
                continue
            before = self._glances.get(name)
            if before is None or before.lease != lease:
                self._glances[name] = Glance(lease, now)
            found[name] = self._glances[name]
        return found


class _Keeper:
    """Renews a lease by a thread, until it is let go of, or somebody else has it."""

    def __init__(self, cluster: Cluster, namespace: str, lease: Lease, holder: str) -> None:
        self._cluster, self._namespace, self._lease, self._holder = cluster, namespace, lease, holder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Renew it no more."""
        self._ended.set()

    def let_go(self) -> None:
        """Others may have it at once; that fails where it would run out anyway."""
        self._ended.set()
        self._thread.join(SECONDS)
        try:
            self._cluster.hold_lease(self._namespace, self._lease, "", SECONDS)
        except ForgeError:
            return

    def _renew(self) -> None:
        while not self._ended.wait(SECONDS / _RENEWALS):
            try:
                self._lease = self._cluster.hold_lease(self._namespace, self._lease, self._holder, SECONDS)
            except Conflict:
                return
            except ForgeError:
                continue
