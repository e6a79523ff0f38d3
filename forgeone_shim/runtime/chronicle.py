"""What the audit log is told of this node's life, and the wait until it is durable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

import structlog

from forgeone_shim.audit.entry import Entry
from forgeone_shim.audit.ticket import Log, Ticket
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, Unavailable
from forgeone_shim.lifecycle.machine import Event, Subject, Transition
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord

PATIENCE: Final = 5.0
"""Seconds that a caller waits for the disk at most."""

# What each step is called once it is done.
_DONE: Final[Mapping[Event, str]] = MappingProxyType(
    {
        Event.BOOT: "booted",
        Event.START: "started",
        Event.PAUSE: "paused",
        Event.RESUME: "resumed",
        Event.STOP: "stopping",
        Event.EXIT: "exited",
        Event.REMOVE: "removed",
    }
)


class Chronicle:
    """Writes to the log. Thread-safe.

    :meth:`told` and :meth:`note` only queue; whoever answers a client waits with :meth:`settled` first.
    """

    def __init__(self, log: Log, sandbox: Callable[[str], SandboxRecord | None]) -> None:
        """``sandbox`` finds a sandbox by its id, and takes no lock that a step is made under."""
        self._log, self._sandbox = log, sandbox
        self._out = structlog.get_logger("audit")

    def told(self, made: Transition) -> None:
        """A step of a life: a subscriber of the lifecycle."""
        about = self.about(made.record) or {"sandbox": made.sandbox_id}
        data = {**about, "event": str(made.event), "from": str(made.before), "to": str(made.after), **_ending(made)}
        name = f"{made.subject}.{_DONE[made.event]}"
        self._log.append(Entry(type=name, subject=f"{made.subject}/{made.id}", data=data, at=made.at))

    def note(self, type_: str, subject: str, **data: Any) -> Ticket:
        """Anything else: ``note("container.updated", "container/ID", ...)``, plain JSON values."""
        return self._log.append(Entry(type=type_, subject=subject, data=data))

    def noted(self, type_: str, record: SandboxRecord | ContainerRecord, **data: Any) -> Ticket:
        """The same of a pod or a container, with what is known of it."""
        kind = Subject.SANDBOX if isinstance(record, SandboxRecord) else Subject.CONTAINER
        return self.note(f"{kind}.{type_}", f"{kind}/{record.id}", **self.about(record), **data)

    def denied(self, point: str, subject: str, deadline: Deadline, *, rule: str, reason: str, **data: Any) -> str:
        """A refusal, durable when this returns: the entry's id.

        It is refused all the same where the log cannot be written: then the id says so.
        """
        ticket = self.note("denied", subject, point=point, rule=rule, reason=reason, **data)
        try:
            with deadline.within(PATIENCE) as left:
                return ticket.wait(left)
        except (Unavailable, DeadlineExceeded):
            return f"{ticket.id}, not written yet"

    def require(self) -> None:
        """:raises Unavailable: the log cannot be written, so nothing may start."""
        self._log.require()

    def settle(self, deadline: Deadline, *, must: bool = True) -> None:
        """Return once everything that has happened so far is durable, whoever did it.

        :param must: say so where it is not; otherwise that is logged, and the entries are written when they can be.
        :raises Unavailable: it is not.
        """
        try:
            with deadline.within(PATIENCE) as left:
                self._log.barrier(left)
        except (Unavailable, DeadlineExceeded) as error:
            if must:
                raise Unavailable(f"what was done is not in the audit log yet: {error.what}") from error
            self._out.error("not in the audit log yet", error=str(error))

    @contextmanager
    def settled(self, deadline: Deadline, *, must: bool = True) -> Iterator[None]:
        """Around a verb. With ``must`` it is not begun where the log cannot be written, and fails until it is durable.

        Without, it is for ends, which must be possible on a node whose disk is full.
        """
        if must:
            self.require()
        try:
            yield
        except BaseException:
            self.settle(deadline, must=False)
            raise
        self.settle(deadline, must=must)

    def about(self, record: object) -> dict[str, Any]:
        """What each entry of a pod or a container says of it."""
        if isinstance(record, SandboxRecord):
            return _pod(record)
        if isinstance(record, ContainerRecord):
            pod = self._sandbox(record.sandbox_id)
            return {
                **({"sandbox": record.sandbox_id} if pod is None else _pod(pod)),
                "container": {"id": record.id, "name": record.spec.name, "attempt": record.spec.attempt},
                "engine": record.engine,
                "image": {"id": record.image_id, "ref": record.image_ref},
            }
        return {}


def _pod(record: SandboxRecord) -> dict[str, Any]:
    spec = record.spec
    pod = {"namespace": spec.namespace, "name": spec.name, "uid": spec.uid, "attempt": spec.attempt}
    return {"sandbox": record.id, "pod": pod, "handler": spec.runtime_handler, "engine": record.engine}


def _ending(made: Transition) -> dict[str, Any]:
    record = made.record
    if made.event is not Event.EXIT or not isinstance(record, ContainerRecord):
        return {}
    return {"exit_code": record.exit_code, "reason": record.reason, "message": record.message}
