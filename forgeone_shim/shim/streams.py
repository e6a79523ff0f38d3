"""Who is attached to a container: its output to them, their input to it."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import termios
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from forgeone_shim.shim.loop import HUNG_UP, READ, WRITE, Loop
from forgeone_shim.shim.supervision import ATTACH_DATA_MAX, ATTACH_STDERR, ATTACH_STDOUT

_PIPES: Final = {1: bytes([ATTACH_STDOUT]), 2: bytes([ATTACH_STDERR])}
# What waits for a client that is slow; beyond it the container waits too, for as long as the client takes something.
_WAITING_MAX: Final = 1 << 20
_STALLED_SECONDS: Final = 10.0
_CLIENTS_MAX: Final = 64
# Bytes that a packet takes beside its own.
_PACKET: Final = 64


class Input:
    """The write end of a container's standard input, -1 where it has none. ``once`` ends it with its first client."""

    def __init__(self, loop: Loop, fd: int, *, terminal: bool, once: bool, taken: Callable[[], None]) -> None:
        self._loop, self._fd, self._terminal, self._once, self._taken = loop, fd, terminal, once, taken
        self._waiting = b""
        self._ending = False
        if fd >= 0:
            os.set_blocking(fd, False)
            loop.watch(fd, self._ready, events=0)

    @property
    def full(self) -> bool:
        """Whether no more can be taken now; ``taken`` is called when it can."""
        return bool(self._waiting)

    def write(self, data: bytes) -> None:
        """Some input; without anybody to read it it is dropped."""
        if self._fd >= 0 and not self._ending:
            self._waiting += data
            self._flush()

    def client_ended(self) -> None:
        """A client says no more."""
        if self._once and self._fd >= 0:
            self._ending = True
            self._flush()

    def close(self) -> None:
        """Nobody reads any more."""
        fd, self._fd = self._fd, -1
        self._waiting = b""
        if fd >= 0:
            self._loop.leave(fd)
            os.close(fd)

    def _ready(self, _: int) -> None:
        self._flush()
        if not self._waiting:
            self._taken()

    def _flush(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._fd, self._waiting) :]
        except BlockingIOError:
            self._loop.change(self._fd, WRITE)
            return
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            self.close()
            return
        self._loop.change(self._fd, 0)
        if self._ending:
            self._end()

    def _end(self) -> None:
        """A terminal cannot be half closed; one that reads lines gets what stands for an end."""
        if self._terminal:
            with contextlib.suppress(OSError, termios.error):
                attributes = termios.tcgetattr(self._fd)
                if attributes[3] & termios.ICANON:
                    os.write(self._fd, attributes[6][termios.VEOF])
        self.close()


class _Client:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.waiting: deque[bytes] = deque()
        self.size = 0
        self.since = 0.0
        self.hears = True

    def send(self, packet: bytes, now: float) -> None:
        """Raises OSError where nobody listens any more."""
        if not self.waiting:
            try:
                self.connection.send(packet, socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                self.since = now
        self.waiting.append(packet)
        self.size += len(packet) + _PACKET

    def flush(self, now: float) -> None:
        """As :meth:`send`, for what waits."""
        with contextlib.suppress(BlockingIOError):
            while self.waiting:
                self.connection.send(self.waiting[0], socket.MSG_NOSIGNAL)
                self.size -= len(self.waiting.popleft()) + _PACKET
                self.since = now


class Attachments:
    """Clients of a listening attach socket. ``flow`` is called whenever the container's output may go on."""

    def __init__(self, loop: Loop, listener: socket.socket, flow: Callable[[], None]) -> None:
        self._loop, self._listener, self._flow = loop, listener, flow
        self._clients: dict[int, _Client] = {}
        self._closing = False
        self.input = Input(loop, -1, terminal=False, once=False, taken=self._listen)
        listener.setblocking(False)
        loop.watch(listener.fileno(), lambda _: self._accept())

    def take_input(self, fd: int, *, terminal: bool, once: bool) -> None:
        """Clients' input goes to ``fd`` from now on, which is closed here."""
        self.input = Input(self._loop, fd, terminal=terminal, once=once, taken=self._listen)

    @property
    def full(self) -> bool:
        """Whether output should wait for a client."""
        return any(client.size > _WAITING_MAX for client in self._clients.values())

    def send(self, stream: int, data: bytes) -> None:
        """Output of stream 1 or 2 to everybody."""
        if not self._clients:
            return
        pipe, now = _PIPES[stream], time.monotonic()
        packets = [pipe + data[at : at + ATTACH_DATA_MAX] for at in range(0, len(data), ATTACH_DATA_MAX)]
        for client in tuple(self._clients.values()):
            try:
                for packet in packets:
                    client.send(packet, now)
            except OSError:
                self._drop(client)
            else:
                self._mind(client)

    def wait(self) -> float | None:
        """Seconds until :meth:`drop_stalled` has something to do; ``None``: nothing."""
        stalled = [client.since for client in self._clients.values() if client.waiting]
        return max(0.0, min(stalled) + _STALLED_SECONDS - time.monotonic()) if stalled else None

    def drop_stalled(self) -> None:
        """Let go of clients that have taken nothing for a while although there was something."""
        now = time.monotonic()
        for client in tuple(self._clients.values()):
            if client.waiting and now - client.since >= _STALLED_SECONDS:
                self._drop(client)

    def close(self) -> None:
        """No more clients; those that are there get what waits for them."""
        self._accept()
        self._loop.leave(self._listener.fileno())
        self._listener.close()
        self.input.close()
        self._closing = True
        for client in tuple(self._clients.values()):
            self._mind(client)

    def __bool__(self) -> bool:
        return bool(self._clients)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                if len(self._clients) >= _CLIENTS_MAX:
                    connection.close()
                    continue
                connection.setblocking(False)
                client = self._clients[connection.fileno()] = _Client(connection)
                self._loop.watch(connection.fileno(), functools.partial(self._ready, client))
                self._mind(client)

    def _ready(self, client: _Client, events: int) -> None:
        try:
            if events & WRITE:
                client.flush(time.monotonic())
            if events & (READ | HUNG_UP):
                self._read(client, hung_up=bool(events & HUNG_UP))
        except OSError:
            self._drop(client)
            return
        self._mind(client)
        self._flow()

    def _read(self, client: _Client, *, hung_up: bool) -> None:
        """Raises OSError, too, when the client has gone."""
        if client.hears:
            data = client.connection.recv(ATTACH_DATA_MAX)
            if data:
                self.input.write(data)
                return
            client.hears = False
            self.input.client_ended()
        if hung_up:
            raise ConnectionResetError(errno.ECONNRESET, "the client has gone")

    def _listen(self) -> None:
        for client in self._clients.values():
            self._mind(client)

    def _mind(self, client: _Client) -> None:
        """Wait for what can be done with a client now."""
        if self._closing and not client.waiting:
            self._drop(client)
        elif client.connection.fileno() in self._clients:
            hears = READ if client.hears and not self.input.full else 0
            # Its end is noticed whatever is waited for.
            self._loop.change(client.connection.fileno(), hears | (WRITE if client.waiting else 0) | HUNG_UP)

    def _drop(self, client: _Client) -> None:
        fd = client.connection.fileno()
        if self._clients.pop(fd, None) is None:
            return
        self._loop.leave(fd)
        client.connection.close()
        if client.hears:
            client.hears = False
            self.input.client_ended()
        self._flow()
