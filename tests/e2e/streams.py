"""Small clients of the streaming port: remote command and port-forward over SPDY and over WebSocket."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from cri.streaming import spdy, websocket

_SECONDS = 20.0


class Client:
    """A connection to a streaming URL, upgraded; ``answer`` is the head of the response."""

    def __init__(self, url: str, method: str, fields: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        sock = socket.create_connection((parts.hostname, parts.port or 80), timeout=_SECONDS)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            sock = context.wrap_socket(sock)
        self.sock = sock
        lines = [f"{method} {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: Upgrade"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        data = b""
        while b"\r\n\r\n" not in data:
            piece = sock.recv(4096)
            assert piece, f"hung up after {data!r}"
            data += piece
        self.answer, _, self.early = data.partition(b"\r\n\r\n")
        self.over = False

    @property
    def status(self) -> int:
        """The response's status."""
        return int(self.answer.split()[1])

    def read(self) -> bytes:
        """The next bytes, empty at the end."""
        early, self.early = self.early, b""
        if early:
            return early
        try:
            return self.sock.recv(65536)
        except ConnectionError:
            return b""

    def close(self) -> None:
        """Hang up."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SpdyClient(Client):
    """Streams by number: ``heard`` is what came, ``ended`` those that have ended."""

    def __init__(self, url: str, protocol: str) -> None:
        super().__init__(url, "POST", {"Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": protocol})
        self.conn = spdy.Connection(client=True)
        self.heard: defaultdict[int, bytes] = defaultdict(bytes)
        self.ended: set[int] = set()

    def open(self, **headers: str) -> int:
        """A new stream."""
        stream = self.conn.open(headers)
        self.push()
        return stream

    def say(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Send on a stream."""
        self.conn.send(stream, data, fin=fin)
        self.push()

    def push(self) -> None:
        """Send what waits."""
        self.sock.sendall(self.conn.take())

    def until(self, done: Callable[[], bool]) -> None:
        """Listen until ``done``."""
        while not done():
            data = self.read()
            assert data, f"hung up; heard {dict(self.heard)}"
            self._hear(data)

    def rest(self) -> None:
        """Listen until the server hangs up."""
        while data := self.read():
            self._hear(data)

    def _hear(self, data: bytes) -> None:
        for event in self.conn.receive(data):
            if isinstance(event, spdy.Data):
                self.heard[event.stream] += event.data
            elif isinstance(event, (spdy.Ended, spdy.Reset)):
                self.ended.add(event.stream)


class SocketClient(Client):
    """Channels by number: ``heard`` is what came."""

    def __init__(self, url: str, protocol: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        fields = {"Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key}
        super().__init__(url, "GET", {**fields, "Sec-WebSocket-Protocol": protocol})
        assert self.status != 101 or websocket.accept_key(key).encode() in self.answer
        self.conn = websocket.Connection(client=True)
        self.heard: defaultdict[int, bytes] = defaultdict(bytes)
        self._channel = 0

    def say(self, channel: int, data: bytes) -> None:
        """Send on a channel."""
        self.conn.send(bytes([channel]) + data)
        self.sock.sendall(self.conn.take())

    def until(self, done: Callable[[], bool]) -> None:
        """Listen until ``done``."""
        while not done():
            data = self.read()
            assert data, f"hung up; heard {dict(self.heard)}"
            self._hear(data)

    def rest(self) -> None:
        """Listen until the server hangs up."""
        while data := self.read():
            self._hear(data)

    def _hear(self, data: bytes) -> None:
        for event in self.conn.receive(data):
            if isinstance(event, websocket.Piece):
                body = event.data
                if event.first:
                    self._channel, body = body[0], body[1:]
                self.heard[self._channel] += body


def exit_code(status: bytes) -> int:
    """What a metav1.Status of version 4 or 5 says."""
    found = json.loads(status)
    if found["status"] == "Success":
        return 0
    assert found["reason"] == "NonZeroExitCode", found
    return int(found["details"]["causes"][0]["message"])


def eventually(done: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until ``done``."""
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.02)
