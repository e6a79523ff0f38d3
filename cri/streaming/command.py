"""Remote command (exec, attach) without I/O: one model over SPDY streams and over WebSocket channels.

Kubernetes' protocol, versions 1 to 5: a stream each for input, output, errors, the outcome, and (from version 3) the
terminal's size. SPDY knows versions 1 to 4; WebSocket 1, 4 and 5, of which 5 can end the input.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from cri.streaming import spdy, websocket
from cri.streaming.status import Outcome, encode
from engines.base import Stdio

RESIZE_VERSION: Final = 3
_MAX_RESIZE: Final = 4096
_MAX_TEXT: Final = 4 * 1024 * 1024
_CLOSE_CHANNEL: Final = 255


class Channel(IntEnum):
    """The numbers WebSocket messages begin with."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    ERROR = 3
    RESIZE = 4


STREAM_TYPES: Final[Mapping[str, Channel]] = {
    "stdin": Channel.STDIN,
    "stdout": Channel.STDOUT,
    "stderr": Channel.STDERR,
    "error": Channel.ERROR,
    "resize": Channel.RESIZE,
}
"""Values of the header ``streamType`` of a SPDY stream."""


@dataclass(frozen=True, slots=True)
class Input:
    """Bytes for the process."""

    data: bytes


@dataclass(frozen=True, slots=True)
class InputEnded:
    """The process gets no more input."""


@dataclass(frozen=True, slots=True)
class Resized:
    """The client's terminal has this many columns and rows."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Left:
    """The client has gone."""


Event = Input | InputEnded | Resized | Left


class Link(Protocol):
    """The server's end of one remote command. What :meth:`take` returns has to be sent."""

    @property
    def ready(self) -> bool:
        """Whether the client has opened every stream it needs, so that the command can start."""

    def receive(self, data: bytes) -> list[Event]:
        """What the client's next bytes mean. Raises ProtocolError of its framing."""

    def take(self) -> bytes:
        """What is to be sent now."""

    def send(self, channel: Channel, data: bytes) -> None:
        """Output of the process."""

    def finish(self, outcome: Outcome) -> None:
        """Say how it ended, and end."""


class Sizes:
    """Reads the stream of sizes: JSON objects one after another."""

    def __init__(self) -> None:
        self._text = ""
        self._decoder = json.JSONDecoder()

    def feed(self, data: bytes) -> list[Event]:
        """The sizes completed by ``data``; what is not one is dropped with all before it."""
        self._text = (self._text + data.decode("latin-1")).lstrip()
        found: list[Event] = []
        while self._text:
            try:
                value, end = self._decoder.raw_decode(self._text)
            except (ValueError, RecursionError):
                if len(self._text) > _MAX_RESIZE:
                    self._text = ""
                break
            self._text = self._text[end:].lstrip()
            size = _size(value)
            if size is not None:
                found.append(size)
        return found


def _size(value: object) -> Resized | None:
    if not isinstance(value, dict):
        return None
    names = {str(key).lower(): number for key, number in value.items()}
    width, height = names.get("width"), names.get("height")
    if type(width) is int and type(height) is int and 0 < width < 1 << 16 and 0 < height < 1 << 16:
        return Resized(width, height)
    return None


