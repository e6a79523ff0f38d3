"""Frames to bytes and back, for either side of the channel; without I/O.

A :class:`Receiver` has the memory that is read into: :meth:`~Receiver.space`, then :meth:`~Receiver.received`. What a
frame carries is a view of it, good until the next call of :meth:`~Receiver.space`; nothing is copied on the way.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum
from typing import Final, NamedTuple

import msgspec

from engines.microvm.wire.fields import ProtocolError, encode
from engines.microvm.wire.protocol import DATA_MAX, HEADER_SIZE, NUMBER_MAX, REQUEST_MAX, STDIN, WINDOW, Kind

_HEADER: Final = struct.Struct("<IHHI")
_CREDIT: Final = struct.Struct("<Q")
# What a side grants back at once: seldom enough to cost nothing, early enough for the other side never to wait.
GRANT: Final = WINDOW // 4


class Side(Enum):
    """Who sends."""

    HOST = "host"
    AGENT = "agent"


_STREAMS: Final = frozenset({Kind.DATA, Kind.EOF, Kind.CREDIT})
_KINDS: Final = {
    Side.HOST: frozenset(kind for kind in Kind if kind < Kind.RESIZE) | _STREAMS | {Kind.RESIZE},
    Side.AGENT: _STREAMS | {Kind.REPLY, Kind.FAILED, Kind.EXITED, Kind.NOTE},
}
# The least and the most that a frame carries.
_SIZES: Final = dict.fromkeys(Kind, (0, REQUEST_MAX)) | {
    Kind.DATA: (1, DATA_MAX),
    Kind.EOF: (0, 0),
    Kind.CREDIT: (_CREDIT.size, _CREDIT.size),
}
_ALLOWED: Final = {side: {int(kind): (kind, *_SIZES[kind]) for kind in kinds} for side, kinds in _KINDS.items()}


class Frame(NamedTuple):
    """``id`` is a request's, a process's or a stream's, as its kind says."""

    kind: Kind
    id: int
    payload: memoryview


def header(kind: Kind, ident: int, size: int) -> bytes:
    """What comes before ``size`` bytes of payload."""
    return _HEADER.pack(size, kind, 0, ident)


def frame(kind: Kind, ident: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return _HEADER.pack(len(payload), kind, 0, ident) + payload


def message(kind: Kind, ident: int, what: msgspec.Struct) -> bytes:
    """A whole frame with fields.

    :raises InvalidInput: as :func:`fields.encode`.
    """
    return frame(kind, ident, encode(what))


def credit(stream: int, size: int) -> bytes:
    """``size`` bytes more may be sent of the stream."""
    return frame(Kind.CREDIT, stream, _CREDIT.pack(size))


def stream(number: int, which: int) -> int:
    """The stream of a process: ``which`` is STDIN, STDOUT or STDERR."""
    return number * 4 + which


def credited(what: Frame) -> int:
    """How many bytes a CREDIT grants.

    :raises ProtocolError: none, or more than a window.
    """
    size: int = _CREDIT.unpack(what.payload)[0]
    if not 0 < size <= WINDOW:
        raise ProtocolError("credit", f"{size} is not within 1 and {WINDOW}")
    return size


class Receiver:
    """Frames that ``side`` sends, taken out of bytes as they arrive.

    After an error the channel cannot be used any more: where the next frame begins is not known. Its memory is
    ``memory`` bytes, and grows for a message larger than that until it has been seen.
    """

    __slots__ = ("_allowed", "_at", "_buffer", "_end", "_memory", "_side")

    def __init__(self, side: Side, *, memory: int = 4 * (DATA_MAX + HEADER_SIZE)) -> None:
        self._side = side
        self._allowed = _ALLOWED[side]
        self._memory = max(memory, DATA_MAX + HEADER_SIZE)
        self._buffer = bytearray(self._memory)
        self._at = self._end = 0

    def space(self) -> memoryview:
        """Where to read into; never empty. Frames seen before are gone by it."""
        held = self._end - self._at
        size = self._memory
        if held >= HEADER_SIZE:
            size = max(size, HEADER_SIZE + _HEADER.unpack_from(self._buffer, self._at)[0])
        if size != len(self._buffer):
            # A new one: views of the old may still be held by whoever has not been careful.
            buffer = bytearray(size)
            buffer[:held] = memoryview(self._buffer)[self._at : self._end]
            self._buffer = buffer
            self._at, self._end = 0, held
        elif held == 0:
            self._at = self._end = 0
        elif self._end == size or self._at + HEADER_SIZE + DATA_MAX > size:
            view = memoryview(self._buffer)
            view[:held] = view[self._at : self._end]
            self._at, self._end = 0, held
        return memoryview(self._buffer)[self._end :]

    def received(self, size: int) -> Iterator[Frame]:
        """So many bytes have been read into :meth:`space`; the frames that are whole now.

        :raises ProtocolError: this side does not send such a frame.
        """
        self._end += size
        view = memoryview(self._buffer)
        while self._end - self._at >= HEADER_SIZE:
            length, kind, zero, ident = _HEADER.unpack_from(self._buffer, self._at)
            allowed = self._allowed.get(kind)
            if allowed is None or zero:
                raise ProtocolError("", f"the {self._side.value} sends no frame of kind {kind}/{zero}")
            name, least, most = allowed
            if not least <= length <= most:
                raise ProtocolError(name.name.lower(), f"{length} bytes are not within {least} and {most}")
            if name in _STREAMS:
                self._check_stream(name, ident)
            if self._end - self._at < HEADER_SIZE + length:
                return
            begin = self._at + HEADER_SIZE
            self._at = begin + length
            yield Frame(name, ident, view[begin : self._at])

    def _check_stream(self, kind: Kind, ident: int) -> None:
        """Data flows one way on each stream, and what is granted the other way."""
        number, which = divmod(ident, 4)
        if number >= NUMBER_MAX or which > 2:
            raise ProtocolError(kind.name.lower(), f"{ident} is no stream")
        inward = (self._side is Side.HOST) == (kind is not Kind.CREDIT)
        if inward != (which == STDIN):
            raise ProtocolError(kind.name.lower(), f"is not the {self._side.value}'s to send of stream {ident}")

    @property
    def midway(self) -> bool:
        """A frame has begun that has not ended: a channel that ends here has lost something."""
        return self._at != self._end


class Window:
    """What may still be sent of a stream."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = WINDOW

    def sent(self, size: int) -> None:
        """So many bytes; never more than are left."""
        self.left -= size

    def granted(self, size: int) -> None:
        """So many bytes more.

        :raises ProtocolError: more than had been sent.
        """
        self.left += size
        if self.left > WINDOW:
            raise ProtocolError("credit", "grants more than a window")


class Allowance:
    """What the other side may still send of a stream, and when to grant more."""

    __slots__ = ("_owed", "left")

    def __init__(self) -> None:
        self.left = WINDOW
        self._owed = 0

    def received(self, size: int) -> None:
        """So many bytes have come.

        :raises ProtocolError: more than were granted.
        """
        if size > self.left:
            raise ProtocolError("data", f"{size} bytes where {self.left} were granted")
        self.left -= size

    def consumed(self, size: int) -> int:
        """So many bytes are out of the way; returns what to grant now, 0: nothing yet."""
        self._owed += size
        if self._owed < GRANT:
            return 0
        grant, self._owed = self._owed, 0
        self.left += grant
        return grant
