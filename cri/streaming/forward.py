"""Port-forward without I/O: connections to a pod's ports, over SPDY, over WebSocket, and over SPDY within WebSocket."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from cri.streaming import spdy, websocket

MAX_PAIRS: Final = 512
_MAX_TEXT: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """The client wants a connection to a port; ``key`` names it from now on."""

    key: int
    port: int


@dataclass(frozen=True, slots=True)
class Input:
    """Bytes for the port."""

    key: int
    data: bytes


@dataclass(frozen=True, slots=True)
class InputEnded:
    """The port gets no more of this connection."""

    key: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """The client gave this connection up."""

    key: int


@dataclass(frozen=True, slots=True)
class Left:
    """The client has gone."""


Event = Wanted | Input | InputEnded | Dropped | Left


class Link(Protocol):
    """The server's end of one port-forward. What :meth:`take` returns has to be sent."""

    def receive(self, data: bytes) -> list[Event]:
        """What the client's next bytes mean. Raises ProtocolError of its framing."""

    def take(self) -> bytes:
        """What is to be sent now."""

    def send(self, key: int, data: bytes) -> None:
        """Bytes from the port."""

    def end(self, key: int) -> None:
        """The port sends no more."""

    def done(self, key: int, error: str = "") -> None:
        """The connection is over, or (with ``error``) could not be made."""

    def close(self) -> None:
        """This is all."""


@dataclass(slots=True)
class _Pair:
    """The two streams of one connection, which is called by its data stream."""

    port: int
    error: int = 0
    data: int = 0


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 1 << 16:
        return int(text)
    return 0


class SpdyLink:
    """``portforward.k8s.io``: a stream for errors and one for data, bound together by a request id."""

    def __init__(self) -> None:
        self._conn = spdy.Connection()
        self._waiting: dict[str, _Pair] = {}
        self._pairs: dict[int, _Pair] = {}

    def receive(self, data: bytes) -> list[Event]:
        """What the client's next bytes mean."""
        return [found for event in self._conn.receive(data) for found in self._heard(event)]

    def _heard(self, event: spdy.Event) -> list[Event]:
        match event:
            case spdy.Opened(stream, headers):
                return self._opened(stream, headers.get("streamtype", ""), headers)
            case spdy.Data(stream, data):
                return [Input(stream, data)] if stream in self._pairs else []
            case spdy.Ended(stream):
                return [InputEnded(stream)] if stream in self._pairs else []
            case spdy.Reset(stream):
                if self._pairs.pop(stream, None) is not None:
                    return [Dropped(stream)]
                self._waiting = {key: pair for key, pair in self._waiting.items() if pair.error != stream}
        return []

    def _opened(self, stream: int, kind: str, headers: object) -> list[Event]:
        named = headers if isinstance(headers, dict) else {}
        port = _port(named.get("port", ""))
        # Before there were request ids the error stream came first and its data stream right after it.
        request = named.get("requestid", "") or str(stream if kind == "error" else stream - 2)
        pair = self._waiting.get(request)
        full = len(self._pairs) + len(self._waiting) >= MAX_PAIRS and pair is None
        if kind not in {"error", "data"} or not port or full or (pair is not None and pair.port != port):
            self._conn.reset(stream, spdy.Status.REFUSED_STREAM)
            return []
        if pair is None:
            pair = self._waiting[request] = _Pair(port)
        if getattr(pair, kind):
            self._conn.reset(stream, spdy.Status.REFUSED_STREAM)
            return []
        setattr(pair, kind, stream)
        self._conn.reply(stream)
        if not (pair.error and pair.data):
            return []
        del self._waiting[request]
        self._pairs[pair.data] = pair
        return [Wanted(pair.data, port)]

    def take(self) -> bytes:
        """What is to be sent now."""
        return self._conn.take()

    def send(self, key: int, data: bytes) -> None:
        """Bytes from the port."""
        self._conn.send(key, data)

    def end(self, key: int) -> None:
        """The port sends no more."""
        self._conn.send(key, b"", fin=True)

    def done(self, key: int, error: str = "") -> None:
        """Both streams end, the errors' one with the reason."""
        pair = self._pairs.pop(key, None)
        if pair is not None:
            self._conn.send(pair.error, error.encode(), fin=True)
            self._conn.send(pair.data, b"", fin=True)

    def close(self) -> None:
        """This is all."""
        self._conn.goaway()


