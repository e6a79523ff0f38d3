"""HTTP/1.1 messages as bytes, strictly (RFC 9112): no I/O, and nothing is guessed.

Where two readers could differ about where a message ends, it is refused: that is what request smuggling is made of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Final

import msgspec

HEAD_MAX: Final = 64 * 1024
HEADERS_MAX: Final = 256
TRAILERS_MAX: Final = 16 * 1024
_CHUNK_LINE_MAX: Final = 1024
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# Possessive, as is what comes before it: a long line that is wrong at its end is read once, not once for each space.
_VALUE: Final = rb"[\t\x20-\x7e\x80-\xff]*+"
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/1\.([01])")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: " + _VALUE + rb")?")
_ANY_VERSION: Final = re.compile(_TOKEN + rb" [\x21-\x7e]+ HTTP/[0-9]\.[0-9]")
# Possessive: what has matched is never tried in another way, so that no text takes longer than its length.
_LINES: Final = re.compile(rb"(?:" + _TOKEN + rb"+:" + _VALUE + rb"\r\n)*+")
_LINE: Final = re.compile(rb"([^:]++):[ \t]*+([^\r]*+)\r\n")
_NAME: Final = re.compile(_TOKEN.decode())
_VALUE_ALONE: Final = re.compile(_VALUE)
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*+(?:;" + _VALUE + rb")?\r\n")
_AUTHORITY: Final = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+;=%]++|\[[0-9A-Fa-f:.%]+\])*+(?::[0-9]{0,5})?")
_ABSOLUTE: Final = re.compile(rb"(https?)://([^/?#]+)([/?].*)?", re.IGNORECASE)
_STATUS_LINES: Final = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus}

# What says how a message is to be read.
_SPECIAL: Final = frozenset({"connection", "content-length", "expect", "host", "transfer-encoding"})
# What belongs to a connection and not to a message: a guest neither sees nor sets it.
CONNECTION_HEADERS: Final = frozenset(
    {
        "connection",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
    }
)

Headers = list[tuple[str, bytes]]


class Malformed(ValueError):
    """A message that is no HTTP/1.1, or past a limit; ``status`` is what its sender is told."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Framing(Enum):
    """How the end of a body is found."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request's head, made for each of them (a frozen dataclass takes nine times as long).

    Header names are in lower case; ``length`` counts with ``Framing.LENGTH`` alone.
    """

    method: str
    path: str
    authority: str
    minor: int
    headers: Headers
    framing: Framing
    length: int
    keep_alive: bool
    expects_continue: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response's head."""

    status: int
    headers: Headers
    framing: Framing
    length: int
    keep_alive: bool


def head_end(data: bytes | bytearray, searched: int = 0) -> int:
    """Where the head ends, behind its empty line; 0 when it is not whole yet.

    :raises Malformed: it is longer than a head may be.
    """
    end = data.find(b"\r\n\r\n", max(0, searched - 3))
    if end > HEAD_MAX or (end < 0 and len(data) > HEAD_MAX):
        raise Malformed(431, f"a head of more than {HEAD_MAX} bytes")
    return end + 4 if end >= 0 else 0


