"""``forge port-forward``: ports of this host's loopback lead to ports of a pod.

Each connection is a session of its own, so that a slow one holds up no other and a forgeoned that is replaced only ends
those under way.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import select
import socket
import struct
import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from cri.api import runtime_pb2 as cri
from cri.streaming import spdy
from forgeone_shim.cli import dial
from forgeone_shim.cli.client import Client, Noun, RemoteError
from forgeone_shim.errors import FailedPrecondition, ForgeError, InvalidInput, Unavailable

PROTOCOL: Final = "portforward.k8s.io"

_LOOPBACK: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_CHUNK: Final = 64 * 1024
_HIGH_WATER: Final = 1024 * 1024
_ENDED: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL
_TRIES: Final = 16
# Closing resets the connection: its peer learns that it was not ended in good order.
_RESET: Final = struct.pack("ii", 1, 0)
_GONE: Final = frozenset({"NOT_FOUND", "FAILED_PRECONDITION"})


@dataclass(frozen=True, slots=True)
class Pair:
    """``local`` of this host (0: any that is free) leads to ``remote`` of the pod."""

    local: int
    remote: int


def pair(text: str) -> Pair:
    """``8080:80``, ``80`` (the same on both sides) or ``:80`` (any free one here).

    :raises InvalidInput: it is none of these.
    """
    local, colon, remote = text.rpartition(":")
    numbers = [number for number in (local, remote) if number]
    if not all(n.isascii() and n.isdigit() and len(n) <= 5 and 0 < int(n) < 1 << 16 for n in numbers) or not remote:
        raise InvalidInput("port", f"{text!r} is not PORT, LOCAL:PORT or :PORT")
    return Pair(int(local or 0) if colon else int(remote), int(remote))


def command(client: Client, args: argparse.Namespace) -> int:
    """Listen until interrupted, or until there is no such pod any more."""
    pairs = [pair(text) for text in args.ports]
    pod = client.find(args.pod, Noun.POD).id
    # Before anybody connects: whether it can be done at all.
    client.call(client.runtime.PortForward, cri.PortForwardRequest(pod_sandbox_id=pod, port=[pairs[0].remote]))
    with ExitStack() as stack:
        listeners: dict[int, tuple[socket.socket, int]] = {}
        for one in pairs:
            for listener in listen(one.local):
                stack.enter_context(listener)
                listeners[listener.fileno()] = listener, one.remote
                host, port = listener.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                sys.stdout.write(f"{shown}:{port} -> {one.remote}\n")
        sys.stdout.flush()
        return _Forwarding(client, pod, listeners, stack).run()


def listen(port: int) -> list[socket.socket]:
    """Listeners on every loopback address of the host, on one port.

    :raises FailedPrecondition: it is taken, or not ours to take.
    """
    for attempt in range(_TRIES):
        found: list[socket.socket] = []
        try:
            for family, address in _LOOPBACK:
                try:
                    listener = socket.socket(family, socket.SOCK_STREAM)
                except OSError:
                    continue  # a kernel without that family
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    listener.bind((address, found[0].getsockname()[1] if found else port))
                    listener.listen(128)
                except OSError as error:
                    listener.close()
                    if error.errno == errno.EADDRNOTAVAIL:
                        continue  # a host without that address
                    raise
                listener.setblocking(False)
                found.append(listener)
        except OSError as error:
            for listener in found:
                listener.close()
            if port == 0 and error.errno == errno.EADDRINUSE and attempt + 1 < _TRIES:
                continue  # free on one address, taken on the other
            raise FailedPrecondition(f"port {port} cannot be listened on: {error.strerror}") from error
        if found:
            return found
    raise FailedPrecondition("this host has no loopback address")


class _Forwarding:
    """Accepts connections and gives each a thread."""

    def __init__(
        self, client: Client, pod: str, listeners: dict[int, tuple[socket.socket, int]], stack: ExitStack
    ) -> None:
        self._client, self._pod, self._listeners = client, pod, listeners
        self._over = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        stack.callback(os.close, self._over)
        self._why: ForgeError | None = None

    def run(self) -> int:
        poll = select.poll()
        poll.register(self._over, select.POLLIN)
        for fd in self._listeners:
            poll.register(fd, select.POLLIN)
        while self._why is None:
            for fd, _ in poll.poll():
                if fd in self._listeners:
                    self._accept(*self._listeners[fd])
        raise self._why

    def _accept(self, listener: socket.socket, port: int) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise FailedPrecondition(f"no connection can be accepted: {error.strerror}") from error
            return
        threading.Thread(target=self._serve, args=(sock, port), daemon=True).start()

    def _serve(self, sock: socket.socket, port: int) -> None:
        with sock:
            try:
                self._connect(sock, port)
            except OSError:
                return  # whoever connected has gone
            except ForgeError as error:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                if isinstance(error, RemoteError) and error.code in _GONE:
                    self._why = error
                    os.eventfd_write(self._over, 1)
                    return
                sys.stderr.write(f"forge: {error}\n")

    def _connect(self, sock: socket.socket, port: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = cri.PortForwardRequest(pod_sandbox_id=self._pod, port=[port])
        url = self._client.call(self._client.runtime.PortForward, request).url
        dialled = dial.spdy_to(self._client, url, PROTOCOL)
        with dialled.wire:
            Connection(sock, dialled, port).run()


class Connection:
    """One connection between a local socket and a port of the pod; each side may end before the other."""

    def __init__(self, sock: socket.socket, dialled: dial.Dialled, port: int) -> None:
        sock.setblocking(False)
        self._sock, self._wire, self._early = sock, dialled.wire, dialled.early
        self._conn = spdy.Connection(client=True)
        headers = {"port": str(port), "requestid": "0"}
        self._errors = self._conn.open({"streamtype": "error", **headers}, fin=True)
        self._data = self._conn.open({"streamtype": "data", **headers})
        self._out = bytearray()
        self._why = bytearray()
        self._heard_end = self._said_end = self._shut = False
        # forgeoned said that this is all; it has gone, having said that the port has ended.
        self._told = self._lost = False

    def run(self) -> None:
        """Until both sides have ended.

        :raises RemoteError: the pod's port cannot be reached.
        :raises Unavailable: forgeoned is lost.
        :raises OSError: whoever connected is lost.
        """
        self._hear(self._early)
        while not (self._shut and (self._said_end or self._told or self._lost)):
            self._send()
            ready = self._poll()
            seen = ready.get(self._wire.fileno(), 0)
            if seen:
                self._serve_wire(seen)
            seen = ready.get(self._sock.fileno(), 0)
            if seen & _ENDED and self._said_end:
                raise ConnectionResetError("nobody is there any more")
            if seen & ~select.POLLOUT and not self._said_end:
                self._read()
            self._write()
        self._send()

    def _poll(self) -> dict[int, int]:
        poll = select.poll()
        if not self._lost:
            events = self._wire.interest(reading=True)
            poll.register(self._wire.fileno(), events if self._hungry else events & select.POLLOUT)
        wanted = select.POLLIN if not (self._said_end or self._lost or self._wire.full) else 0
        poll.register(self._sock.fileno(), wanted | (select.POLLOUT if self._out else 0))
        return dict(poll.poll())

    @property
    def _hungry(self) -> bool:
        return len(self._out) < _HIGH_WATER

    def _serve_wire(self, seen: int) -> None:
        try:
            if seen & select.POLLOUT:
                self._wire.flush()
            if seen & ~select.POLLOUT and (self._hungry or seen & _ENDED):
                self._hear(self._wire.receive() or b"")
        except OSError as error:
            self._lose(error)

    def _send(self) -> None:
        try:
            if not self._lost:
                self._wire.send(self._conn.take())
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self._lost = True
        if not self._heard_end:
            raise Unavailable("the connection to forgeoned is lost") from error

    def _hear(self, data: bytes) -> None:
        try:
            events = self._conn.receive(data)
        except spdy.ProtocolError as error:
            raise RemoteError("INTERNAL", f"the stream cannot be read: {error}") from None
        for event in events:
            match event:
                case spdy.Data(self._data, payload):
                    self._out += payload
                case spdy.Data(self._errors, payload):
                    self._why += payload
                case spdy.Ended(self._data):
                    self._heard_end = True
                case spdy.Ended(self._errors):
                    if self._why:
                        raise RemoteError("UNREACHABLE", self._why.decode(errors="replace"))
                    self._told = True
                case spdy.Reset(self._data) | spdy.Reset(self._errors):
                    raise RemoteError("UNREACHABLE", "forgeoned gave the connection up")

    def _read(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        self._said_end = not data
        self._conn.send(self._data, data, fin=not data)

    def _write(self) -> None:
        try:
            while self._out:
                del self._out[: self._sock.send(self._out[:_CHUNK])]
        except BlockingIOError:
            return
        if self._heard_end and not self._shut:
            self._shut = True
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
