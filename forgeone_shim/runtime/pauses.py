"""Pause and resume: every process of a container stopped where it is, for as long as somebody wants it so."""

from __future__ import annotations

from forgeone_shim.contract.facts import Point
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.lifecycle.machine import Event, State
from forgeone_shim.runtime.endings import Endings
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.records import ContainerRecord
from forgeone_shim.runtime.table import Entry


class Pauses:
    """Thread-safe; every verb may be repeated. A pause outlives forgeoned; a stop ends it.

    The kernel is asked first and the record written second: whatever was cut off between the two is put right at the
    next start (:meth:`~forgeone_shim.runtime.containers.Containers.recover`), and was never acknowledged.
    """

    def __init__(self, parts: Parts, endings: Endings) -> None:
        self._p, self._endings = parts, endings

    def pause(self, id_: str, deadline: Deadline) -> None:
        """No process of the container runs once this returns; one that is paused already is no error.

        :raises FailedPrecondition: it does not run, was asked to stop meanwhile, or this host cannot freeze it.
        :raises DeadlineExceeded: its processes did not stop in time; they go on.
        """
        entry = self._p.containers.find(id_)
        with entry.working(deadline), deadline.within() as inner:
            engine, handle = self._p.engines[entry.record.engine], self._p.handle(entry.record)

            def break_off() -> None:
                inner.abandon()
                engine.resume(handle)

            with entry.state:
                if entry.record.state is State.PAUSED:
                    return
                _require(entry, State.RUNNING, "paused")
                entry.break_off = break_off
            try:
                engine.pause(handle, inner)
                with entry.state:
                    _require(entry, State.RUNNING, "paused")
                    self._endings.step(entry, Event.PAUSE)
            except BaseException:
                engine.resume(handle)
                # A stop is then the reason, whatever it has led to.
                _require(entry, State.RUNNING, "paused")
                raise
            finally:
                with entry.state:
                    entry.break_off = None

    def resume(self, id_: str, deadline: Deadline) -> None:
        """The container goes on where it was; one that runs is no error.

        :raises FailedPrecondition: it is neither paused nor running.
        :raises Denied: it may not go on.
        """
        entry = self._p.containers.find(id_)
        with entry.working(deadline):
            if entry.record.state is State.PAUSED:
                self._p.guard.container(Point.RESUME, entry.record, deadline)
            self._resume(entry)

    def _resume(self, entry: Entry[ContainerRecord]) -> None:
        with entry.state:
            if entry.record.state is State.RUNNING:
                return
            _require(entry, State.PAUSED, "resumed")
            self._p.engines[entry.record.engine].resume(self._p.handle(entry.record))
            self._endings.step(entry, Event.RESUME)


def _require(entry: Entry[ContainerRecord], state: State, what: str) -> None:
    if entry.record.state is not state:
        raise FailedPrecondition(f"container {entry.record.id[:13]} is {entry.record.state}: it cannot be {what}")
