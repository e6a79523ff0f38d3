"""A pod's machine and what is in it, and the orders that change it."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from engines.microvm.keeper import orders
from engines.microvm.keeper.agent import GONE, OTHERWISE, SCARCE, Agent, clean
from engines.microvm.keeper.clients import Client
from engines.microvm.keeper.command import Connection, Guest
from engines.microvm.keeper.container import Container
from engines.microvm.keeper.disks import Disks
from engines.microvm.keeper.orders import (
    Create,
    Created,
    Delete,
    Dial,
    Done,
    Ended,
    Exec,
    Executing,
    Freeze,
    Look,
    Order,
    Prepare,
    Prepared,
    Seen,
    Setup,
    Signal,
    Start,
    Stats,
    Stop,
    Update,
)
from engines.microvm.keeper.volumes import Volumes
from engines.microvm.vmm.base import Vmm
from engines.microvm.wire import fields, messages
from engines.microvm.wire.messages import Exited, Failed
from engines.microvm.wire.protocol import REQUEST_MAX, Kind
from forgeone_shim.errors import ForgeError, ResourceExhausted
from forgeone_shim.errors import Kind as Error
from forgeone_shim.shim.channel import failure
from forgeone_shim.shim.loop import Loop
from forgeone_shim.shim.supervision import Ending

# It is off by some ten milliseconds then. A machine that hangs is noticed by it, too.
_CLOCK_SECONDS: Final = 600.0
# What is left of all processes is for containers, and of all clients for other orders.
_CONNECTIONS_MAX: Final = 256
_COMMANDS_MAX: Final = 192
# Bytes that wait for readers of commands and connections, of all of them: who reads least is let go of then.
_HELD_MAX: Final = 64 << 20
# The agent is not asked for these.
_OWN: Final = (Prepare, Look, Stop)


@dataclass(slots=True)
class Holding:
    """What was taken for a container; given back when it is gone."""

    luns: list[int] = field(default_factory=list)
    volumes: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Kept:
    """A container, what it holds, and who waits for its deletion."""

    container: Container
    holding: Holding
    oom_score_adj: int
    undone: bool = False
    waiting: list[Client] = field(default_factory=list)
    deleting: bool = False


class Pod:
    """Handles orders. ``keeper`` and ``monitor`` are processes, each with its start time.

    After :class:`Stop` there is somebody in :attr:`stopping`, and the rest is the caller's.
    """

    def __init__(
        self, loop: Loop, agent: Agent, vmm: Vmm, volumes: Volumes, *, keeper: tuple[int, int], monitor: tuple[int, int]
    ) -> None:
        self._loop, self._agent, self._vmm = loop, agent, vmm
        self._volumes, self._disks = volumes, Disks(vmm)
        self._keeper, self._monitor = keeper, monitor
        self._kept: dict[str, _Kept] = {}
        # Deleted, but somebody attached has yet to read the last of it.
        self._leaving: list[Container] = []
        self._prepared: dict[Client, Holding] = {}
        # Executed commands and connections, with what lets go of each.
        self._guests: dict[Guest, Callable[[], None]] = {}
        self.stopping: list[Client] = []
        self._clock_due: float | None = None
        self._handlers: dict[type, Callable[..., None]] = {
            Setup: self._setup,
            Prepare: self._prepare,
            Create: self._create,
            Start: self._start,
            Signal: self._signal,
            Update: self._update,
            Freeze: self._freeze,
            Stats: self._stats,
            Delete: self._delete,
            Exec: self._exec,
            Dial: self._dial,
            Look: self._look,
            Stop: self._stop,
        }

    def handle(self, client: Client, order: Order, fds: list[int]) -> None:
        """One order; every client gets an answer, now or later."""
        handler = self._handlers.get(type(order))
        step = type(order).__name__.lower()
        if handler is None:
            client.fail(step, Error.INTERNAL, "nothing is executed over this connection")
        elif not (self._agent.takes_orders or isinstance(order, _OWN)):
            client.fail(step, Error.UNAVAILABLE, "the machine has not read what it was told before")
        else:
            try:
                handler(client, order, fds)
            except (ForgeError, OSError) as error:
                kind, message = failure(error)
                client.fail(step, kind, message)

    # Time

    def wait(self) -> float | None:
        """Seconds until :meth:`mind` has something to do; ``None``: nothing."""
        waits = [one for one in (container.wait() for container in self._containers()) if one is not None]
        if self._clock_due is not None:
            waits.append(max(0.0, self._clock_due - time.monotonic()))
        return min(waits, default=None)

    def mind(self) -> None:
        """Once a turn."""
        if self._clock_due is not None and time.monotonic() >= self._clock_due:
            self._tell_time()
        for container in self._containers():
            container.mind()
        self._shed()
        if self._leaving:
            for container in [one for one in self._leaving if one.settled]:
                self._leaving.remove(container)
                container.close()

    def _shed(self) -> None:
        """Those that have ended in the guest, and have yet to be read, are among them."""
        self._guests = {guest: drop for guest, drop in self._guests.items() if not guest.done}
        while sum(guest.held for guest in self._guests) > _HELD_MAX:
            self._guests.pop(max(self._guests, key=lambda guest: guest.held))()

    def _containers(self) -> list[Container]:
        return [*(kept.container for kept in self._kept.values()), *self._leaving]

    @property
    def settled(self) -> bool:
        """Whether every end is told, and read by who is attached."""
        return all(container.settled for container in self._containers())

    def end(self, code: int, why: Ending | None, *, oom: bool) -> None:
        """The machine is no more, and so is all in it. Containers that nobody knows yet were never there.

        ``oom``: there was too little memory for it.
        """
        for process in self._agent.processes:
            if isinstance(process, Guest):
                process.close()
        for kept in self._kept.values():
            # What is wrong with one of them is not to keep the others' ends from being told.
            with contextlib.suppress(Exception):
                if kept.undone:
                    kept.container.undo()
                else:
                    kept.container.end(code, why, oom=oom)

    # The machine

    def _setup(self, client: Client, order: Setup, _: list[int]) -> None:
        self._clock_due = time.monotonic() + _CLOCK_SECONDS
        self._ask(client, Kind.SETUP, order.payload)

    def _tell_time(self) -> None:
        """A guest's clock runs by itself, a little too fast or too slow."""
        self._clock_due = time.monotonic() + _CLOCK_SECONDS
        told = messages.Clock(time=time.time_ns())
        self._agent.request(Kind.CLOCK, fields.encode(told), lambda _: None)

    def _stats(self, client: Client, order: Stats, _: list[int]) -> None:
        self._ask(client, Kind.STATS, order.payload)

    def _look(self, client: Client, _order: Look, _: list[int]) -> None:
        containers = [kept.container for kept in self._kept.values() if not kept.undone]
        seen = Seen(
            monitor_pid=self._monitor[0],
            alive=tuple(one.id for one in containers if not one.over),
            ended=tuple(one.id for one in containers if one.over),
            processes=len(self._agent.processes),
        )
        client.answer(seen)

    def _stop(self, client: Client, _order: Stop, _: list[int]) -> None:
        self.stopping.append(client)

    # A container's making

    def _prepare(self, client: Client, order: Prepare, fds: list[int]) -> None:
        if len(fds) != len(order.disks) + len(order.volumes):
            client.fail("prepare", Error.INTERNAL, "a descriptor for each disk and volume is missing")
            return
        holding = self._prepared.get(client)
        if holding is None:
            holding = self._prepared[client] = Holding()
            client.when_gone = lambda _: self._unprepare(client)
        luns = []
        for disk, fd in zip(order.disks, fds, strict=False):
            luns.append(self._disks.take(disk, fd))
            holding.luns.append(luns[-1])
        if not order.volumes:
            client.answer(Prepared(luns=tuple(luns)))
            return

        def served(wrong: str) -> None:
            if wrong:
                client.fail("share", Error.INTERNAL, wrong)
            else:
                client.answer(Prepared(luns=tuple(luns), volumes=tuple(f"/{one}" for one in numbers)))

        numbers = self._volumes.add(order.volumes, fds[len(order.disks) :], served)
        holding.volumes += numbers

    def _unprepare(self, client: Client) -> None:
        holding = self._prepared.pop(client, None)
        if holding is not None:
            self._give_back(holding)

    def _give_back(self, holding: Holding) -> None:
        for lun in holding.luns:
            self._disks.give_back(lun)
        self._volumes.remove(holding.volumes)

    def _create(self, client: Client, order: Create, _: list[int]) -> None:
        plan = order.supervision
        if plan.container_id in self._kept:
            client.fail("create", Error.INTERNAL, f"there is a container {plan.container_id} already")
            return
        payload = fields.numbered(order.payload, 0)
        container = Container(self._loop, self._agent, plan)
        payload = fields.numbered(order.payload, container.number)
        kept = _Kept(container, self._prepared.pop(client, Holding()), order.oom_score_adj, undone=True)
        self._kept[plan.container_id] = kept
        client.when_gone = functools.partial(self._create_heard, kept)
        self._agent.request(Kind.CREATE, payload, functools.partial(self._created, client, kept))

    def _created(self, client: Client, kept: _Kept, answer: bytes | Failed) -> None:
        if isinstance(answer, Failed):
            self._drop(kept)
            _refuse(client, answer)
            return
        try:
            kept.container.created(self._keeper, self._monitor)
        except OSError as error:
            client.when_gone = None
            self._remove(kept)
            client.fail("write the bundle", *failure(error))
            return
        if client.gone:
            self._remove(kept)
            return
        kept.undone = False
        self._score()
        client.answer(Created(pid=self._monitor[0], payload=answer))

    def _score(self) -> None:
        """What the host's OOM killer thinks of the machine: as of the container that is worth most."""
        scores = [kept.oom_score_adj for kept in self._kept.values() if not kept.undone]
        # Without CAP_SYS_RESOURCE it cannot be lowered again; a monitor that has just ended has none.
        with contextlib.suppress(OSError):
            Path(f"/proc/{self._monitor[0]}/oom_score_adj").write_text(str(min(scores, default=0)))

    def _create_heard(self, kept: _Kept, heard: bool) -> None:
        """It has read its answer and goes, or it goes without."""
        # Before the answer its deletion follows the agent's.
        if not (heard or kept.undone) and self._kept.get(kept.container.id) is kept:
            kept.undone = True
            self._remove(kept)

    # Its life

    def _find(self, client: Client, container_id: str) -> _Kept | None:
        kept = self._kept.get(container_id)
        if kept is None or kept.undone or kept.deleting:
            client.fail("find", Error.NOT_FOUND, container_id)
            return None
        return kept

    def _start(self, client: Client, order: Start, _: list[int]) -> None:
        kept = self._find(client, order.container_id)
        if kept is None:
            return
        if kept.container.over or kept.container.running:
            state = "has ended" if kept.container.over else "is running"
            client.fail(
                "start", Error.PRECONDITION, f"container {order.container_id} {state}, and is not to be started"
            )
            return

        def answered(answer: bytes | Failed) -> None:
            if not isinstance(answer, Failed):
                kept.container.started()
            _relay(client, answer)

        payload = fields.encode(messages.Start(container=order.container_id))
        self._agent.request(Kind.START, payload, answered)

    def _signal(self, client: Client, order: Signal, _: list[int]) -> None:
        kept = self._kept.get(order.container_id)
        if kept is None or kept.container.over:
            client.answer(Done())
            return
        asked = messages.Signal(container=order.container_id, signo=order.signal, all=order.everything)

        def answered(answer: bytes | Failed) -> None:
            # It has ended meanwhile.
            if isinstance(answer, Failed) and answer.errno in GONE:
                client.answer(Done())
            else:
                _relay(client, answer)

        self._agent.request(Kind.SIGNAL, fields.encode(asked), answered)

    def _update(self, client: Client, order: Update, _: list[int]) -> None:
        if self._find(client, order.container_id) is not None:
            self._ask(client, Kind.UPDATE, order.payload)

    def _freeze(self, client: Client, order: Freeze, _: list[int]) -> None:
        kept = self._find(client, order.container_id)
        if kept is None:
            return

        def answered(answer: bytes | Failed) -> None:
            if not isinstance(answer, Failed):
                try:
                    kept.container.frozen(order.on)
                except OSError as error:
                    client.fail("write the bundle", *failure(error))
                    return
            _relay(client, answer)

        payload = fields.encode(messages.Freeze(container=order.container_id, on=order.on))
        self._agent.request(Kind.FREEZE, payload, answered)

    def _delete(self, client: Client, order: Delete, _: list[int]) -> None:
        kept = self._kept.get(order.container_id)
        if kept is None:
            client.answer(Done())
            return
        kept.waiting.append(client)
        self._remove(kept)

    def _remove(self, kept: _Kept) -> None:
        """In the guest, and then here."""
        if kept.deleting:
            return
        kept.deleting = True

        def answered(answer: bytes | Failed) -> None:
            waiting, kept.waiting, kept.deleting = kept.waiting, [], False
            if isinstance(answer, Failed) and answer.errno not in GONE:
                for client in waiting:
                    _refuse(client, answer)
                return
            self._drop(kept)
            for client in waiting:
                client.answer(Done())

        payload = fields.encode(messages.Delete(container=kept.container.id))
        self._agent.request(Kind.DELETE, payload, answered)

    def _drop(self, kept: _Kept) -> None:
        """The guest has no such container any more; it may have been told twice."""
        container = kept.container
        if self._kept.get(container.id) is not kept:
            return
        if kept.undone:
            container.undo()
        else:
            # The guest has told how it ended, if it did at all.
            container.end(orders.KILLED_CODE, None)
        del self._kept[container.id]
        self._leaving.append(container)
        self._give_back(kept.holding)
        self._score()

    # What is executed beside it

    def _exec(self, client: Client, order: Exec, fds: list[int]) -> None:
        if self._find(client, order.container_id) is None:
            return
        if len(fds) != len(order.streams) or not {0, 1, 2}.issuperset(order.streams):
            client.fail("exec", Error.INTERNAL, "its streams are not three at most, each with a descriptor")
            return
        fields.numbered(order.payload, 0)
        if sum(not isinstance(one, Connection) for one in self._guests if not one.done) >= _COMMANDS_MAX:
            raise ResourceExhausted(f"there are {_COMMANDS_MAX} commands executed in the pod's machine")

        def over(how: Exited) -> None:
            client.when_gone = None
            client.say(Ended(code=how.code))

        guest = Guest(self._loop, self._agent, dict(zip(order.streams, fds, strict=True)), over)
        fds.clear()
        client.when_gone = lambda _: guest.unwanted()
        self._guests[guest] = functools.partial(_let_go, client)
        client.when_resized = lambda size: guest.resize(size.width, size.height)

        def answered(answer: bytes | Failed) -> None:
            if isinstance(answer, Failed):
                client.when_gone = None
                guest.refused()
                _refuse(client, answer)
                return
            client.say(Executing(payload=answer))
            guest.made()

        self._agent.request(Kind.EXEC, fields.numbered(order.payload, guest.number), answered)

    def _dial(self, client: Client, order: Dial, _: list[int]) -> None:
        payload = fields.encode(messages.Dial(process=0, port=order.port))
        if sum(isinstance(one, Connection) for one in self._guests if not one.done) >= _CONNECTIONS_MAX:
            raise ResourceExhausted(f"there are {_CONNECTIONS_MAX} connections into the pod's machine")
        line = Connection(self._loop, self._agent)
        self._guests[line] = line.unwanted
        payload = fields.encode(messages.Dial(process=line.number, port=order.port))

        def answered(answer: bytes | Failed) -> None:
            if isinstance(answer, Failed):
                line.refused()
                client.fail("dial", Error.UNAVAILABLE, clean(answer.message))
                return
            client.answer(Done(answer), (line.theirs.fileno(),))
            line.theirs.close()
            line.made()

        self._agent.request(Kind.DIAL, payload, answered)

    # The agent

    def _ask(self, client: Client, kind: Kind, payload: bytes) -> None:
        if len(payload) > REQUEST_MAX:
            client.fail("ask", Error.INVALID, f"payload: {len(payload)} bytes are more than {REQUEST_MAX}")
        else:
            self._agent.request(kind, payload, functools.partial(_relay, client))


def _let_go(client: Client) -> None:
    client.fail("exec", Error.EXHAUSTED, "the command was killed as too much of its output waited for its reader")
    client.hang_up(heard=False)


def _relay(client: Client, answer: bytes | Failed) -> None:
    if isinstance(answer, Failed):
        _refuse(client, answer)
    else:
        client.answer(Done(answer))


def _refuse(client: Client, answer: Failed) -> None:
    """What the guest refuses, as the error that it is; it may say anything."""
    message = clean(answer.message) or os.strerror(answer.errno)
    if answer.field == "container" and answer.errno in GONE:
        client.fail("find", Error.NOT_FOUND, message)
    elif answer.field:
        client.fail("create", Error.INVALID, f"{clean(answer.field)}: {message}")
    elif answer.errno == errno.ETIMEDOUT:
        client.fail("guest", Error.DEADLINE, f"{clean(answer.step)}: {message}")
    elif answer.errno in OTHERWISE:
        client.fail("guest", Error.PRECONDITION, f"{clean(answer.step)}: {message}")
    elif answer.errno in SCARCE:
        client.fail("guest", Error.EXHAUSTED, f"{clean(answer.step)}: {message}")
    else:
        client.fail(clean(answer.step) or "guest", Error.INTERNAL, message)
