"""Talking to a monitor by HTTP over a unix socket: one connection, one request at a time, answers in JSON (RFC 9112).

A monitor is executed as nobody, and a guest may have taken it over: what it answers is bounded and checked.
"""

from __future__ import annotations

import array
import http.client
import io
import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError

_ANSWER_MAX: Final = 1 << 20
# Of an error's text, the part that a person is told.
_TOLD_MAX: Final = 1000


class Rest:
    """``name`` is the monitor's; ``connect`` makes a connection to it; ``base`` is in front of each path."""

    def __init__(self, name: str, connect: Callable[[], socket.socket], base: str = "") -> None:
        self._name, self._connect, self._base = name, connect, base
        self._connection: socket.socket | None = None

    def get(self, path: str, deadline: Deadline) -> Any:
        """What is there. :raises InternalError: as :meth:`call`."""
        return self.call("GET", path, None, deadline)

    def put(self, path: str, body: object, deadline: Deadline, *, fds: Sequence[int] = ()) -> Any:
        """Have it made. ``fds`` go along with the request. :raises InternalError: as :meth:`call`."""
        return self.call("PUT", path, body, deadline, fds=fds)

    def patch(self, path: str, body: object, deadline: Deadline) -> Any:
        """Have it changed. :raises InternalError: as :meth:`call`."""
        return self.call("PATCH", path, body, deadline)

    def call(self, method: str, path: str, body: object, deadline: Deadline, *, fds: Sequence[int] = ()) -> Any:
        """The answer to one request, ``None`` where it has no content.

        :raises InternalError: it refuses, with its reason; it went away, or says what is no answer.
        :raises DeadlineExceeded: it takes too long.
        """
        deadline.check(f"asking {self._name} for {path}")
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.settimeout(deadline.remaining())
            _send(self._connection, _request(method, self._base + path, body), fds)
            with http.client.HTTPResponse(_Source(self._connection, deadline), method=method) as answer:  # type: ignore[arg-type]
                answer.begin()
                content = answer.read(_ANSWER_MAX + 1)
                status, closes = answer.status, answer.will_close
        except TimeoutError:
            self.close()
            raise DeadlineExceeded(f"deadline passed while {self._name} was asked for {path}") from None
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise InternalError(f"{self._name} does not answer {method} {path}: {error}") from error
        if closes or len(content) > _ANSWER_MAX:
            self.close()
        if len(content) > _ANSWER_MAX:
            raise InternalError(f"{self._name} answers {method} {path} with more than {_ANSWER_MAX} bytes")
        if not 200 <= status < 300:
            raise InternalError(f"{self._name} refuses {method} {path} ({status}): {_reason(content)}")
        return self._decoded(method, path, content)

    def close(self) -> None:
        """Let go of the connection; the next request makes another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _decoded(self, method: str, path: str, content: bytes) -> Any:
        if not content:
            return None
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise InternalError(f"{self._name} answers {method} {path} with what is no JSON") from None


class _Reader(io.RawIOBase):
    """Whoever sends byte after byte has no more time than others."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._connection, self._deadline = connection, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline.remaining()
        if left == 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


@dataclass(frozen=True, slots=True)
class _Source:
    """What http.client reads from, as far as it asks."""

    connection: socket.socket
    deadline: Deadline

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self.connection, self.deadline))


def _request(method: str, path: str, body: object) -> bytes:
    content = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Accept: application/json"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join((*lines, "", "")).encode() + content


def _send(connection: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sent = connection.sendmsg([data], ancillary)
    # Even nothing cannot be sent to one that has answered and gone.
    if sent < len(data):
        connection.sendall(data[sent:])


def _reason(content: bytes) -> str:
    """What it says of a refusal: a member of an object, the members of a list, or text."""
    text = content.decode(errors="replace").strip()
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = text
    if isinstance(said, dict):
        said = said.get("fault_message", text)
    if isinstance(said, list):
        said = "; ".join(map(str, said))
    return str(said)[:_TOLD_MAX] or "without a reason"
