"""The request that upgrades a connection, parsed strictly, and its answers (RFC 9112, RFC 9110 section 7.8)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MAX_HEAD: Final = 32 * 1024
MAX_FIELDS: Final = 100

_END: Final = b"\r\n\r\n"
_LINE: Final = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]{0,4096}) HTTP/1\.1")
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_REASONS: Final = {
    101: "Switching Protocols",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    426: "Upgrade Required",
    503: "Service Unavailable",
}


class BadRequest(Exception):
    """The client cannot be served; ``status`` is what it is told."""

    def __init__(self, status: int, why: str, fields: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(why)
        self.status, self.why, self.fields = status, why, fields


@dataclass(frozen=True, slots=True)
class Request:
    """A request's head; names of fields are in lower case."""

    method: str
    path: str
    fields: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        """The members of a field that is a list, over all its lines."""
        lines = [value for key, value in self.fields if key == name]
        return [member.strip() for line in lines for member in line.split(",") if member.strip()]

    def one(self, name: str) -> str:
        """The value of a field that is given at most once; empty where it is missing."""
        found = [value for key, value in self.fields if key == name]
        if len(found) > 1:
            raise BadRequest(400, f"{name} is given {len(found)} times")
        return found[0] if found else ""


def split(data: bytes) -> tuple[Request, bytes] | None:
    """The request and what follows it; ``None`` while its head is incomplete.

    :raises BadRequest: it is too long, or not a request, or has a body.
    """
    end = data.find(_END, 0, MAX_HEAD)
    if end < 0:
        if len(data) >= MAX_HEAD:
            raise BadRequest(400, "the request's head is too long")
        return None
    return parse(data[:end]), data[end + len(_END) :]


def parse(head: bytes) -> Request:
    """A request's head without its last empty line."""
    line, *rest = head.split(b"\r\n")
    found = _LINE.fullmatch(line)
    if found is None:
        raise BadRequest(400, "not an HTTP/1.1 request")
    if len(rest) > MAX_FIELDS:
        raise BadRequest(400, "too many fields")
    fields = []
    for text in rest:
        field = _FIELD.fullmatch(text)
        if field is None:
            raise BadRequest(400, "a field cannot be read")
        fields.append((field[1].decode().lower(), field[2].decode("latin-1").rstrip(" \t")))
    request = Request(found[1].decode(), found[2].decode().partition("?")[0], tuple(fields))
    if request.one("content-length") not in {"", "0"} or request.one("transfer-encoding"):
        raise BadRequest(400, "a body is not expected")
    if not request.one("host"):
        raise BadRequest(400, "host is missing")
    return request


def upgrade(request: Request) -> str:
    """Which protocol the client wants to go over to, in lower case."""
    if "upgrade" not in [member.lower() for member in request.all("connection")]:
        raise BadRequest(426, "this is for connections that are upgraded", (("Upgrade", "SPDY/3.1, websocket"),))
    wanted = [member.lower() for member in request.all("upgrade")]
    if len(wanted) != 1:
        raise BadRequest(400, "one protocol to upgrade to is expected")
    return wanted[0]


def answer(status: int, fields: Iterable[tuple[str, str]], body: str = "") -> bytes:
    """A response. 101 has no body; after any other the connection ends."""
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{name}: {value}" for name, value in fields)]
    if status != 101:
        lines += ["Content-Type: text/plain; charset=utf-8", f"Content-Length: {len(body.encode())}"]
        lines += ["Connection: close", "X-Content-Type-Options: nosniff"]
    return "\r\n".join([*lines, "", ""]).encode() + body.encode()
