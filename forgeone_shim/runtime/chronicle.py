"""What the audit log is told of this node's life, and the wait until it is durable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec
import structlog

from forgeone_shim.audit.entry import Entry
from forgeone_shim.audit.ticket import Log, Ticket
from forgeone_shim.config.model import Config
from forgeone_shim.contract.facts import Bound
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, Unavailable
from forgeone_shim.lifecycle.machine import Event, State, Subject, Transition
from forgeone_shim.metrics.figures import Figure, Tally
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord
from forgeone_shim.version import VERSION

PATIENCE: Final = 5.0
"""Seconds that a caller waits for the disk at most."""

_CONTRACTS: Final = 1024
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")

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

    def __init__(self, log: Log, sandbox: Callable[[str], SandboxRecord | None], *, arguments: bool = False) -> None:
        """``sandbox`` finds a sandbox by its id, and takes no lock that a step is made under.

        :param arguments: those of commands are told; otherwise only their hash is.
        """
        self._log, self._sandbox, self._arguments = log, sandbox, arguments
        self._out = structlog.get_logger("audit")
        self._denials = Tally(
            "forgeone_denials_total", "What contracts and policies have denied.", labels=("point", "rule")
        )
        self._exits = Tally(
            "forgeone_container_exits_total", "Containers that have ended.", labels=("engine", "reason")
        )
        # A contract is told of with each step of a life, and hashing one takes longer than the rest of an entry.
        self._digest = lru_cache(_CONTRACTS)(lambda contract: contract.digest)

    def told(self, made: Transition) -> None:
        """A step of a life: a subscriber of the lifecycle."""
        about = self.about(made.record) or {"sandbox": made.sandbox_id}
        data = {**about, "event": str(made.event), "from": str(made.before), "to": str(made.after)}
        if made.event is Event.EXIT:
            data |= _end_of(made.record)
            if isinstance(made.record, ContainerRecord):
                self._exits.count(made.record.engine, made.record.reason)
        name = f"{made.subject}.{_DONE[made.event]}"
        self._log.append(Entry(type=name, subject=f"{made.subject}/{made.id}", data=data, at=made.at))

    def note(self, type_: str, subject: str, **data: Any) -> Ticket:
        """Anything else: ``note("container.updated", "container/ID", ...)``, plain JSON values."""
        return self._log.append(Entry(type=type_, subject=subject, data=data))

    def noted(self, type_: str, record: SandboxRecord | ContainerRecord, **data: Any) -> Ticket:
        """The same of a pod or a container, with what is known of it."""
        subject = _subject(record)
        return self.note(f"{subject}.{type_}", f"{subject}/{record.id}", **self.about(record), **data)

    def denied(self, point: str, subject: str, deadline: Deadline, *, rule: str, reason: str, **data: Any) -> str:
        """A refusal, durable when this returns: the entry's id.

        It is refused all the same where the log cannot be written: then the id says so.
        """
        self._denials.count(point, rule)
        ticket = self.note("denied", subject, point=point, rule=rule, reason=reason, **data)
        try:
            with deadline.within(PATIENCE) as left:
                return ticket.wait(left)
        except (Unavailable, DeadlineExceeded):
            return f"{ticket.id}, not written yet"

    def figures(self) -> Iterable[Figure]:
        """What it has been told of since it was made, counted."""
        yield self._denials.figure()
        yield self._exits.figure()

    def started(self, config: Config, policies: str) -> None:
        """forgeoned runs, with this configuration and the policies of this digest."""
        digest = f"sha256:{sha256(msgspec.json.encode(config)).hexdigest()}"
        told = {"version": VERSION, "pid": os.getpid(), "boot": _BOOT.read_text().strip()}
        self.note("node.started", "node", **told, configuration=digest, policies=policies)

    def recovered(self, records: Iterable[SandboxRecord | ContainerRecord]) -> None:
        """What there is after a start: steps that a killed forgeoned stored, and did not log, can be seen by it."""
        for record in records:
            ended = _end_of(record) if record.state is State.TERMINATED else {}
            self.noted("recovered", record, state=str(record.state), **ended)

    def loaded(self, changed: Sequence[str], waiting: Sequence[str], policies: str) -> None:
        """The configuration was read again: keys and files that changed, and those that wait for a restart."""
        told = {"changed": list(changed), "waiting": list(waiting)}
        self.note("node.configuration.loaded", "node", **told, policies=policies)

    def refused(self, why: str) -> None:
        """The configuration was read again, and cannot be used."""
        self.note("node.configuration.refused", "node", reason=why)

    def synced(self, changed: Sequence[str], policies: str) -> None:
        """Policies of the cluster that came, changed or went."""
        self.note("node.policies.synced", "node", changed=list(changed), policies=policies)

    def stopped(self) -> None:
        """forgeoned ends; containers go on."""
        self.note("node.stopped", "node", pid=os.getpid())

    def command(self, argv: Sequence[str]) -> dict[str, Any]:
        """What is told of a command."""
        if self._arguments:
            return {"command": list(argv)}
        digest = sha256(b"\0".join(one.encode("utf-8", "surrogateescape") for one in argv)).hexdigest()
        return {"program": argv[0] if argv else "", "arguments": len(argv), "sha256": digest}

    def require(self) -> None:
        """:raises Unavailable: the log cannot be written, so nothing may start."""
        self._log.require()

    def settle(self, deadline: Deadline, *, must: bool = True) -> None:
        """Return once everything that has happened so far is durable, whoever did it.

        :param must: say so where it is not; otherwise that is logged, and the entries are written when they can be.
        :raises Unavailable: it is not. :raises DeadlineExceeded: not in the caller's time.
        """
        try:
            with deadline.within(PATIENCE) as left:
                self._log.barrier(left)
        except (Unavailable, DeadlineExceeded) as error:
            if must and deadline.passed:
                raise DeadlineExceeded("the deadline passed before it was in the audit log") from error
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

    @contextmanager
    def session(
        self, kind: str, record: SandboxRecord | ContainerRecord, deadline: Deadline, **data: Any
    ) -> Iterator[dict[str, Any]]:
        """Around something that is done inside: that it began is durable before it does, and that it ended is told.

        What is put into the given dictionary is told with its end.

        :raises Unavailable: it cannot be logged, so it is not done.
        """
        end = self.begin(kind, record, deadline, **data)
        told: dict[str, Any] = {}
        try:
            yield told
        except BaseException as error:
            told["error"] = type(error).__name__
            raise
        finally:
            end(**told)

    def begin(
        self, kind: str, record: SandboxRecord | ContainerRecord, deadline: Deadline, **data: Any
    ) -> Callable[..., None]:
        """The same for what ends in another place: there the returned function is called, with what is told of it.

        :raises Unavailable: it cannot be logged, so it is not done.
        """
        self.require()
        subject = _subject(record)
        ticket, started = self.noted(f"{kind}.began", record, **data), time.monotonic()
        try:
            with deadline.within(PATIENCE) as left:
                began = ticket.wait(left)
        except DeadlineExceeded as error:
            raise Unavailable(error.what) from error

        def end(**told: Any) -> None:
            # What the entry of its beginning says is not said twice: probes make many of them.
            seconds = round(time.monotonic() - started, 3)
            self.note(f"{subject}.{kind}.ended", f"{subject}/{record.id}", began=began, seconds=seconds, **told)

        return end

    def about(self, record: object) -> dict[str, Any]:
        """What each entry of a pod or a container says of it."""
        if isinstance(record, SandboxRecord):
            return {**_pod(record), **self._contract(record.bound)}
        if isinstance(record, ContainerRecord):
            pod = self._sandbox(record.sandbox_id)
            return {
                **({"sandbox": record.sandbox_id} if pod is None else _pod(pod)),
                "container": {"id": record.id, "name": record.spec.name, "attempt": record.spec.attempt},
                "engine": record.engine,
                "image": {"id": record.image_id, "ref": record.image_ref},
                **({"dna": record.dna, "entropy": record.entropy} if record.dna else {}),
                **({"verified_by": list(record.trusted.verified_by)} if record.trusted is not None else {}),
                **self._contract(record.bound),
            }
        return {}

    def _contract(self, bound: Bound) -> dict[str, Any]:
        if not bound.given and not bound.policies:
            return {}
        of = {"digest": self._digest(bound.contract), "policies": list(bound.policies), "signers": list(bound.signers)}
        return {"contract": of}


def _subject(record: SandboxRecord | ContainerRecord) -> Subject:
    return Subject.SANDBOX if isinstance(record, SandboxRecord) else Subject.CONTAINER


def _pod(record: SandboxRecord) -> dict[str, Any]:
    spec = record.spec
    pod = {"namespace": spec.namespace, "name": spec.name, "uid": spec.uid, "attempt": spec.attempt}
    return {"sandbox": record.id, "pod": pod, "handler": spec.runtime_handler, "engine": record.engine}


def _end_of(record: object) -> dict[str, Any]:
    if not isinstance(record, ContainerRecord):
        return {}
    return {"exit_code": record.exit_code, "reason": record.reason, "message": record.message}