class SpdyLink:
    """Over SPDY, where the client opens the streams."""

    def __init__(self, stdio: Stdio, version: int) -> None:
        self._conn = spdy.Connection()
        self._version = version
        self._missing = {Channel.ERROR}
        for channel, wanted in (
            (Channel.STDIN, stdio.stdin),
            (Channel.STDOUT, stdio.stdout),
            (Channel.STDERR, stdio.stderr),
            (Channel.RESIZE, stdio.tty and version >= RESIZE_VERSION),
        ):
            if wanted:
                self._missing.add(channel)
        self._streams: dict[Channel, int] = {}
        self._channels: dict[int, Channel] = {}
        self._sizes = Sizes()

    @property
    def ready(self) -> bool:
        """Whether every expected stream is open."""
        return not self._missing

    def receive(self, data: bytes) -> list[Event]:
        """What the client's next bytes mean."""
        return [found for event in self._conn.receive(data) for found in self._heard(event)]

    def _heard(self, event: spdy.Event) -> list[Event]:
        match event:
            case spdy.Opened(stream, headers):
                self._opened(stream, STREAM_TYPES.get(headers.get("streamtype", "").lower()))
            case spdy.Data(stream, data):
                channel = self._channels.get(stream)
                if channel is Channel.STDIN:
                    return [Input(data)]
                if channel is Channel.RESIZE:
                    return self._sizes.feed(data)
            case spdy.Ended(stream):
                if self._channels.get(stream) is Channel.STDIN:
                    return [InputEnded()]
            case spdy.Reset(stream):
                # A client that gives up the input only ends it; one that gives up the outcome has gone.
                channel = self._channels.pop(stream, None)
                if channel is Channel.STDIN:
                    return [InputEnded()]
                if channel is Channel.ERROR:
                    return [Left()]
        return []

    def _opened(self, stream: int, channel: Channel | None) -> None:
        if channel is None or channel not in self._missing:
            self._conn.reset(stream, spdy.Status.REFUSED_STREAM)
            return
        self._missing.discard(channel)
        self._streams[channel] = stream
        self._channels[stream] = channel
        self._conn.reply(stream)

    def take(self) -> bytes:
        """What is to be sent now."""
        return self._conn.take()

    def send(self, channel: Channel, data: bytes) -> None:
        """Output of the process; dropped where the client did not open the stream."""
        stream = self._streams.get(channel)
        if stream is not None:
            self._conn.send(stream, data)

    def finish(self, outcome: Outcome) -> None:
        """The outcome, an end to each stream, and the announcement that this is all."""
        self.send(Channel.ERROR, encode(outcome, self._version))
        for stream in self._streams.values():
            self._conn.send(stream, b"", fin=True)
        self._conn.goaway()


class WebSocketLink:
    """Over WebSocket, where each message begins with its channel."""

    def __init__(self, stdio: Stdio, version: int, *, encoded: bool) -> None:
        """``encoded``: messages are text, a digit and base64."""
        self._conn = websocket.Connection()
        self._stdio, self._version, self._encoded = stdio, version, encoded
        self._sizes = Sizes()
        self._channel = -1
        self._text = bytearray()
        # Clients wait for a first message to know that the connection stands.
        first = Channel.STDOUT if stdio.stdout else Channel.STDERR if stdio.stderr else Channel.ERROR
        self._emit(first, b"")

    @property
    def ready(self) -> bool:
        """Channels are always there."""
        return True

    def receive(self, data: bytes) -> list[Event]:
        """What the client's next bytes mean."""
        return [found for event in self._conn.receive(data) for found in self._heard(event)]

    def _heard(self, event: websocket.Event) -> list[Event]:
        if isinstance(event, websocket.Closed):
            return [Left()]
        if self._encoded:
            return self._decoded(event)
        if event.first and not event.data:
            return []
        channel, data = (event.data[0], event.data[1:]) if event.first else (self._channel, event.data)
        self._channel = channel
        return self._said(channel, data)

    def _decoded(self, piece: websocket.Piece) -> list[Event]:
        self._text += piece.data
        if len(self._text) > _MAX_TEXT:
            raise websocket.ProtocolError("a message of text is too long", websocket.CloseCode.POLICY)
        if not piece.last:
            return []
        text = bytes(self._text)
        self._text.clear()
        if not text:
            return []
        try:
            return self._said(text[0] - ord("0"), base64.b64decode(text[1:], validate=True))
        except binascii.Error:
            raise websocket.ProtocolError("a message is not base64", websocket.CloseCode.INVALID_DATA) from None

    def _said(self, channel: int, data: bytes) -> list[Event]:
        if channel == Channel.STDIN and self._stdio.stdin:
            return [Input(data)] if data else []
        if channel == Channel.RESIZE and self._stdio.tty:
            return self._sizes.feed(data)
        if channel == _CLOSE_CHANNEL and self._version >= 5 and data[:1] == bytes([Channel.STDIN]):
            return [InputEnded()] if self._stdio.stdin else []
        return []

    def take(self) -> bytes:
        """What is to be sent now."""
        return self._conn.take()

    def send(self, channel: Channel, data: bytes) -> None:
        """Output of the process."""
        if data:
            self._emit(channel, data)

    def _emit(self, channel: Channel, data: bytes) -> None:
        if self._encoded:
            self._conn.send(str(int(channel)).encode() + base64.b64encode(data), text=True)
        else:
            self._conn.send(bytes([channel]) + data)

    def finish(self, outcome: Outcome) -> None:
        """The outcome, and the end."""
        self.send(Channel.ERROR, encode(outcome, self._version))
        self._conn.close()