@dataclass(slots=True)
class _Ports:
    """Which connection a piece of a message belongs to, and what of a text message has arrived."""

    channel: int = -1
    text: bytearray = field(default_factory=bytearray)


class WebSocketLink:
    """``v4.channel.k8s.io``: the ports are known beforehand, each has one connection and two channels.

    Channels ``2i`` and ``2i + 1`` are data and errors of the i-th port; each begins with the port's number.
    """

    def __init__(self, ports: Sequence[int], *, encoded: bool) -> None:
        self._conn = websocket.Connection()
        self._encoded = encoded
        self._open = dict(enumerate(ports))
        self._state = _Ports()
        self._fresh: list[Event] = [Wanted(index, port) for index, port in self._open.items()]
        for index, port in self._open.items():
            for channel in (2 * index, 2 * index + 1):
                self._emit(channel, port.to_bytes(2, "little"))

    def receive(self, data: bytes) -> list[Event]:
        """What the client's next bytes mean."""
        found, self._fresh = self._fresh, []
        return found + [heard for event in self._conn.receive(data) for heard in self._heard(event)]

    def _heard(self, event: websocket.Event) -> list[Event]:
        if isinstance(event, websocket.Closed):
            return [Left()]
        if self._encoded:
            return self._decoded(event)
        if event.first and not event.data:
            return []
        data = event.data
        if event.first:
            self._state.channel, data = data[0], data[1:]
        return self._said(self._state.channel, data)

    def _decoded(self, piece: websocket.Piece) -> list[Event]:
        text = self._state.text
        text += piece.data
        if len(text) > _MAX_TEXT:
            raise websocket.ProtocolError("a message of text is too long", websocket.CloseCode.POLICY)
        if not piece.last:
            return []
        whole = bytes(text)
        text.clear()
        if not whole:
            return []
        try:
            return self._said(whole[0] - ord("0"), base64.b64decode(whole[1:], validate=True))
        except binascii.Error:
            raise websocket.ProtocolError("a message is not base64", websocket.CloseCode.INVALID_DATA) from None

    def _said(self, channel: int, data: bytes) -> list[Event]:
        index, errors = divmod(channel, 2)
        return [Input(index, data)] if data and not errors and index in self._open else []

    def take(self) -> bytes:
        """What is to be sent now."""
        return self._conn.take()

    def send(self, key: int, data: bytes) -> None:
        """Bytes from the port."""
        if data:
            self._emit(2 * key, data)

    def _emit(self, channel: int, data: bytes) -> None:
        if self._encoded:
            self._conn.send(bytes([ord("0") + channel]) + base64.b64encode(data), text=True)
        else:
            self._conn.send(bytes([channel]) + data)

    def end(self, key: int) -> None:
        """A channel has no end of its own."""

    def done(self, key: int, error: str = "") -> None:
        """Say why; with the last connection the whole ends."""
        if self._open.pop(key, None) is None:
            return
        if error:
            self._emit(2 * key + 1, error.encode())
        if not self._open:
            self._conn.close()

    def close(self) -> None:
        """This is all."""
        self._conn.close(websocket.CloseCode.GOING_AWAY if self._open else websocket.CloseCode.NORMAL)

    @property
    def over(self) -> bool:
        """Whether no connection is left."""
        return not self._open


class TunnelLink:
    """``SPDY/3.1+portforward.k8s.io``: the bytes of a SPDY session as WebSocket messages."""

    def __init__(self) -> None:
        self._conn = websocket.Connection()
        self._inner = SpdyLink()

    def receive(self, data: bytes) -> list[Event]:
        """What the client's next bytes mean."""
        found: list[Event] = []
        for event in self._conn.receive(data):
            found += [Left()] if isinstance(event, websocket.Closed) else self._inner.receive(event.data)
        return found

    def take(self) -> bytes:
        """What is to be sent now."""
        inner = self._inner.take()
        if inner:
            self._conn.send(inner)
        return self._conn.take()

    def send(self, key: int, data: bytes) -> None:
        """Bytes from the port."""
        self._inner.send(key, data)

    def end(self, key: int) -> None:
        """The port sends no more."""
        self._inner.end(key)

    def done(self, key: int, error: str = "") -> None:
        """The connection is over, or could not be made."""
        self._inner.done(key, error)

    def close(self) -> None:
        """This is all."""
        self._inner.close()
        inner = self._inner.take()
        if inner:
            self._conn.send(inner)
        self._conn.close()
