"""The channel to the agent in the guest, which may say anything: what the protocol does not have ends the machine."""

from __future__ import annotations

import errno
import itertools
import math
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from engines.microvm.wire import fields, frames
from engines.microvm.wire.fields import ProtocolError
from engines.microvm.wire.frames import Frame, Receiver, Side
from engines.microvm.wire.messages import Exited, Failed, Note
from engines.microvm.wire.protocol import NUMBER_MAX, Kind
from forgeone_shim.errors import ResourceExhausted
from forgeone_shim.shim.loop import HUNG_UP, READ, WRITE, Loop

# Of what the guest has not taken: where no more of streams is given to it, where orders are refused, and where a guest
# that makes the host grant it credit without ever reading that is found out.
_ROOM: Final = 512 * 1024
_ORDERS_ROOM: Final = 4 << 20
_BACKLOG_MAX: Final = 16 << 20
# Seconds: a machine whose agent takes so long to answer is as good as dead; a pod's limits may make it slow. Who wants
# an end waits for it, a kubelet two minutes and the grace period. Standing still is up to processes.
_SILENCE: Final = 180.0
_SILENCES: Final = MappingProxyType({Kind.SIGNAL: 60.0, Kind.DELETE: 60.0, Kind.FREEZE: math.inf})
# More than sockets hold.
_LAST_READS: Final = 64
# Processes that have ended just now.
_PAST: Final = 64
_NOTES: Final = 256
_NOTES_A_SECOND: Final = 1.0
_REQUEST_IDS: Final = 1 << 32
# Each of them may have two windows of bytes wait for who reads slowly.
_PROCESSES_MAX: Final = 512


class ChannelEnded(Exception):
    """Nothing comes from the machine any more."""


class AgentSilent(Exception):
    """It has not answered for too long."""


class Process(Protocol):
    """Who has one of the guest's processes, or a connection into it; may raise ProtocolError of what it is told."""

    def data(self, which: int, data: memoryview) -> None:
        """It wrote to STDOUT or STDERR; the bytes are good until this returns."""

    def ended(self, which: int) -> None:
        """Nothing more comes of that stream."""

    def granted(self, size: int) -> None:
        """So many bytes more may be sent to it."""

    def exited(self, how: Exited) -> None:
        """It is no more, and its number is free."""


# What is not there or not running, what is in another state, and what there is too little of, in the words of errno(3).
GONE: Final = frozenset({errno.ENOENT, errno.ESRCH})
OTHERWISE: Final = frozenset({errno.ESRCH, errno.EBUSY, errno.EALREADY})
SCARCE: Final = frozenset({errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EDQUOT})

Answered = Callable[[bytes | Failed], None]


@dataclass(slots=True)
class _Pending:
    answered: Answered
    due: float


