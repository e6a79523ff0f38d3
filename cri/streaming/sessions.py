"""The loops that move bytes between a client and a process, or a client and a pod's ports.

One thread each, which polls: nothing is read that could not be passed on, and whoever ends first (the process, the
client, forgeoned, the time) ends the session.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from cri.streaming import command, forward, spdy, websocket
from cri.streaming.command import Channel
from cri.streaming.status import Outcome
from cri.streaming.wire import Wire
from engines.base import Console, Output
from forgeone_shim.errors import Denied, ForgeError

CREATION_SECONDS: Final = 30.0
"""How long a client may take to open the streams of a command."""
FLUSH_SECONDS: Final = 10.0
"""How long a client may take to read what is left at the end."""
LINGER_SECONDS: Final = 1.0
"""How long a port that has ended its side still takes what the client sends: older clients wait for our end."""
INPUT_HIGH_WATER: Final = 1024 * 1024
_CHUNK: Final = 64 * 1024
_ENDED: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL
_CHANNELS: Final = {Output.STDOUT: Channel.STDOUT, Output.STDERR: Channel.STDERR}
_LOOPBACK: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class Stopped(Exception):
    """The session is over before its time: the reason is its text."""


class Loop:
    """What both kinds of session have in common: the wire, the stop signal, the idle time."""

    def __init__(self, wire: Wire, stop: int, idle: float) -> None:
        """``stop`` is a descriptor that becomes readable when forgeoned stops; ``idle`` is in seconds."""
        self.wire, self._stop, self._idle = wire, stop, idle
        self.busy()

    def busy(self) -> None:
        """Something of use was moved."""
        self._until = time.monotonic() + self._idle

    def poll(self, interests: dict[int, int], *, reading: bool, at_most: float | None = None) -> dict[int, int]:
        """Wait until something can be done.

        :raises Stopped: forgeoned stops, the client has gone, or nothing was moved for too long.
        """
        poll = select.poll()
        for fd, events in interests.items():
            poll.register(fd, events)
        poll.register(self._stop, select.POLLIN)
        poll.register(self.wire.fileno(), self.wire.interest(reading=reading))
        left = self._until - time.monotonic()
        if left <= 0:
            raise Stopped(f"nothing was sent for {self._idle:g} s")
        ready = dict(poll.poll(int(min(left, at_most if at_most is not None else left) * 1000) + 1))
        if self._stop in ready:
            raise Stopped("forgeoned stops")
        seen = ready.get(self.wire.fileno(), 0)
        if seen & _ENDED or (seen & select.POLLRDHUP and not reading):
            raise Stopped("the client has gone")
        if seen & select.POLLOUT:
            self.wire.flush()
        return ready

    def receive(self, ready: dict[int, int], *, reading: bool) -> bytes:
        """What the client sent, if it did; Stopped when it has gone."""
        if not reading or not ready.get(self.wire.fileno(), 0) & (select.POLLIN | select.POLLRDHUP | select.POLLOUT):
            return b""
        try:
            return self.wire.receive() or b""
        except OSError:
            raise Stopped("the client has gone") from None

    def drain(self) -> None:
        """Let the client read what is left, then hang up."""
        until = time.monotonic() + FLUSH_SECONDS
        with contextlib.suppress(OSError, Stopped):
            self.wire.flush()
            while self.wire.waiting and (left := until - time.monotonic()) > 0:
                self.poll({}, reading=False, at_most=left)


def command_session(loop: Loop, link: command.Link, early: bytes, start: Callable[[], Console]) -> str:
    """Run a command (or an attachment) to its end; returns what is to be logged about the end.

    ``start`` is called when the client has opened its streams; ``early`` is what it sent right after its request.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(loop.wire.close)
        session = _Command(loop, link)
        try:
            outcome = session.run(early, start, stack)
        except (spdy.ProtocolError, websocket.ProtocolError) as error:
            return f"protocol error: {error}"
        except Stopped as stopped:
            with contextlib.suppress(OSError):
                link.finish(Outcome(error=f"the session ended: {stopped}"))
                loop.wire.send(link.take())
            return str(stopped)
        except OSError as error:
            return f"the client has gone: {error.strerror}"
        link.finish(outcome)
        loop.wire.send(link.take())
        loop.drain()
        return outcome.error or f"exit code {outcome.code}"


