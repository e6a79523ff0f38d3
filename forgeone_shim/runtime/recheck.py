"""What runs is judged again: after a restart of forgeoned, and when the policies change. What is denied is stopped."""

from __future__ import annotations

from functools import partial
from typing import Final

import structlog

from forgeone_shim.contract.facts import Point
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import Denied, InvalidInput, NotFound
from forgeone_shim.lifecycle.machine import State
from forgeone_shim.runtime import placement
from forgeone_shim.runtime.containers import Containers
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord
from forgeone_shim.runtime.table import Entry

_PATIENCE: Final = 0.5
_ALIVE: Final = frozenset({State.RUNNING, State.PAUSED, State.STOPPING})


class Recheck:
    """Thread-safe. Nobody waits for what is stopped here: the janitor does it, and repeats it until it is done.

    It has no grace period: what may not run does not get to go on for a while. Its pod stays, for a kubelet to make
    another of it, and to be told why that may not be.
    """

    def __init__(self, parts: Parts, containers: Containers) -> None:
        self._p, self._containers = parts, containers
        self._log = structlog.get_logger("guard")

    def all(self) -> None:
        """Every container that runs or is about to, and the packets of every pod."""
        for sandbox in self._p.sandboxes.all():
            name = f"keep sandbox {sandbox.record.id[:13]} to its network rule"
            self._p.janitor.until_done(name, partial(self._restrain, sandbox))
        for container in self._p.containers.all():
            name = f"judge container {container.record.id[:13]} again"
            self._p.janitor.until_done(name, partial(self._again, container))

    def _again(self, entry: Entry[ContainerRecord]) -> None:
        if entry.record.state not in (State.CREATED, State.BOOTED):
            self.container(entry)
            return
        # A start under way may have been judged before the policies changed. It holds the lock to its end; meanwhile
        # others have to be judged, too.
        with entry.working(Deadline.after(_PATIENCE)):
            self.container(entry)

    def _restrain(self, entry: Entry[SandboxRecord]) -> None:
        if entry.record.state is not State.BOOTED:
            return
        try:
            placement.restrain(self._p, entry.record)
        except InvalidInput as error:
            # Trying again would not make it one that can be enforced.
            for container in self._containers.of(entry.record.id):
                self._end(container, str(error))

    def container(self, entry: Entry[ContainerRecord]) -> None:
        """One container. One that was not started yet is judged when it is to be.

        One that is being stopped is judged, too: its grace period is as long as its author likes.
        """
        record = entry.record
        if record.state not in _ALIVE:
            return
        try:
            self._p.guard.container(Point.RECOVER, record, Deadline())
        except NotFound:
            # Its pod went meanwhile, and it goes with it.
            return
        except Denied as error:
            self._end(entry, str(error))

    def _end(self, entry: Entry[ContainerRecord], why: str) -> None:
        record = entry.record
        self._log.warning("stopped", container=record.id, why=why)
        self._p.janitor.until_done(f"stop container {record.id[:13]}, which is denied", lambda: self._stop(entry, why))

    def _stop(self, entry: Entry[ContainerRecord], why: str) -> None:
        with entry.state:
            if entry.record.state in _ALIVE:
                entry.change(denied=why)
        self._containers.endings.stop(entry, 0, NEVER)
