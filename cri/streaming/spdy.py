"""SPDY/3.1 without I/O: bytes in, events out (draft-mbelshe-httpbis-spdy-00, with 3.1's window of the session).

As Kubernetes' clients speak it: nobody keeps windows, so WINDOW_UPDATE and SETTINGS are read and have no effect, and
TCP alone holds a sender back. Data is passed on as it arrives; nothing of a stream is buffered here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

VERSION: Final = 3
FIN: Final = 0x01
UNIDIRECTIONAL: Final = 0x02
MAX_CONTROL_BYTES: Final = 64 * 1024
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 100
MAX_STREAMS: Final = 1024
DATA_CHUNK: Final = 32 * 1024

_HEAD: Final = struct.Struct(">II")
_WORD: Final = struct.Struct(">I")
_STREAM_MASK: Final = 0x7FFFFFFF

# Section 2.6.10.1: words with their lengths, then text.
_WORDS: Final = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status|200 OK|version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_TEXT: Final = (
    b"100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    b"203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
    b"404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    b"Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    b"chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,"
    b"publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _words() -> Iterator[str]:
    before, phrase, after = _WORDS.split("|")
    yield from before.split()
    yield phrase
    yield from after.split()


DICTIONARY: Final = b"".join(_WORD.pack(len(word)) + word.encode() for word in _words()) + _TEXT
"""What both ends' compressors start from."""


class FrameType(IntEnum):
    """Control frames of section 2.6."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class Status(IntEnum):
    """Why a stream is reset (section 2.6.3)."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    CANCEL = 5
    INTERNAL_ERROR = 6
    STREAM_ALREADY_CLOSED = 9


class ProtocolError(Exception):
    """The peer does not speak SPDY/3.1; the session is over."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer opened a stream; names of headers are in lower case."""

    stream: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The peer answered the opening of a stream of ours."""

    stream: int


@dataclass(frozen=True, slots=True)
class Data:
    """Some bytes of a stream; never empty."""

    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The peer sends nothing more on this stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The peer gave the stream up, in both directions."""

    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class GoneAway:
    """The peer opens no more streams."""


Event = Opened | Accepted | Data | Ended | Reset | GoneAway

_NEED: Final[Mapping[FrameType, int]] = {
    FrameType.SYN_STREAM: 10,
    FrameType.SYN_REPLY: 4,
    FrameType.RST_STREAM: 8,
    FrameType.SETTINGS: 4,
    FrameType.PING: 4,
    FrameType.GOAWAY: 8,
    FrameType.HEADERS: 4,
    FrameType.WINDOW_UPDATE: 8,
}


class _Stream:
    """Which directions are still open."""

    __slots__ = ("ours", "theirs")

    def __init__(self, *, ours: bool = True, theirs: bool = True) -> None:
        self.ours, self.theirs = ours, theirs


