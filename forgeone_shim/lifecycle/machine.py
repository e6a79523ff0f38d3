"""The life of a sandbox or container as a table: state -> event -> state. Nothing else may change a state.

The diagram in ``docs/architecture.md`` is generated from :data:`TABLE` by :func:`diagram`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from forgeone_shim.errors import FailedPrecondition


class State(StrEnum):
    """CRI's CREATED is ``CREATED | BOOTED``, RUNNING is ``RUNNING | PAUSED | STOPPING``, EXITED is ``TERMINATED``.

    ``REMOVED`` is told but never stored: its record is gone.
    """

    CREATED = "created"
    BOOTED = "booted"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    TERMINATED = "terminated"
    REMOVED = "removed"


class Event(StrEnum):
    """What happens to a subject."""

    BOOT = "boot"
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    EXIT = "exit"
    REMOVE = "remove"


TABLE: Mapping[State, Mapping[Event, State]] = MappingProxyType(
    {
        State.CREATED: {Event.BOOT: State.BOOTED, Event.EXIT: State.TERMINATED},
        State.BOOTED: {Event.START: State.RUNNING, Event.STOP: State.STOPPING, Event.EXIT: State.TERMINATED},
        State.RUNNING: {Event.PAUSE: State.PAUSED, Event.STOP: State.STOPPING, Event.EXIT: State.TERMINATED},
        State.PAUSED: {Event.RESUME: State.RUNNING, Event.STOP: State.STOPPING, Event.EXIT: State.TERMINATED},
        # A stop repeated during the grace period is the kubelet's way of shortening it.
        State.STOPPING: {Event.STOP: State.STOPPING, Event.EXIT: State.TERMINATED},
        State.TERMINATED: {Event.REMOVE: State.REMOVED},
        State.REMOVED: {},
    }
)

LIVE = frozenset({State.RUNNING, State.PAUSED, State.STOPPING})


class Subject(StrEnum):
    """What has a life."""

    SANDBOX = "sandbox"
    CONTAINER = "container"


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of one life; ``at`` is in nanoseconds since the epoch, ``record`` what was stored, or stored last."""

    subject: Subject
    id: str
    sandbox_id: str
    before: State
    event: Event
    after: State
    at: int
    detail: Mapping[str, str | int] = field(default_factory=dict)
    record: object = None


def next_state(before: State, event: Event, *, name: str) -> State:
    """Where ``event`` leads from ``before``; FailedPrecondition where the table has no such step."""
    after = TABLE[before].get(event)
    if after is None:
        raise FailedPrecondition(f"{name} is {before}: cannot {event}")
    return after


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> created"]
    lines += [f"    {before} --> {after}: {event}" for before, row in TABLE.items() for event, after in row.items()]
    return "\n".join([*lines, "    removed --> [*]"])


class Lifecycle:
    """Applies the table and tells subscribers, in order, in the thread that made the step.

    A subscriber must return quickly and must not raise; what it wants to do slowly it hands to a thread of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscribers: tuple[Callable[[Transition], None], ...] = ()

    def subscribe(self, subscriber: Callable[[Transition], None]) -> Callable[[], None]:
        """Call ``subscriber`` for each transition from now on; the returned function ends that."""
        with self._lock:
            self._subscribers = (*self._subscribers, subscriber)

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers = tuple(s for s in self._subscribers if s is not subscriber)

        return unsubscribe

    def step(
        self,
        subject: Subject,
        id_: str,
        *,
        sandbox_id: str,
        before: State,
        event: Event,
        commit: Callable[[State], object],
        **detail: str | int,
    ) -> State:
        """Make one step: look it up, ``commit`` the new state (store it), then publish. Returns the new state.

        What ``commit`` returns is the transition's ``record``.
        """
        after = next_state(before, event, name=f"{subject} {id_[:13]}")
        record = commit(after)
        made = Transition(subject, id_, sandbox_id, before, event, after, time.time_ns(), detail, record)
        for subscriber in self._subscribers:
            subscriber(made)
        return after
