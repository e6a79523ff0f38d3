"""WebSocket without I/O: bytes in, events out (RFC 6455). No extension is ever agreed on.

A message is passed on in pieces, as it arrives: nothing but control frames is buffered here.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_CONTROL: Final = 125


class Opcode(IntEnum):
    """Section 5.2."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(IntEnum):
    """Section 7.4.1."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    INVALID_DATA = 1007
    POLICY = 1008
    INTERNAL = 1011


class ProtocolError(Exception):
    """The peer does not speak RFC 6455, or not the subprotocol; ``code`` is what it is told."""

    def __init__(self, what: str, code: CloseCode = CloseCode.PROTOCOL_ERROR) -> None:
        super().__init__(what)
        self.code = code


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of a message; ``first`` and ``last`` say where in it they are. A last piece may be empty."""

    text: bool
    data: bytes
    first: bool
    last: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer wants to end; the answer is among what is to be sent."""

    code: int


Event = Piece | Closed


def accept_key(key: str) -> str:
    """Section 4.2.2: what the answer to ``Sec-WebSocket-Key`` is. Raises ValueError for a key that is none."""
    if len(base64.b64decode(key, validate=True)) != 16:
        raise ValueError("a key has 16 bytes")
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def masked(data: bytes, mask: bytes, offset: int = 0) -> bytes:
    """Section 5.3; the inverse of itself. ``offset`` is how far into the payload ``data`` begins."""
    if not data:
        return data
    turned = mask[offset % 4 :] + mask[: offset % 4]
    pattern = (turned * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data) ^ int.from_bytes(pattern)).to_bytes(len(data))


@dataclass(slots=True)
class _Frame:
    """A data frame of which some is still to come."""

    left: int
    mask: bytes
    fin: bool
    seen: int = 0


class Connection:
    """One end of a connection after its handshake. What :meth:`take` returns has to be sent, in that order."""

    def __init__(self, *, client: bool = False) -> None:
        self._client = client
        self._in, self._out = bytearray(), bytearray()
        self._frame: _Frame | None = None
        self._message: bool | None = None  # of a message under way: whether it is text
        self._first = False
        self._closed = False
        self._deaf = False
        self.pongs = 0
        """Answers to :meth:`ping` so far."""

    def take(self) -> bytes:
        """What is to be sent now."""
        found = bytes(self._out)
        self._out.clear()
        return found

    def send(self, data: bytes, *, text: bool = False) -> None:
        """Send one message; after :meth:`close` it is dropped."""
        if not self._closed:
            self._emit(Opcode.TEXT if text else Opcode.BINARY, data)

    def ping(self, data: bytes = b"") -> None:
        """Ask for a sign of life."""
        self._emit(Opcode.PING, data)

    def close(self, code: CloseCode = CloseCode.NORMAL, reason: str = "") -> None:
        """Say that nothing more will be sent."""
        if not self._closed:
            self._closed = True
            self._emit(Opcode.CLOSE, struct.pack(">H", code) + reason.encode()[: _MAX_CONTROL - 2])

    def _emit(self, opcode: Opcode, data: bytes) -> None:
        flag, size = 0x80 if self._client else 0, len(data)
        if size <= _MAX_CONTROL:
            head = struct.pack(">BB", 0x80 | opcode, flag | size)
        elif size < 1 << 16:
            head = struct.pack(">BBH", 0x80 | opcode, flag | 126, size)
        else:
            head = struct.pack(">BBQ", 0x80 | opcode, flag | 127, size)
        if self._client:
            mask = os.urandom(4)
            head, data = head + mask, masked(data, mask)
        self._out += head + data

    def receive(self, data: bytes) -> list[Event]:
        """What ``data``, the next bytes of the peer, means. After a ProtocolError the connection cannot go on."""
        if self._deaf:
            return []
        self._in += data
        events: list[Event] = []
        while not self._deaf:
            if self._frame is None:
                if not self._head(events):
                    break
            elif not self._pass_on(self._frame, events):
                break
        return events

    def _head(self, events: list[Event]) -> bool:
        """Read the head of a frame, and all of a control frame; whether there was enough."""
        if len(self._in) < 2:
            return False
        first, second = self._in[0], self._in[1]
        fin, has_mask, length = bool(first & 0x80), bool(second & 0x80), second & 0x7F
        try:
            opcode = Opcode(first & 0x0F)
        except ValueError:
            raise ProtocolError(f"opcode {first & 0x0F}") from None
        if first & 0x70:
            raise ProtocolError("reserved bits without an extension")
        if has_mask is self._client:
            raise ProtocolError("a frame that must be masked is not, or the other way round")
        at = 2
        if length > _MAX_CONTROL:
            extra = 2 if length == 126 else 8
            if len(self._in) < at + extra:
                return False
            length = int.from_bytes(self._in[at : at + extra])
            if length <= _MAX_CONTROL or (extra == 8 and not 1 << 16 <= length < 1 << 63):
                raise ProtocolError("a length not in its shortest form")
            at += extra
        control = opcode >= Opcode.CLOSE
        if control and (not fin or length > _MAX_CONTROL):
            raise ProtocolError("a control frame in fragments, or too long")
        mask = bytes(4)
        if has_mask:
            if len(self._in) < at + 4:
                return False
            mask, at = bytes(self._in[at : at + 4]), at + 4
        if control:
            if len(self._in) < at + length:
                return False
            payload = masked(bytes(self._in[at : at + length]), mask)
            del self._in[: at + length]
            self._control(opcode, payload, events)
            return True
        del self._in[:at]
        self._begin(opcode)
        self._frame = _Frame(length, mask, fin)
        return True

    def _begin(self, opcode: Opcode) -> None:
        if (opcode is Opcode.CONTINUATION) is (self._message is None):
            raise ProtocolError("a continuation of nothing, or a message within a message")
        if opcode is not Opcode.CONTINUATION:
            self._message, self._first = opcode is Opcode.TEXT, True

    def _pass_on(self, frame: _Frame, events: list[Event]) -> bool:
        """Hand over what has arrived of a data frame; whether the frame is complete."""
        piece = masked(bytes(self._in[: frame.left]), frame.mask, frame.seen)
        del self._in[: frame.left]
        frame.left -= len(piece)
        frame.seen += len(piece)
        done = frame.left == 0
        if done:
            self._frame = None
        last = done and frame.fin
        if piece or last:
            events.append(Piece(bool(self._message), piece, self._first, last))
            self._first = False
        if last:
            self._message = None
        return done

    def _control(self, opcode: Opcode, payload: bytes, events: list[Event]) -> None:
        if opcode is Opcode.PING:
            if not self._closed:
                self._emit(Opcode.PONG, payload)
        elif opcode is Opcode.PONG:
            self.pongs += 1
        elif opcode is Opcode.CLOSE:
            if len(payload) == 1:
                raise ProtocolError("half a close code")
            code = int.from_bytes(payload[:2]) if payload else CloseCode.NORMAL
            self._deaf = True
            self.close()
            events.append(Closed(code))
