"""Between descriptors and the streams of the guest's processes, both ways with credit."""

from __future__ import annotations

import os
from collections.abc import Callable

from engines.microvm.keeper.agent import Agent
from engines.microvm.wire import frames
from engines.microvm.wire.frames import Allowance, Window
from engines.microvm.wire.protocol import DATA_MAX, STDIN, Kind
from forgeone_shim.shim.loop import READ, WRITE, Loop


class Feed:
    """What is read from a descriptor, which is this one's from now on, goes to a process's standard input."""

    def __init__(self, loop: Loop, agent: Agent, number: int, fd: int) -> None:
        self._loop, self._agent, self._stream, self._fd = loop, agent, frames.stream(number, STDIN), fd
        self._window = Window()
        os.set_blocking(fd, False)
        loop.watch(fd, lambda _: self._ready(), events=0)

    def begin(self) -> None:
        """The process is there."""
        self._mind()

    def granted(self, size: int) -> None:
        """:raises ProtocolError: more than was sent."""
        self._window.granted(size)
        self._mind()

    def close(self) -> None:
        """Read no more; again is no error."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._loop.leave(fd)
            os.close(fd)

    def _mind(self) -> None:
        if self._fd < 0:
            return
        if not self._window.left:
            self._loop.change(self._fd, 0)
        elif self._agent.roomy:
            self._loop.change(self._fd, READ)
        else:
            self._loop.change(self._fd, 0)
            self._agent.when_roomy(self._mind)

    def _ready(self) -> None:
        try:
            data = os.read(self._fd, min(self._window.left, DATA_MAX))
        except BlockingIOError:
            return
        except OSError:
            # A connection that was reset ends like one that was closed.
            data = b""
        if not data:
            self.close()
            self._agent.send(frames.frame(Kind.EOF, self._stream))
            return
        self._window.sent(len(data))
        self._agent.send(frames.frame(Kind.DATA, self._stream, data))
        self._mind()


class Sink:
    """What a process writes to one of its streams goes to a descriptor, which is this one's from now on; -1: nowhere.

    What the descriptor does not take waits here: no more than a window. ``done`` is called once all is out after
    :meth:`end`, or when nobody reads any more; what comes after that is dropped.
    """

    def __init__(self, loop: Loop, agent: Agent, number: int, which: int, *, fd: int, done: Callable[[], None]) -> None:
        self._loop, self._agent, self._number, self._which, self._fd, self._done = loop, agent, number, which, fd, done
        self._allowance = Allowance()
        # Not piece by piece: many small ones would take more than what is in them.
        self._waiting = bytearray()
        self._ending = False
        if fd >= 0:
            os.set_blocking(fd, False)
            loop.watch(fd, lambda _: self._flush(), events=0)

    @property
    def open(self) -> bool:
        """Whether there is still somebody to pass on to."""
        return self._fd >= 0

    @property
    def held(self) -> int:
        """How many bytes wait."""
        return len(self._waiting)

    def write(self, data: memoryview) -> None:
        """:raises ProtocolError: the process was not allowed so much."""
        self._allowance.received(len(data))
        if self._fd < 0:
            self._consumed(len(data))
            return
        sent = 0 if self._waiting else self._put(data)
        if sent < len(data):
            if self._fd < 0:
                self._consumed(len(data))
                return
            self._waiting += data[sent:]
            self._loop.change(self._fd, WRITE)
        if sent:
            self._consumed(sent)

    def end(self) -> None:
        """Nothing more comes."""
        self._ending = True
        if not self._waiting:
            self.close()

    def close(self) -> None:
        """Let go of the descriptor and of what waits for it; again is no error."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._loop.leave(fd)
            os.close(fd)
            dropped, self._waiting = len(self._waiting), bytearray()
            if dropped:
                self._consumed(dropped)
            self._done()

    def _consumed(self, size: int) -> None:
        self._agent.grant(self._number, self._which, self._allowance.consumed(size))

    def _put(self, data: memoryview | bytearray) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            self.close()
            return 0

    def _flush(self) -> None:
        sent = self._put(self._waiting)
        if self._fd < 0:
            return
        del self._waiting[:sent]
        self._consumed(sent)
        if self._waiting:
            return
        self._loop.change(self._fd, 0)
        if self._ending:
            self.close()
