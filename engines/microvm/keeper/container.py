"""A container of the pod's: its streams in the guest, and conmon's contract on the host."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from pathlib import Path
from typing import Final

from engines.microvm.keeper import orders
from engines.microvm.keeper.agent import Agent
from engines.microvm.keeper.streams import Feed
from engines.microvm.wire import fields, frames
from engines.microvm.wire.frames import Allowance
from engines.microvm.wire.messages import Exited, Resize
from engines.microvm.wire.protocol import STDERR, STDOUT, Kind
from forgeone_shim.shim import supervision
from forgeone_shim.shim.bundle import Bundle
from forgeone_shim.shim.journal import Journal
from forgeone_shim.shim.loop import Loop
from forgeone_shim.shim.streams import Attachments
from forgeone_shim.shim.supervision import Ending, Supervision

_ORDERS_MAX: Final = 4096
_SIZE_MAX: Final = 0xFFFF
_FILES: Final = (*supervision.FILES, orders.FROZEN)
# No process has it: what looks at the container finds that it does not run any more.
_NOBODY: Final = b"0 0\n"
# How an end is told that could not be: the disk was full.
_AGAIN_SECONDS: Final = 1.0
_TRIES: Final = 120
# Of output that waits. What comes then is put together, for small pieces take more than what is in them; its order is
# that of each stream alone.
_PIECES_MAX: Final = 4096


class Container:
    """One that was made, or is about to be; implements :class:`agent.Process` for its first process.

    Its bundle has what :mod:`forgeone_shim.shim.supervision` names; its ``START`` is a file that is there until it is
    started.
    """

    def __init__(self, loop: Loop, agent: Agent, plan: Supervision) -> None:
        """Everything on the host, or OSError and nothing."""
        self._loop, self._agent, self.plan = loop, agent, plan
        self.running = self.over = False
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._later = {STDOUT: bytearray(), STDERR: bytearray()}
        self._allowances = {STDOUT: Allowance(), STDERR: Allowance()}
        self._orders = b""
        self._feed: Feed | None = None
        self._untold: bytes | None = None
        self._tries, self._again = 0, 0.0
        with contextlib.ExitStack() as undo:
            self._bundle = Bundle(plan.bundle)
            undo.callback(self._bundle.close)
            undo.callback(self._bundle.remove, *_FILES)
            self._journal = Journal(plan.log_path, plan.log_size_max, plan.log_rate)
            undo.callback(self._journal.close)
            self._control = self._bundle.fifo(supervision.CONTROL, os.O_NONBLOCK)
            undo.callback(os.close, self._control)
            self._attached = Attachments(loop, self._bundle.listen(supervision.ATTACH), self.flow)
            undo.callback(self._attached.close)
            self.number = agent.allot(self)
            undo.callback(agent.forget, self.number)
            if plan.stdin:
                read, write = os.pipe2(os.O_CLOEXEC)
                self._attached.take_input(write, terminal=False, once=plan.stdin_once)
                self._feed = Feed(loop, agent, self.number, read)
            loop.watch(self._control, lambda _: self._order())
            undo.pop_all()

    @property
    def id(self) -> str:
        """The container's."""
        return self.plan.container_id

    # Its life

    def created(self, keeper: tuple[int, int], monitor: tuple[int, int]) -> None:
        """It is held in the guest; both are a process and its start time. Raises OSError."""
        self._bundle.put(supervision.START, b"")
        self._bundle.put(supervision.SUPERVISOR_PIDFILE, b"%d %d\n" % keeper)
        self._bundle.put(supervision.PIDFILE, b"%d %d\n" % monitor)
        if self._feed is not None:
            self._feed.begin()

    def started(self) -> None:
        """It runs."""
        self.running = True
        with contextlib.suppress(OSError):
            self._bundle.remove(supervision.START)

    def frozen(self, on: bool) -> None:
        """Its processes stand still, or not. Raises OSError."""
        self._bundle.put(orders.FROZEN, b"1\n" if on else b"0\n")

    def exited(self, how: Exited) -> None:
        """As the guest says; all it wrote has come."""
        self.end(how.code, None, oom=how.oom)

    def end(self, code: int, why: Ending | None, *, oom: bool = False) -> None:
        """Everything that was written is in the log before the exit file says that nothing more comes."""
        if self.over:
            return
        self.over = True
        self._agent.forget(self.number)
        if self._feed is not None:
            self._feed.close()
        self._journal.lift()
        while self._next():
            stream, data = self._waiting.popleft()
            self._journal.write(stream, data)
            self._attached.send(stream, data)
        self._journal.end()
        self._take_no_orders()
        # Where there is no room to say why it ended, how it ended may still be told.
        with contextlib.suppress(OSError):
            if why is not None:
                self._bundle.put(supervision.VERDICT, supervision.encode(why))
        with contextlib.suppress(OSError):
            if oom:
                self._bundle.put(supervision.OOM_MARKER, b"")
        self._untold = b"%d" % code
        self._tell()
        self._attached.close()

    def _tell(self) -> None:
        if self._untold is None or time.monotonic() < self._again:
            return
        self._tries += 1
        try:
            self._bundle.put(supervision.PIDFILE, _NOBODY)
            self._bundle.put_outside(f"{self.plan.exits}/{self.id}", self._untold)
        except FileNotFoundError:
            # Somebody has removed the bundle: nobody waits for it.
            self._untold = None
        except OSError:
            self._again = time.monotonic() + _AGAIN_SECONDS
            if self._tries >= _TRIES:
                self._untold = None
        else:
            self._untold = None

    def undo(self) -> None:
        """It was never there; nothing is told."""
        self._untold = None
        if not self.over:
            self.over = True
            self._agent.forget(self.number)
            if self._feed is not None:
                self._feed.close()
            self._take_no_orders()
            self._attached.close()
        with contextlib.suppress(OSError):
            self._bundle.remove(*_FILES)
            Path(self.plan.exits, self.id).unlink()

    def close(self) -> None:
        """Let go of everything; it is :attr:`settled`."""
        self._journal.close()
        self._bundle.close()

    @property
    def settled(self) -> bool:
        """Whether its end is told, and whoever is attached has all there was."""
        return self.over and self._untold is None and not self._attached

    # Its streams

    def data(self, which: int, data: memoryview) -> None:
        """Into the log, and to who is attached, as soon as they take it."""
        self._allowances[which].received(len(data))
        if len(self._waiting) < _PIECES_MAX and not any(self._later.values()):
            self._waiting.append((which, bytes(data)))
        else:
            self._later[which] += data
        self.flow()

    def ended(self, which: int) -> None:
        """What comes last is told by its exit."""

    def granted(self, size: int) -> None:
        """Of its input.

        :raises ProtocolError: more than was sent, or it has none.
        """
        if self._feed is None:
            raise fields.ProtocolError("credit", "of an input that there is not")
        self._feed.granted(size)

    def flow(self) -> None:
        """Output waits while the log's rate or somebody attached does not take it."""
        while self._next() and not self.over and not self._attached.full:
            size = self._journal.may_read()
            if not size:
                break
            stream, data = self._waiting.popleft()
            if len(data) > size:
                self._waiting.appendleft((stream, data[size:]))
                data = data[:size]
            self._journal.write(stream, data)
            self._attached.send(stream, data)
            self._agent.grant(self.number, stream, self._allowances[stream].consumed(len(data)))

    def _next(self) -> bool:
        """Whether there is a next piece."""
        if not self._waiting:
            self._waiting += [(stream, bytes(data)) for stream, data in self._later.items() if data]
            for data in self._later.values():
                data.clear()
        return bool(self._waiting)

    def wait(self) -> float | None:
        """Seconds until :meth:`mind` has something to do; ``None``: nothing."""
        waits = [self._attached.wait()]
        if self._waiting and not self.over:
            waits.append(self._journal.wait())
        if self._untold is not None:
            waits.append(max(0.0, self._again - time.monotonic()))
        return min((one for one in waits if one is not None), default=None)

    def mind(self) -> None:
        """Once a turn."""
        self._attached.drop_stalled()
        self._tell()
        self.flow()

    def _take_no_orders(self) -> None:
        """Whoever has one finds that nobody is there."""
        self._loop.leave(self._control)
        os.close(self._control)

    def _order(self) -> None:
        """Lines of the control fifo (conmon's): a number that says what for, and two arguments."""
        *lines, rest = (self._orders + os.read(self._control, _ORDERS_MAX)).split(b"\n")
        self._orders = rest[:_ORDERS_MAX]
        for line in lines:
            try:
                what, first, second = map(int, line.split())
            except ValueError:
                continue
            if what == supervision.REOPEN:
                self._journal.reopen()
            elif what == supervision.RESIZE and self.plan.tty:
                resize(self._agent, self.number, second, first)


def resize(agent: Agent, number: int, width: int, height: int) -> None:
    """Tell a process's terminal; a size that is none is passed over."""
    if 0 <= width <= _SIZE_MAX and 0 <= height <= _SIZE_MAX:
        agent.send(frames.message(Kind.RESIZE, number, Resize(width=width, height=height)))