class Agent:
    """Requests and their answers, processes and their streams, over a connected socket that is this one's."""

    def __init__(self, loop: Loop, channel: socket.socket, noted: Callable[[str], None]) -> None:
        self._loop, self._channel, self._noted = loop, channel, noted
        self._receiver = Receiver(Side.AGENT)
        self._outgoing: deque[memoryview] = deque()
        self._backlog = 0
        self._waiting: dict[Callable[[], None], None] = {}
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._numbers = itertools.cycle(range(1, NUMBER_MAX))
        self._processes: dict[int, Process] = {}
        self._past: deque[int] = deque(maxlen=_PAST)
        self._closed = self._broken = False
        self._notes, self._noted_at = float(_NOTES), time.monotonic()
        channel.setblocking(False)
        loop.watch(channel.fileno(), self._ready)

    # What is said to it

    @property
    def roomy(self) -> bool:
        """Whether streams may send; otherwise :meth:`when_roomy`."""
        return self._backlog < _ROOM

    @property
    def takes_orders(self) -> bool:
        """Whether it has read enough of what it was told before."""
        return self._backlog < _ORDERS_ROOM

    def when_roomy(self, call: Callable[[], None]) -> None:
        """Have ``call`` called once, when :attr:`roomy` may be true again."""
        self._waiting[call] = None

    def request(self, kind: Kind, payload: bytes, answered: Answered) -> None:
        """Ask; ``answered`` gets the fields of the answer, or why it failed."""
        ident = next(self._ids) % _REQUEST_IDS
        self._pending[ident] = _Pending(answered, time.monotonic() + _SILENCES.get(kind, _SILENCE))
        self.send(frames.frame(kind, ident, payload))

    def send(self, frame: bytes) -> None:
        """A whole frame.

        :raises ProtocolError: the guest takes nothing although it has much said to it.
        """
        if self._closed:
            return
        sent = 0
        if not self._outgoing:
            sent = self._put(frame)
        if sent < len(frame):
            self._outgoing.append(memoryview(frame)[sent:])
            self._backlog += len(frame) - sent
            if self._backlog > _BACKLOG_MAX:
                raise ProtocolError("", f"the guest has not read {self._backlog} bytes that were sent to it")
            self._loop.change(self._channel.fileno(), READ | WRITE)

    def _put(self, data: bytes | memoryview) -> int:
        try:
            return self._channel.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ChannelEnded(error.strerror or str(error)) from error

    # Processes

    def allot(self, process: Process) -> int:
        """A number for a process, in use until :meth:`forget` or its end.

        :raises ResourceExhausted: there are too many.
        """
        if len(self._processes) >= _PROCESSES_MAX:
            raise ResourceExhausted(f"the pod has {_PROCESSES_MAX} containers, executed commands and connections")
        number = next(self._numbers)
        while number in self._processes:
            number = next(self._numbers)
        self._processes[number] = process
        return number

    def forget(self, number: int) -> None:
        """The agent never made it, or has deleted it."""
        self._processes.pop(number, None)

    def grant(self, number: int, which: int, size: int) -> None:
        """Let the process write so many bytes more; 0: nothing is said."""
        if size and number in self._processes:
            self.send(frames.credit(frames.stream(number, which), size))

    @property
    def processes(self) -> tuple[Process, ...]:
        """All that there are."""
        return tuple(self._processes.values())

    # What it says

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & (READ | HUNG_UP):
            self._read()

    def _flush(self) -> None:
        while self._outgoing:
            sent = self._put(self._outgoing[0])
            self._backlog -= sent
            if sent < len(self._outgoing[0]):
                self._outgoing[0] = self._outgoing[0][sent:]
                break
            self._outgoing.popleft()
        else:
            self._loop.change(self._channel.fileno(), READ)
        if self.roomy:
            waiting, self._waiting = self._waiting, {}
            for call in waiting:
                call()

    def _read(self) -> None:
        try:
            size = self._channel.recv_into(self._receiver.space())
        except BlockingIOError:
            return
        except OSError as error:
            raise ChannelEnded(error.strerror or str(error)) from error
        if not size:
            raise ChannelEnded("its channel was closed")
        self._broken = True
        for frame in self._receiver.received(size):
            self._heard(frame)
        self._broken = False

    def _heard(self, frame: Frame) -> None:
        kind = frame.kind
        if kind in (Kind.REPLY, Kind.FAILED):
            self._answered(frame)
        elif kind is Kind.NOTE:
            self._note(frame)
        elif kind is Kind.EXITED:
            how = fields.decode(Exited, frame.payload)
            process = self._process(frame.id)
            del self._processes[frame.id]
            self._past.append(frame.id)
            process.exited(how)
        else:
            number, which = divmod(frame.id, 4)
            if kind is Kind.CREDIT and number in self._past and number not in self._processes:
                # Its input was still full when it ended.
                return
            process = self._process(number)
            if kind is Kind.DATA:
                process.data(which, frame.payload)
            elif kind is Kind.EOF:
                process.ended(which)
            else:
                process.granted(frames.credited(frame))

    def _process(self, number: int) -> Process:
        process = self._processes.get(number)
        if process is None:
            raise ProtocolError("process", f"there is none of number {number}")
        return process

    def _answered(self, frame: Frame) -> None:
        pending = self._pending.pop(frame.id, None)
        if pending is None:
            raise ProtocolError("", f"an answer to {frame.id}, which was not asked")
        if frame.kind is Kind.REPLY:
            pending.answered(bytes(frame.payload))
        else:
            pending.answered(fields.decode(Failed, frame.payload))

    def _note(self, frame: Frame) -> None:
        now = time.monotonic()
        self._notes = min(float(_NOTES), self._notes + (now - self._noted_at) * _NOTES_A_SECOND) - 1
        self._noted_at = now
        if self._notes < 0:
            raise ProtocolError("note", "there are far too many")
        self._noted(fields.decode(Note, frame.payload).message)

    def drain(self) -> None:
        """What a machine that has ended said last. Raises as the loop does; ChannelEnded at the end of it."""
        for _ in range(_LAST_READS):
            # Where the next frame begins is not known after one that is none.
            if self._broken:
                return
            self._read()

    # Time

    def wait(self) -> float | None:
        """Seconds until :meth:`check` has something to say; ``None``: no answer is missing."""
        due = self._due()
        return None if due == math.inf else max(0.0, due - time.monotonic())

    def check(self) -> None:
        """:raises AgentSilent: an answer is missing for too long."""
        if time.monotonic() >= self._due():
            raise AgentSilent("its agent does not answer any more")

    def _due(self) -> float:
        return min((one.due for one in self._pending.values()), default=math.inf)

    def close(self) -> None:
        """Say and hear no more; nobody is answered."""
        self._closed = True
        self._loop.leave(self._channel.fileno())
        self._channel.close()
        self._pending.clear()
        self._outgoing.clear()
        self._waiting.clear()


def clean(text: str) -> str:
    """What a guest says, as one line that can be shown."""
    return "".join(one if one.isprintable() else "?" for one in text)
