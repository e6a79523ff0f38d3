"""What passes between a container and ForgeOne beside its verbs: its life, for its engine, and its guest's calls."""

from __future__ import annotations

import time
from collections.abc import Iterator

import structlog

from engines.base import HostCalls, Step
from forgeone_shim.deadline import Deadline
from forgeone_shim.lifecycle.machine import Event, State, Subject, Transition
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.records import ContainerRecord
from forgeone_shim.runtime.table import Entry

# A guest records its calls by writing to memory: nothing tells of that.
_LOOK_EVERY = 0.1


class Insight:
    """Thread-safe."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self._log = structlog.get_logger("containers")

    def told(self, made: Transition) -> None:
        """Tell a container's engine of a step of its life; a subscriber of the lifecycle."""
        record = made.record
        if made.subject is Subject.CONTAINER and isinstance(record, ContainerRecord) and made.event is not Event.REMOVE:
            self._tell(record, Step(made.at, made.before, made.event, made.after))
            # In between nothing is known anew that its guest could not wait for.
            if made.event in (Event.BOOT, Event.START):
                self._trust(record)

    def found(self, entry: Entry[ContainerRecord]) -> None:
        """The same after a restart, when the last step may not have been told."""
        state = entry.record.state
        self._tell(entry.record, Step(time.time_ns(), state, "", state))
        self._trust(entry.record)

    def _trust(self, record: ContainerRecord) -> None:
        try:
            self._p.engines[record.engine].trusted(self._p.handle(record), self._p.identity.trust(record))
        except Exception as error:
            self._log.warning("it is not told how it is known", container=record.id, error=str(error))

    def _tell(self, record: ContainerRecord, step: Step) -> None:
        try:
            self._p.engines[record.engine].told(self._p.handle(record), step)
        except Exception as error:
            # The step has been made and stored, and others are to be told of it.
            self._log.warning("it is not told", container=record.id, state=step.after, error=str(error))

    def host_calls(self, id_: str, deadline: Deadline, *, follow: bool) -> Iterator[HostCalls]:
        """The calls that a container's guest has made to its host, oldest first.

        With ``follow`` those to come too, until it ends or nobody listens any more.

        :raises FailedPrecondition: none are recorded.
        """
        entry, after = self._p.containers.find(id_), 0
        while True:
            # Before the rest: what it called last must not be missed.
            live = entry.record.state is not State.TERMINATED
            engine, handle = self._p.engines[entry.record.engine], self._p.handle(entry.record)
            found = engine.host_calls(handle, after, ended=not live)
            if found.calls or found.lost:
                yield found
            after = found.next
            if not (follow and live) or entry.dropped or deadline.passed:
                return
            entry.ended.wait(deadline.remaining(_LOOK_EVERY))
