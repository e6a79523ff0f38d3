"""``wasi:io``: errors, pollables and streams (WASI 0.2). What streams are made of is elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from engines.wasm.guest.http import kinds
from engines.wasm.guest.http.session import Err, Refused, Session, Source, Waits

# A cell of 32 bytes for each byte: a guest that asks for more gets less, as it must expect anyway.
READ_MAX: Final = 64 * 1024
_FLUSHED_AT_ONCE_MAX: Final = 4096
_POLLED_MAX: Final = 10_000


class StreamFailed(Exception):
    """A stream broke: ``last-operation-failed``. ``http`` and ``file`` are what http-error-code and
    filesystem-error-code say of it."""

    def __init__(self, text: str, *, http: Any = None, file: Any = None) -> None:
        super().__init__(text)
        self.http = http
        self.file = file


class StreamEnded(Exception):
    """A stream is closed, in the direction in which it was used."""


class Inlet(Source, Protocol):
    """Where an input stream's bytes come from."""

    def read(self, length: int) -> bytes:
        """Up to ``length`` (at least 1) bytes; none when none are there now; StreamEnded, StreamFailed."""


class Outlet(Source, Protocol):
    """Where an output stream's bytes go; it is ready when it takes some."""

    def room(self) -> int:
        """How many bytes it takes now; StreamEnded, StreamFailed."""

    def write(self, data: bytes) -> None:
        """Take at most as many bytes as there is room for."""

    def flush(self) -> bool:
        """Push on what was taken; whether all of it is gone; StreamEnded, StreamFailed."""


class ErrorHandle:
    __slots__ = ("file", "http", "text")
    kind = kinds.ERROR

    def __init__(self, failure: StreamFailed) -> None:
        self.text = str(failure)
        self.http = failure.http
        self.file = failure.file

    def drop(self) -> None:
        """Nothing to let go."""


class Pollable:
    __slots__ = ("source",)
    kind = kinds.POLLABLE

    def __init__(self, source: Source) -> None:
        self.source = source

    def drop(self) -> None:
        """Nothing to let go."""


class InputStream:
    __slots__ = ("inlet",)
    kind = kinds.INPUT_STREAM

    def __init__(self, inlet: Inlet) -> None:
        self.inlet = inlet

    def drop(self) -> None:
        """What it reads from belongs to somebody else."""


class OutputStream:
    __slots__ = ("outlet",)
    kind = kinds.OUTPUT_STREAM

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet

    def drop(self) -> None:
        """What it writes to belongs to somebody else."""


class Empty:
    """An inlet that has ended."""

    def read(self, length: int) -> bytes:  # noqa: ARG002
        raise StreamEnded

    def ready(self) -> bool:
        return True

    def await_in(self, waits: Waits) -> None:
        """Always ready."""


