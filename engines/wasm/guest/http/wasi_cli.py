"""``wasi:cli``, ``wasi:clocks`` and ``wasi:random`` (WASI 0.2), as a server's guest sees them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any, Final

from engines.wasm.guest.http.session import Exited, Refused, Session, Waits
from engines.wasm.guest.http.wasi_io import Empty, InputStream, OutputStream, Pollable, StreamEnded

_LINE_MAX: Final = 4096
_ROOM: Final = 64 * 1024
_RANDOM_MAX: Final = 64 * 1024


class Lines:
    """A standard stream of the process, shared by all instances: written to in whole lines, so that none are mixed."""

    __slots__ = ("_fd", "_held")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._held = bytearray()

    def room(self) -> int:
        return _ROOM

    def write(self, data: bytes) -> None:
        held = self._held
        held += data
        whole = held.rfind(b"\n") + 1 or (len(held) if len(held) > _LINE_MAX else 0)
        if whole:
            self._put(bytes(held[:whole]))
            del held[:whole]

    def flush(self) -> bool:
        """A line is passed on when it is whole, or with the instance's end."""
        return True

    def finish(self) -> None:
        """What is left goes out as a line of its own."""
        if self._held:
            # Whoever would read it may have gone: no request fails for that.
            with contextlib.suppress(StreamEnded):
                self._put(bytes(self._held) + b"\n")
            self._held.clear()

    def _put(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            raise StreamEnded from None

    def ready(self) -> bool:
        return True

    def await_in(self, waits: Waits) -> None:
        """Always ready."""


class Moment:
    """A point of the monotonic clock, in nanoseconds."""

    __slots__ = ("_nanoseconds",)

    def __init__(self, nanoseconds: int) -> None:
        self._nanoseconds = nanoseconds

    def ready(self) -> bool:
        return time.monotonic_ns() >= self._nanoseconds

    def await_in(self, waits: Waits) -> None:
        waits.at(self._nanoseconds / 1e9)


def _output(fd: int) -> Callable[[Session], OutputStream]:
    def get(session: Session) -> OutputStream:
        lines = session.output.get(fd)
        if lines is None:
            lines = session.output[fd] = Lines(fd)
        return OutputStream(lines)

    return get


def _exit(_session: Session, status: tuple[str, Any]) -> None:
    raise Exited(0 if status[0] == "ok" else 1)


def _exit_with_code(_session: Session, code: int) -> None:
    raise Exited(code)


def _wall_clock(_session: Session) -> tuple[int, int]:
    return divmod(time.time_ns(), 1_000_000_000)


def _random_bytes(_session: Session, length: int) -> bytes:
    if length > _RANDOM_MAX:
        raise Refused(f"the guest asked for more than {_RANDOM_MAX} random bytes at once")
    return os.urandom(length)


def _random_word(_session: Session) -> int:
    return int.from_bytes(os.urandom(8), "little")


FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "wasi:cli/environment#get-environment": lambda session: list(session.surroundings.env),
    "wasi:cli/environment#get-arguments": lambda session: list(session.surroundings.argv),
    "wasi:cli/environment#initial-cwd": lambda _session: None,
    "wasi:cli/exit#exit": _exit,
    "wasi:cli/exit#exit-with-code": _exit_with_code,
    "wasi:cli/stdin#get-stdin": lambda _session: InputStream(Empty()),
    "wasi:cli/stdout#get-stdout": _output(1),
    "wasi:cli/stderr#get-stderr": _output(2),
    "wasi:cli/terminal-stdin#get-terminal-stdin": lambda _session: None,
    "wasi:cli/terminal-stdout#get-terminal-stdout": lambda _session: None,
    "wasi:cli/terminal-stderr#get-terminal-stderr": lambda _session: None,
    "wasi:clocks/monotonic-clock#now": lambda _session: time.monotonic_ns(),
    "wasi:clocks/monotonic-clock#resolution": lambda _session: 1,
    "wasi:clocks/monotonic-clock#subscribe-instant": lambda _session, when: Pollable(Moment(when)),
    "wasi:clocks/monotonic-clock#subscribe-duration": lambda _session, span: Pollable(
        Moment(time.monotonic_ns() + span)
    ),
    "wasi:clocks/wall-clock#now": _wall_clock,
    "wasi:clocks/wall-clock#resolution": lambda _session: (0, 1),
    "wasi:random/random#get-random-bytes": _random_bytes,
    "wasi:random/random#get-random-u64": _random_word,
    "wasi:random/insecure#get-insecure-random-bytes": _random_bytes,
    "wasi:random/insecure#get-insecure-random-u64": _random_word,
    "wasi:random/insecure-seed#insecure-seed": lambda session: (_random_word(session), _random_word(session)),
}
