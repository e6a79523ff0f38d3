"""What comes and goes in the guest while its client is there: executed commands, and connections into the machine."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Final

from engines.microvm.keeper.agent import Agent
from engines.microvm.keeper.container import resize
from engines.microvm.keeper.streams import Feed, Sink
from engines.microvm.wire import fields
from engines.microvm.wire.messages import Exited, Failed, Signal
from engines.microvm.wire.protocol import STDERR, STDIN, STDOUT, Kind
from forgeone_shim.shim.loop import HUNG_UP, Loop

_NOWHERE: Final = -1


class Guest:
    """A process of the guest's with descriptors of the host's; implements :class:`agent.Process`.

    ``streams`` are descriptors by the stream's number, this one's from now on. ``over`` is called once: with how it
    ended, when all that it wrote has been passed on, or nobody takes it any more.
    """

    def __init__(self, loop: Loop, agent: Agent, streams: Mapping[int, int], over: Callable[[Exited], None]) -> None:
        self._agent, self._over = agent, over
        self.number = agent.allot(self)
        self._how: Exited | None = None
        self._told = self._made = self._unwanted = False
        self._sinks = {
            which: Sink(loop, agent, self.number, which, fd=streams.get(which, _NOWHERE), done=self._mind)
            for which in (STDOUT, STDERR)
        }
        self._feed = Feed(loop, agent, self.number, streams[STDIN]) if STDIN in streams else None

    def made(self) -> None:
        """The agent has it."""
        self._made = True
        if self._unwanted:
            self._kill()
        elif self._feed is not None:
            self._feed.begin()

    def refused(self) -> None:
        """The agent has not made it."""
        self._agent.forget(self.number)
        self.close()

    def unwanted(self) -> None:
        """Nobody waits for it any more; it is killed, and what it writes until then is dropped."""
        self._unwanted = True
        self.close()
        if self._made and self._how is None:
            self._kill()

    def close(self) -> None:
        """Let go of the descriptors."""
        self._told = True
        for sink in self._sinks.values():
            sink.close()
        if self._feed is not None:
            self._feed.close()

    @property
    def done(self) -> bool:
        """Whether nothing of it is to be passed on any more."""
        return self._told

    @property
    def held(self) -> int:
        """How many bytes of what it wrote wait for who reads them."""
        return sum(sink.held for sink in self._sinks.values())

    def resize(self, width: int, height: int) -> None:
        """Of its terminal."""
        if self._how is None:
            resize(self._agent, self.number, width, height)

    def _kill(self) -> None:
        asked = Signal(process=self.number, signo=signal.SIGKILL)
        self._agent.request(Kind.SIGNAL, fields.encode(asked), _nothing)

    def data(self, which: int, data: memoryview) -> None:
        """To its descriptor."""
        self._sinks[which].write(data)

    def ended(self, which: int) -> None:
        """Its reader sees the end as soon as it has the rest."""
        self._sinks[which].end()

    def granted(self, size: int) -> None:
        """Of its input.

        :raises ProtocolError: more than was sent, or it has none.
        """
        if self._feed is None:
            raise fields.ProtocolError("credit", "of an input that there is not")
        self._feed.granted(size)

    def exited(self, how: Exited) -> None:
        """It has ended; what it wrote may still wait for its reader."""
        self._how = how
        if self._feed is not None:
            self._feed.close()
        for sink in self._sinks.values():
            sink.end()
        self._mind()

    def _mind(self) -> None:
        if self._how is not None and not self._told and not any(sink.open for sink in self._sinks.values()):
            self._told = True
            self._over(self._how)


class Connection(Guest):
    """A connection into the machine: ``theirs`` is the end for whoever asked for it."""

    def __init__(self, loop: Loop, agent: Agent) -> None:
        with contextlib.ExitStack() as undo:
            ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(ours.close)
            undo.callback(self.theirs.close)
            copies = [undo.enter_context(ours.dup()) for _ in range(2)]
            super().__init__(loop, agent, {}, _passed)
            undo.pop_all()
        self._loop, self._line = loop, ours
        self._feed = Feed(loop, agent, self.number, copies[0].detach())
        self._sinks[STDOUT] = Sink(loop, agent, self.number, STDOUT, fd=copies[1].detach(), done=self._written)
        # Its other end is closed, and not only in one direction: whatever the machine still says is for nobody.
        loop.watch(ours.fileno(), lambda _: self.unwanted(), HUNG_UP)

    def _written(self) -> None:
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_WR)
        self._mind()

    def close(self) -> None:
        """Both ends, if nobody has taken the other."""
        super().close()
        self._loop.leave(self._line.fileno())
        self._line.close()
        self.theirs.close()

    def exited(self, how: Exited) -> None:
        """The machine has closed its side."""
        super().exited(how)
        if not self._sinks[STDOUT].open:
            self.close()

    def _mind(self) -> None:
        super()._mind()
        if self._how is not None and not self._sinks[STDOUT].open:
            self.close()


def _nothing(_: bytes | Failed) -> None:
    """What the process did meanwhile is told by its exit."""


def _passed(_: Exited) -> None:
    """Its two ends tell."""