class _Command:
    """The state of a remote command."""

    def __init__(self, loop: Loop, link: command.Link) -> None:
        self._loop, self._link = loop, link
        self._input = bytearray()
        self._input_over = False
        self._size: command.Resized | None = None
        self._console: Console | None = None

    def run(self, early: bytes, start: Callable[[], Console], stack: contextlib.ExitStack) -> Outcome:
        self._hear(self._link.receive(early))
        until = time.monotonic() + CREATION_SECONDS
        while not self._link.ready:
            if time.monotonic() >= until:
                raise Stopped("the client did not open its streams in time")
            self._listen(self._loop.poll({}, reading=True, at_most=until - time.monotonic()), reading=True)
        try:
            console = start()
        except ForgeError as error:
            return Outcome(error=str(error))
        stack.callback(console.close)
        self._console = console
        if self._size is not None:
            console.resize(self._size.width, self._size.height)
        return self._converse(console)

    def _converse(self, console: Console) -> Outcome:
        exited = False
        while console.readers or (console.exited >= 0 and not exited):
            self._feed(console)
            reading = len(self._input) < INPUT_HIGH_WATER
            interests: dict[int, int] = {}
            if not self._loop.wire.full:
                interests = dict.fromkeys(console.readers, select.POLLIN)
            if self._input and console.writer >= 0:
                interests[console.writer] = interests.get(console.writer, 0) | select.POLLOUT
            if console.exited >= 0 and not exited:
                interests[console.exited] = select.POLLIN
            # What a process leaves in its pipes is read without waiting for ends that its children may hold open.
            ready = self._loop.poll(interests, reading=reading, at_most=0 if exited and interests else None)
            self._listen(ready, reading=reading)
            moved = False
            for fd in console.readers:
                if fd in ready and not self._loop.wire.full:
                    moved = self._forward(console, fd) or moved
            if exited and interests and not moved and not self._loop.wire.full:
                break
            if console.exited in ready:
                exited = True
        try:
            return Outcome(code=console.finish())
        except ForgeError as error:
            return Outcome(error=str(error))

    def _forward(self, console: Console, fd: int) -> bool:
        found = console.read(fd)
        if found is None:
            return False
        output, data = found
        if data:
            self._loop.busy()
            self._link.send(_CHANNELS[output], data)
            self._loop.wire.send(self._link.take())
        return True

    def _listen(self, ready: dict[int, int], *, reading: bool) -> None:
        data = self._loop.receive(ready, reading=reading)
        if data:
            self._hear(self._link.receive(data))

    def _hear(self, events: list[command.Event]) -> None:
        for event in events:
            match event:
                case command.Input(data):
                    self._loop.busy()
                    self._input += data
                case command.InputEnded():
                    self._input_over = True
                case command.Resized(width, height):
                    self._size = event
                    if self._console is not None:
                        self._console.resize(width, height)
                case command.Left():
                    raise Stopped("the client has left")
        self._loop.wire.send(self._link.take())

    def _feed(self, console: Console) -> None:
        while self._input:
            taken = console.write(bytes(self._input[:_CHUNK]))
            if not taken:
                return
            del self._input[:taken]
        if self._input_over:
            console.end_input()


class Pod(Protocol):
    """The ports of a pod. Each is a ForgeError where it cannot be had."""

    def connection(self, port: int) -> socket.socket | None:
        """A stream that leads to a port; ``None`` where a :meth:`socket` has to be connected to it."""

    def socket(self, family: socket.AddressFamily, port: int) -> socket.socket:
        """A TCP socket that belongs to the pod's network, for a connection to a port of localhost."""


def forward_session(loop: Loop, link: forward.Link, early: bytes, pod: Pod, ports: frozenset[int]) -> str:
    """Forward connections until the client leaves; returns what is to be logged about the end.

    ``ports`` are those the client may reach, empty for all.
    """
    session = _Forward(loop, link, pod, ports)
    try:
        session.run(early)
        reason = "every connection has ended"
    except (spdy.ProtocolError, websocket.ProtocolError) as error:
        reason = f"protocol error: {error}"
    except Stopped as stopped:
        reason = str(stopped)
    except OSError as error:
        reason = f"the client has gone: {error.strerror}"
    finally:
        session.close()
    with contextlib.suppress(OSError), loop.wire:
        link.close()
        loop.wire.send(link.take())
        loop.drain()
    return reason


@dataclass(slots=True)
class _Connection:
    """One connection to a port; ``family`` is the address of localhost it is tried at."""

    key: int
    port: int
    sock: socket.socket
    family: int = 0
    connected: bool = False
    pending: bytearray = field(default_factory=bytearray)
    input_over: bool = False
    shut: bool = False
    over_at: float | None = None