class Connection:
    """One end of a session. What :meth:`take` returns has to be sent, in that order."""

    def __init__(self, *, client: bool = False) -> None:
        self._client = client
        self._next = 1 if client else 2
        self._last = 0
        self._in = bytearray()
        self._out = bytearray()
        self._data: tuple[int, int] | None = None
        self._fin = False
        self._streams: dict[int, _Stream] = {}
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    def take(self) -> bytes:
        """What is to be sent now."""
        found = bytes(self._out)
        self._out.clear()
        return found

    # -- what we say

    def open(self, headers: Mapping[str, str], *, fin: bool = False) -> int:
        """Open a stream; returns its number."""
        stream = self._next
        self._next += 2
        self._streams[stream] = _Stream(ours=not fin)
        body = struct.pack(">IIBB", stream, 0, 0, 0) + self._compressed(headers)
        self._control(FrameType.SYN_STREAM, body, FIN if fin else 0)
        return stream

    def reply(self, stream: int) -> None:
        """Accept a stream the peer opened."""
        if stream in self._streams:
            self._control(FrameType.SYN_REPLY, _WORD.pack(stream) + self._compressed({}))

    def send(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Send on a stream; on one that is over in our direction it is dropped."""
        state = self._streams.get(stream)
        if state is None or not state.ours or not (data or fin):
            return
        for start in range(0, len(data) or 1, DATA_CHUNK):
            piece = data[start : start + DATA_CHUNK]
            last = fin and start + DATA_CHUNK >= len(data)
            self._out += _HEAD.pack(stream, (FIN if last else 0) << 24 | len(piece)) + piece
        if fin:
            state.ours = False
            self._forget(stream)

    def reset(self, stream: int, status: Status) -> None:
        """Give a stream up."""
        self._streams.pop(stream, None)
        self._control(FrameType.RST_STREAM, struct.pack(">II", stream, status))

    def ping(self, number: int) -> None:
        """Ask for a sign of life."""
        self._control(FrameType.PING, _WORD.pack(number))

    def goaway(self, status: int = 0) -> None:
        """Announce the end."""
        self._control(FrameType.GOAWAY, struct.pack(">II", self._last, status))

    def _control(self, kind: FrameType, body: bytes, flags: int = 0) -> None:
        self._out += _HEAD.pack(0x80000000 | VERSION << 16 | kind, flags << 24 | len(body)) + body

    def _compressed(self, headers: Mapping[str, str]) -> bytes:
        plain = _WORD.pack(len(headers))
        for name, value in headers.items():
            for text in (name.lower().encode(), value.encode()):
                plain += _WORD.pack(len(text)) + text
        return self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    # -- what we hear

    def receive(self, data: bytes) -> list[Event]:
        """What ``data``, the next bytes of the peer, means. After a ProtocolError the session cannot go on."""
        self._in += data
        events: list[Event] = []
        while self._data is not None or len(self._in) >= _HEAD.size:
            if self._data is not None:
                if not self._pass_on(*self._data, events):
                    break
                continue
            first, second = _HEAD.unpack_from(self._in)
            flags, length = second >> 24, second & 0xFFFFFF
            if not first & 0x80000000:
                del self._in[: _HEAD.size]
                self._begin_data(first, flags, length)
                continue
            if length > MAX_CONTROL_BYTES:
                raise ProtocolError(f"a control frame of {length} bytes")
            if len(self._in) < _HEAD.size + length:
                break
            body = bytes(self._in[_HEAD.size : _HEAD.size + length])
            del self._in[: _HEAD.size + length]
            if first >> 16 & 0x7FFF != VERSION:
                raise ProtocolError(f"version {first >> 16 & 0x7FFF}, not {VERSION}")
            events += self._heard(first & 0xFFFF, flags, body)
        return events

    def _begin_data(self, stream: int, flags: int, length: int) -> None:
        state = self._streams.get(stream)
        if state is None and (stream == 0 or (stream > self._last and stream % 2 != self._client)):
            raise ProtocolError(f"data on stream {stream}, which was never opened")
        if state is not None and not state.theirs:
            self.reset(stream, Status.STREAM_ALREADY_CLOSED)
        self._data, self._fin = (stream, length), bool(flags & FIN)

    def _pass_on(self, stream: int, left: int, events: list[Event]) -> bool:
        """Hand over what has arrived of a data frame; whether the frame is complete."""
        state = self._streams.get(stream)
        piece = bytes(self._in[:left])
        del self._in[:left]
        if piece and state is not None and state.theirs:
            events.append(Data(stream, piece))
        left -= len(piece)
        if left:
            self._data = (stream, left)
            return False
        self._data = None
        if self._fin and state is not None and state.theirs:
            self._end(stream, state, events)
        return True

    def _end(self, stream: int, state: _Stream, events: list[Event]) -> None:
        state.theirs = False
        self._forget(stream)
        events.append(Ended(stream))

    def _forget(self, stream: int) -> None:
        state = self._streams.get(stream)
        if state is not None and not state.ours and not state.theirs:
            del self._streams[stream]

    def _heard(self, number: int, flags: int, body: bytes) -> list[Event]:
        try:
            kind = FrameType(number)
        except ValueError:
            return []  # section 2.2: unknown control frames are ignored
        if len(body) < _NEED[kind]:
            raise ProtocolError(f"{kind.name} of {len(body)} bytes")
        stream = _WORD.unpack_from(body)[0] & _STREAM_MASK
        match kind:
            case FrameType.SYN_STREAM:
                return self._opened(stream, flags, self._headers(body[10:]))
            case FrameType.SYN_REPLY | FrameType.HEADERS:
                self._headers(body[4:])
                return self._answered(stream, kind, flags)
            case FrameType.RST_STREAM:
                known = self._streams.pop(stream, None)
                return [] if known is None else [Reset(stream, _WORD.unpack_from(body, 4)[0])]
            case FrameType.PING:
                # A client's pings are odd: the answer to one of ours is not answered again.
                if stream % 2 != self._client:
                    self._control(FrameType.PING, body[:4])
            case FrameType.GOAWAY:
                return [GoneAway()]
        return []

    def _opened(self, stream: int, flags: int, headers: Mapping[str, str]) -> list[Event]:
        if stream <= self._last or stream % 2 == self._client:
            raise ProtocolError(f"stream {stream} opened after {self._last}")
        self._last = stream
        if len(self._streams) >= MAX_STREAMS:
            self.reset(stream, Status.REFUSED_STREAM)
            return []
        state = self._streams[stream] = _Stream(ours=not flags & UNIDIRECTIONAL)
        events: list[Event] = [Opened(stream, headers)]
        if flags & FIN:
            self._end(stream, state, events)
        return events

    def _answered(self, stream: int, kind: FrameType, flags: int) -> list[Event]:
        state = self._streams.get(stream)
        if state is None or not state.theirs:
            return []
        events: list[Event] = [Accepted(stream)] if kind is FrameType.SYN_REPLY else []
        if flags & FIN:
            self._end(stream, state, events)
        return events

    def _headers(self, block: bytes) -> dict[str, str]:
        try:
            plain = self._inflate.decompress(block, MAX_HEADER_BYTES)
        except zlib.error as error:
            raise ProtocolError(f"headers: {error}") from None
        if self._inflate.unconsumed_tail:
            raise ProtocolError(f"headers of more than {MAX_HEADER_BYTES} bytes")
        return parse_headers(plain)


def parse_headers(plain: bytes) -> dict[str, str]:
    """A header block once it is inflated (section 2.6.10)."""
    view, found = memoryview(plain), dict[str, str]()

    def word() -> int:
        nonlocal view
        if len(view) < _WORD.size:
            raise ProtocolError("headers end early")
        value: int = _WORD.unpack_from(view)[0]
        view = view[_WORD.size :]
        return value

    def text() -> str:
        nonlocal view
        length = word()
        if length > len(view):
            raise ProtocolError("headers end early")
        value, view = bytes(view[:length]), view[length:]
        return value.decode("latin-1")

    count = word()
    if count > MAX_HEADERS:
        raise ProtocolError(f"{count} headers")
    for _ in range(count):
        name = text().lower()
        if not name or name in found:
            raise ProtocolError(f"header {name!r} is empty or given twice")
        found[name] = text()
    if view:
        raise ProtocolError("headers go on after their end")
    return found