def parse_request(head: bytes) -> Request:
    """A whole head, with its empty line.

    :raises Malformed: with the status for the client.
    """
    first, _, rest = head.partition(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        if _ANY_VERSION.fullmatch(first):
            raise Malformed(505, "another version of HTTP")
        raise Malformed(400, "no request line")
    method, target, minor = line[1].decode(), line[2], int(line[3])
    headers = _headers(rest[:-2])
    fields = _Special(headers)
    if method == "CONNECT":
        raise Malformed(501, "CONNECT")
    hosts = fields.host
    if len(hosts) > 1 or (minor and not hosts):
        raise Malformed(400, "an HTTP/1.1 request has one Host")
    authority = hosts[0] if hosts else b""
    if not _AUTHORITY.fullmatch(authority):
        raise Malformed(400, "a Host that is none")
    if target.startswith(b"/"):
        path = target
    elif (absolute := _ABSOLUTE.fullmatch(target)) is not None and _AUTHORITY.fullmatch(absolute[2]):
        authority, path = absolute[2], absolute[3] or b"/"
        path = path if path.startswith(b"/") else b"/" + path
    elif target == b"*" and method == "OPTIONS":
        path = target
    else:
        raise Malformed(400, "a target that is no path")
    framing, length = Framing.NONE, 0
    if fields.coding:
        if fields.length or not minor:
            raise Malformed(400, "a Transfer-Encoding beside a Content-Length, or in HTTP/1.0")
        if [coding.lower() for coding in fields.coding] != [b"chunked"]:
            raise Malformed(501, "a Transfer-Encoding other than chunked")
        framing = Framing.CHUNKED
    elif fields.length:
        length = _length(fields.length)
        framing = Framing.LENGTH if length else Framing.NONE
    if fields.expect and fields.expect != [b"100-continue"]:
        raise Malformed(417, "an unknown Expect")
    return Request(
        method=method,
        path=path.decode(),
        authority=authority.decode(),
        minor=minor,
        headers=headers,
        framing=framing,
        length=length,
        keep_alive=fields.keeps_alive(minor),
        expects_continue=bool(fields.expect) and minor == 1,
    )


def parse_response(head: bytes, method: str) -> Response:
    """A whole head of an answer to a request with ``method``.

    :raises Malformed: it is none.
    """
    first, _, rest = head.partition(b"\r\n")
    line = _STATUS_LINE.fullmatch(first)
    if line is None:
        raise Malformed(502, "no status line")
    minor, status = int(line[1]), int(line[2])
    headers = _headers(rest[:-2])
    fields = _Special(headers)
    framing, length = Framing.CLOSE, 0
    if fields.coding and fields.length:
        raise Malformed(502, "a Transfer-Encoding beside a Content-Length")
    if method == "HEAD" or status < 200 or status in (204, 304):
        framing = Framing.NONE
    elif fields.coding:
        if [coding.lower() for coding in fields.coding] != [b"chunked"]:
            raise Malformed(502, "a Transfer-Encoding other than chunked")
        framing = Framing.CHUNKED
    elif fields.length:
        length = _length(fields.length)
        framing = Framing.LENGTH if length else Framing.NONE
    return Response(
        status=status,
        headers=headers,
        framing=framing,
        length=length,
        keep_alive=fields.keeps_alive(minor) and framing is not Framing.CLOSE,
    )


def _headers(lines: bytes) -> Headers:
    """Of whole lines, without the empty one."""
    if lines.count(b"\n") > HEADERS_MAX:
        raise Malformed(431, f"more than {HEADERS_MAX} headers")
    if not _LINES.fullmatch(lines):
        raise Malformed(400, "a header that is none")
    return [(name.decode().lower(), value.rstrip(b" \t")) for name, value in _LINE.findall(lines)]


class _Special:
    """The values of the headers that say how a message is to be read."""

    __slots__ = ("coding", "connection", "expect", "host", "length")

    def __init__(self, headers: Headers) -> None:
        found: dict[str, list[bytes]] = {}
        for name, value in headers:
            if name in _SPECIAL:
                found.setdefault(name, []).append(value)
        self.host = found.get("host", [])
        self.length = found.get("content-length", [])
        self.coding = found.get("transfer-encoding", [])
        self.connection = found.get("connection", [])
        self.expect = [value.lower() for value in found["expect"]] if "expect" in found else []

    def keeps_alive(self, minor: int) -> bool:
        if not self.connection:
            return minor == 1
        told = b",".join(self.connection).lower().replace(b" ", b"").replace(b"\t", b"").split(b",")
        return b"close" not in told and (minor == 1 or b"keep-alive" in told)


def _length(values: list[bytes]) -> int:
    if len(values) > 1 or not _LENGTH.fullmatch(values[0]):
        raise Malformed(400, "a Content-Length that is no number, or two of them")
    return int(values[0])


class Body:
    """A body as it comes in: bytes of the connection in, bytes of the body out."""

    __slots__ = ("_buffer", "_framing", "_left", "_stage", "done", "trailers")

    def __init__(self, framing: Framing, length: int = 0) -> None:
        self._framing = framing
        self._left = length
        self._buffer = bytearray()
        # Of a chunked body: "size", "data", "end" (the line end behind a chunk), "trailers".
        self._stage = "size"
        self.done = framing is Framing.NONE
        self.trailers: Headers | None = None

    def feed(self, data: bytes) -> None:
        """More bytes have come."""
        self._buffer += data

    def end(self) -> None:
        """No more bytes will come.

        :raises Malformed: the body is not whole.
        """
        if self._framing is Framing.CLOSE:
            self._framing, self._left = Framing.LENGTH, len(self._buffer)
            self.done = not self._left
        elif not self.done:
            raise Malformed(400, "the connection ended within a body")

    def take(self, limit: int) -> bytes:
        """Up to ``limit`` bytes of the body; none when more must come first, or when it is ``done``.

        :raises Malformed: what came is no body of this framing.
        """
        if self.done:
            return b""
        if self._framing is Framing.CHUNKED:
            return self._take_chunked(limit)
        count = min(limit, len(self._buffer))
        if self._framing is Framing.LENGTH:
            count = min(count, self._left)
            self._left -= count
            self.done = not self._left
        return self._cut(count)

    def rest(self) -> bytes:
        """What came behind the body."""
        return self._cut(len(self._buffer)) if self.done else b""

    @property
    def waiting(self) -> bool:
        """Whether there may be something to take without more coming."""
        return bool(self._buffer)

    def _cut(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _take_chunked(self, limit: int) -> bytes:
        taken: list[bytes] = []
        while limit:
            if self._stage == "data":
                data = self._cut(min(limit, self._left))
                if not data:
                    break
                taken.append(data)
                limit -= len(data)
                self._left -= len(data)
                if not self._left:
                    self._stage = "end"
            elif not self._step():
                break
        # Read past the last chunk's end, so that whoever has all of the body also knows it.
        while self._stage in ("end", "size", "trailers") and not self.done and self._step():
            pass
        return b"".join(taken)

    def _step(self) -> bool:
        """Take one line of the framing; whether it was there."""
        if self._stage == "end":
            if len(self._buffer) < 2:
                return False
            if self._cut(2) != b"\r\n":
                raise Malformed(400, "a chunk longer than it says")
            self._stage = "size"
            return True
        if self._stage == "size":
            return self._size()
        return self._stage == "trailers" and self._trailers()

    def _size(self) -> bool:
        end = self._buffer.find(b"\n", 0, _CHUNK_LINE_MAX)
        if end < 0:
            if len(self._buffer) >= _CHUNK_LINE_MAX:
                raise Malformed(400, "a chunk's size that does not end")
            return False
        line = _CHUNK_LINE.fullmatch(self._cut(end + 1))
        if line is None:
            raise Malformed(400, "a chunk's size that is none")
        self._left = int(line[1], 16)
        self._stage = "data" if self._left else "trailers"
        return True

    def _trailers(self) -> bool:
        if self._buffer.startswith(b"\r\n"):
            self._cut(2)
            self.done = True
            return False
        end = self._buffer.find(b"\r\n\r\n", 0, TRAILERS_MAX)
        if end < 0:
            if len(self._buffer) >= TRAILERS_MAX:
                raise Malformed(431, f"trailers of more than {TRAILERS_MAX} bytes")
            return False
        self.trailers = _headers(self._cut(end + 4)[:-2])
        self.done = True
        return False


def is_name(name: str) -> bool:
    """Whether it can be a header's name."""
    return _NAME.fullmatch(name) is not None


def is_value(value: bytes) -> bool:
    """Whether it can be a header's value."""
    return _VALUE_ALONE.fullmatch(value) is not None


def status_line(status: int) -> bytes:
    """The first line of a response."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def encode_headers(headers: Iterable[tuple[str, bytes]]) -> bytes:
    """Header lines, without the empty one."""
    return b"".join([b"%b: %b\r\n" % (name.encode(), value) for name, value in headers])


def chunk(data: bytes) -> bytes:
    """A chunk; ``data`` is not empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk(trailers: Headers | None = None) -> bytes:
    """The end of a chunked body."""
    return b"0\r\n" + encode_headers(trailers or ()) + b"\r\n"