def _stream(action: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a stream, with its failures in the interface's words (``stream-error``)."""

    def call(*arguments: Any) -> Any:
        try:
            return action(*arguments)
        except StreamEnded:
            raise Err("closed") from None
        except StreamFailed as failure:
            raise Err(("last-operation-failed", ErrorHandle(failure))) from None

    return call


def _read(_session: Session, stream: InputStream, length: int) -> bytes:
    return stream.inlet.read(min(length, READ_MAX)) if length else b""


def _blocking_read(session: Session, stream: InputStream, length: int) -> bytes:
    inlet = stream.inlet
    if not length:
        return b""
    while True:
        data = inlet.read(min(length, READ_MAX))
        if data:
            return data
        session.wait((inlet,))


def _skip(session: Session, stream: InputStream, length: int) -> int:
    return len(_read(session, stream, length))


def _blocking_skip(session: Session, stream: InputStream, length: int) -> int:
    return len(_blocking_read(session, stream, length))


def _subscribe_input(_session: Session, stream: InputStream) -> Pollable:
    return Pollable(stream.inlet)


def _check_write(_session: Session, stream: OutputStream) -> int:
    return stream.outlet.room()


def _write(_session: Session, stream: OutputStream, data: bytes) -> None:
    if len(data) > stream.outlet.room():
        raise Refused("the guest wrote more to a stream than check-write allowed")
    stream.outlet.write(data)


def _flush(_session: Session, stream: OutputStream) -> None:
    stream.outlet.flush()


def _blocking_flush(session: Session, stream: OutputStream) -> None:
    outlet = stream.outlet
    while not outlet.flush():
        session.wait((_Drained(outlet),))


def _write_all(session: Session, outlet: Outlet, data: bytes) -> None:
    while data:
        room = outlet.room()
        if room:
            outlet.write(data if room >= len(data) else data[:room])
            data = data[room:]
        else:
            session.wait((outlet,))


def _blocking_write_and_flush(session: Session, stream: OutputStream, data: bytes) -> None:
    if len(data) > _FLUSHED_AT_ONCE_MAX:
        raise Refused(f"blocking-write-and-flush takes at most {_FLUSHED_AT_ONCE_MAX} bytes")
    _write_all(session, stream.outlet, data)
    _blocking_flush(session, stream)


def _write_zeroes(session: Session, stream: OutputStream, length: int) -> None:
    if length > stream.outlet.room():
        raise Refused("the guest wrote more to a stream than check-write allowed")
    _write(session, stream, bytes(length))


def _blocking_write_zeroes_and_flush(session: Session, stream: OutputStream, length: int) -> None:
    if length > _FLUSHED_AT_ONCE_MAX:
        raise Refused(f"blocking-write-zeroes-and-flush takes at most {_FLUSHED_AT_ONCE_MAX} bytes")
    _blocking_write_and_flush(session, stream, bytes(length))


def _splice(_session: Session, stream: OutputStream, source: InputStream, length: int) -> int:
    room = min(length, stream.outlet.room(), READ_MAX * 4)
    if not room:
        return 0
    data = source.inlet.read(room)
    stream.outlet.write(data)
    return len(data)


def _blocking_splice(session: Session, stream: OutputStream, source: InputStream, length: int) -> int:
    if not length:
        return 0
    while True:
        if not stream.outlet.room():
            session.wait((stream.outlet,))
        count = _splice(session, stream, source, length)
        if count:
            return count
        session.wait((source.inlet,))


def _subscribe_output(_session: Session, stream: OutputStream) -> Pollable:
    return Pollable(stream.outlet)


class _Drained:
    """Ready when an outlet has passed everything on."""

    __slots__ = ("_outlet",)

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def ready(self) -> bool:
        return self._outlet.flush()

    def await_in(self, waits: Waits) -> None:
        self._outlet.await_in(waits)


def _poll(session: Session, pollables: list[Pollable]) -> list[int]:
    if not pollables:
        raise Refused("the guest polls nothing")
    if len(pollables) > _POLLED_MAX:
        raise Refused(f"the guest polls more than {_POLLED_MAX} things at once")
    return session.wait([pollable.source for pollable in pollables])


def _block(session: Session, pollable: Pollable) -> None:
    session.wait((pollable.source,))


def _ready(_session: Session, pollable: Pollable) -> bool:
    return pollable.source.ready()


def _to_debug_string(_session: Session, error: ErrorHandle) -> str:
    return error.text


_STREAMS: Final = "wasi:io/streams#[method]"

FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "wasi:io/error#[method]error.to-debug-string": _to_debug_string,
    "wasi:io/poll#poll": _poll,
    "wasi:io/poll#[method]pollable.block": _block,
    "wasi:io/poll#[method]pollable.ready": _ready,
    f"{_STREAMS}input-stream.read": _stream(_read),
    f"{_STREAMS}input-stream.blocking-read": _stream(_blocking_read),
    f"{_STREAMS}input-stream.skip": _stream(_skip),
    f"{_STREAMS}input-stream.blocking-skip": _stream(_blocking_skip),
    f"{_STREAMS}input-stream.subscribe": _subscribe_input,
    f"{_STREAMS}output-stream.check-write": _stream(_check_write),
    f"{_STREAMS}output-stream.write": _stream(_write),
    f"{_STREAMS}output-stream.flush": _stream(_flush),
    f"{_STREAMS}output-stream.blocking-flush": _stream(_blocking_flush),
    f"{_STREAMS}output-stream.blocking-write-and-flush": _stream(_blocking_write_and_flush),
    f"{_STREAMS}output-stream.write-zeroes": _stream(_write_zeroes),
    f"{_STREAMS}output-stream.blocking-write-zeroes-and-flush": _stream(_blocking_write_zeroes_and_flush),
    f"{_STREAMS}output-stream.splice": _stream(_splice),
    f"{_STREAMS}output-stream.blocking-splice": _stream(_blocking_splice),
    f"{_STREAMS}output-stream.subscribe": _subscribe_output,
}