class _Forward:
    """The state of a port-forward."""

    def __init__(self, loop: Loop, link: forward.Link, pod: Pod, ports: frozenset[int]) -> None:
        self._loop, self._link, self._pod, self._ports = loop, link, pod, ports
        self._connections: dict[int, _Connection] = {}

    def run(self, early: bytes) -> None:
        """Until the client leaves, or (where it cannot ask for more) every connection has ended."""
        self._hear(self._link.receive(early))
        while self._connections or not getattr(self._link, "over", False):
            pending = sum(len(one.pending) for one in self._connections.values())
            reading = pending < INPUT_HIGH_WATER
            interests = {one.sock.fileno(): self._interest(one) for one in self._connections.values()}
            ready = self._loop.poll({fd: e for fd, e in interests.items() if e}, reading=reading, at_most=self._lapse())
            data = self._loop.receive(ready, reading=reading)
            if data:
                self._hear(self._link.receive(data))
            for one in list(self._connections.values()):
                if one.sock.fileno() in ready:
                    self._serve(one, ready[one.sock.fileno()])
            self._loop.wire.send(self._link.take())

    def _lapse(self) -> float | None:
        """End the connections that have lingered; seconds until the next one will have."""
        now = time.monotonic()
        for one in list(self._connections.values()):
            if one.over_at is not None and one.over_at <= now:
                self._end(one.key)
        self._loop.wire.send(self._link.take())
        return min((one.over_at - now for one in self._connections.values() if one.over_at is not None), default=None)

    def close(self) -> None:
        """Hang up on every port."""
        for one in self._connections.values():
            one.sock.close()
        self._connections.clear()

    def _interest(self, one: _Connection) -> int:
        if not one.connected:
            return select.POLLOUT
        wanted = 0
        if one.over_at is None and not self._loop.wire.full:
            wanted |= select.POLLIN
        if one.pending:
            wanted |= select.POLLOUT
        return wanted

    def _hear(self, events: list[forward.Event]) -> None:
        for event in events:
            match event:
                case forward.Wanted(key, port):
                    self._open(key, port)
                case forward.Input(key, data):
                    self._loop.busy()
                    one = self._connections.get(key)
                    if one is not None:
                        one.pending += data
                        self._write(one)
                case forward.InputEnded(key):
                    one = self._connections.get(key)
                    if one is not None:
                        one.input_over = True
                        self._write(one)
                case forward.Dropped(key):
                    self._end(key)
                case forward.Left():
                    raise Stopped("the client has left")
        self._loop.wire.send(self._link.take())

    def _open(self, key: int, port: int) -> None:
        if self._ports and port not in self._ports:
            self._link.done(key, f"port {port} is not among those asked for")
            return
        try:
            made = self._pod.connection(port)
        except (ForgeError, OSError) as error:
            self._link.done(key, f"localhost:{port} cannot be reached in the pod: {error}")
            return
        if made is None:
            self._connect(key, port, 0, bytearray(), input_over=False)
            return
        made.setblocking(False)
        self._connections[key] = _Connection(key, port, made, connected=True)

    def _connect(self, key: int, port: int, family: int, pending: bytearray, *, input_over: bool) -> None:
        """Try the addresses of localhost from the ``family``-th on; what was sent meanwhile is kept."""
        why = "connection refused"
        for index, (kind, address) in enumerate(_LOOPBACK):
            if index < family:
                continue
            try:
                sock = self._pod.socket(kind, port)
            except Denied as error:
                why = str(error)
                break
            except (ForgeError, OSError) as error:
                why = str(error)
                continue
            sock.setblocking(False)
            found = sock.connect_ex((address, port))
            if found in (0, errno.EINPROGRESS):
                self._connections[key] = _Connection(
                    key, port, sock, index, connected=found == 0, pending=pending, input_over=input_over
                )
                return
            sock.close()
            why = errno.errorcode.get(found, str(found))
        self._link.done(key, f"localhost:{port} cannot be reached in the pod: {why}")

    def _serve(self, one: _Connection, events: int) -> None:
        if not one.connected:
            error = one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                one.sock.close()
                del self._connections[one.key]
                self._connect(one.key, one.port, one.family + 1, one.pending, input_over=one.input_over)
                return
            one.connected = True
        if events & select.POLLOUT:
            self._write(one)
        if one.key in self._connections and one.over_at is None and not self._loop.wire.full:
            self._read(one)
        if one.key in self._connections and one.over_at is not None and (one.shut or events & _ENDED):
            self._end(one.key)

    def _read(self, one: _Connection) -> None:
        try:
            data = one.sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(one.key, f"port {one.port}: {error.strerror}")
            return
        if data:
            self._loop.busy()
            self._link.send(one.key, data)
        else:
            one.over_at = time.monotonic() + LINGER_SECONDS
            self._link.end(one.key)

    def _write(self, one: _Connection) -> None:
        if not one.connected:
            return
        try:
            while one.pending:
                del one.pending[: one.sock.send(one.pending[:_CHUNK])]
        except BlockingIOError:
            return
        except OSError:
            # Nobody reads any more; what the port still has to say is passed on.
            one.pending.clear()
        if one.input_over and not one.shut:
            one.shut = True
            with contextlib.suppress(OSError):
                one.sock.shutdown(socket.SHUT_WR)
            if one.over_at is not None:
                self._end(one.key)

    def _end(self, key: int, error: str = "") -> None:
        one = self._connections.pop(key, None)
        if one is not None:
            one.sock.close()
            self._link.done(key, error)
