"""One request and its answer, between a client's connection and an instance of the guest."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from engines.wasm.guest.http import wire
from engines.wasm.guest.http.bodies import Intake, Sink
from engines.wasm.guest.http.session import Refused, Session
from engines.wasm.guest.http.transport import Broken, Transport
from engines.wasm.guest.http.wasi_http import OutgoingResponse

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_GRACE: Final = 1.0
_UNREAD_MAX: Final = 256 * 1024
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Time limits in seconds, and how much is served at once.

    ``answer`` is for a guest to begin its answer, from the last that it has read of its request on; ``head`` for a
    client to send a request's head, ``idle`` for a connection between two requests, ``silence`` for a client that has
    stopped sending or receiving within a message, ``linger`` for it to read an answer that ends its connection. Each
    request has a worker; ``lost`` is how many may be held by guests that cannot be interrupted.
    """

    answer: float = 60.0
    head: float = 15.0
    idle: float = 75.0
    silence: float = 30.0
    linger: float = 2.0
    connections: int = 4096
    workers: int = 256
    lost: int = 4


class Clock:
    """The Date header, made once a second."""

    __slots__ = ("_date", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._date = b""

    def date(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            at = time.gmtime(second)
            self._date = (
                f"{_DAYS[at.tm_wday]}, {at.tm_mday:02d} {_MONTHS[at.tm_mon - 1]} {at.tm_year:04d} "
                f"{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d} GMT"
            ).encode()
            self._second = second
        return self._date


class Exchange:
    """Takes the guest's answer to one request.

    The server's main thread may :meth:`give_up` on a guest that does not come back, while its worker is still in it:
    whoever claims the exchange first is the one who answers. ``lost`` is the server's own note of that.
    """

    __slots__ = (
        "_called",
        "_calls",
        "_claimed",
        "_clock",
        "_lock",
        "_stays",
        "began",
        "expires",
        "given_up",
        "intake",
        "limits",
        "lost",
        "request",
        "session",
        "sink",
        "transport",
    )

    def __init__(
        self,
        transport: Transport,
        request: wire.Request,
        rest: bytes,
        *,
        limits: Limits,
        clock: Clock,
        stays: Callable[[], bool],
    ) -> None:
        self.transport = transport
        self.request = request
        self.limits = limits
        self.expires = time.monotonic() + limits.answer
        self.session: Session | None = None
        body = wire.Body(request.framing, request.length)
        if rest:
            body.feed(rest)
        begin = self._go_on if request.expects_continue else None
        self.intake = Intake(transport, body, limits.silence, begin=begin, came=self._came)
        self.sink: Sink | None = None
        self.began = False
        self.given_up = False
        self.lost = False
        self._claimed = False
        self._calls = -1
        self._called = math.inf
        self._lock = threading.Lock()
        self._clock = clock
        self._stays = stays

    def begin(self, session: Session) -> None:
        """The guest is about to be asked."""
        self.session = session
        session.expires = self.expires

    def answer(self, session: Session, result: tuple[str, Any]) -> None:
        """``response-outparam.set``.

        :raises Refused: the guest's response cannot be sent, or it comes too late.
        """
        if result[0] == "err":
            raise Refused(f"the guest answered with an error: {_told(result[1])}")
        response: OutgoingResponse = result[1]
        framing, length = self._framing(response)
        body = response.body
        if framing is wire.Framing.LENGTH and body is not None and body.sink.holds > length:
            raise Refused(f"the guest's response has a body of more than its Content-Length, {length}")
        if not self._claim():
            raise Refused("the answer comes too late")
        sink = self.sink = Sink() if body is None else body.sink
        sink.attach(self.transport, self._head(response), self.limits.silence, framing, length)
        session.expires = None
        if body is None:
            sink.finish()
        elif sink.finished:
            sink.end(sink.trailers)
        session.movers.append(sink)

    @property
    def answered(self) -> bool:
        """Whether the guest, or somebody in its place, has an answer."""
        return self._claimed

    def refuse(self, status: int) -> bool:
        """Answer in the guest's place, if nothing of its own answer has gone out; whether that was so."""
        sink = self.sink
        if self.given_up or (sink is not None and (sink.started or sink.failed)) or not (self._claim() or sink):
            return False
        self._plain(status)
        return True

    def is_stuck(self, now: float) -> bool:
        """Whether the guest has to be given up: asked from time to time by another thread while it runs.

        One that waits in a host call notices itself that its time is over; this is for one that does not come out.
        """
        session = self.session
        if self.given_up or session is None:
            return False
        if not self._claimed:
            return now > self.expires + _GRACE
        if session.waiting or session.calls != self._calls:
            self._calls, self._called = session.calls, now
            return False
        return now > self._called + self.limits.answer

    def give_up(self, status: int) -> bool:
        """Nobody waits for the guest any more; from another thread while it runs. False if it answered just now."""
        if self._claim():
            self._plain(status)
        elif time.monotonic() <= self._called + self.limits.answer:
            return False
        self.given_up = True
        return True

    def settle(self, session: Session) -> bool:
        """The guest has returned: bring its answer to an end; whether the connection can take another request."""
        sink = self.sink
        if sink is None or self.given_up:
            return False
        if not sink.finished:
            sink.abandon()
        session.movers.clear()
        session.expires = None
        if sink.failed or not sink.whole:
            # A client can tell: the connection ends before the message does.
            return False
        while sink.move():
            session.wait((_Flushed(sink),))
        if sink.failed or not sink.sent:
            return False
        # What the client still sends of a body that nobody wants is read as far as it has come, and no further.
        return self.keeps and self.intake.skip(_UNREAD_MAX) and self.intake.failure is None

    @property
    def keeps(self) -> bool:
        """Whether the answer leaves the connection open."""
        sink = self.sink
        if not (self.request.keep_alive and self._stays()):
            return False
        if sink is not None and sink.framing is wire.Framing.CLOSE:
            return False
        # Whoever was never told to go on may or may not send the body: nobody can tell what comes next.
        return not self.request.expects_continue or self.began or self.intake.done

    def _claim(self) -> bool:
        with self._lock:
            claimed, self._claimed = self._claimed, True
        return not claimed

    def _came(self) -> None:
        """A guest that answers when it has read everything has its time from the last of it on."""
        if not self._claimed and self.session is not None:
            self.expires = self.session.expires = time.monotonic() + self.limits.answer

    def _go_on(self) -> None:
        self.began = True
        try:
            self.transport.send(_CONTINUE)
        except Broken:
            return

    def _framing(self, response: OutgoingResponse) -> tuple[wire.Framing, int]:
        lengths = [value for name, value in response.fields.entries if name == "content-length"]
        if len(lengths) > 1 or (lengths and not lengths[0].isdigit()) or (lengths and len(lengths[0]) > 18):
            raise Refused("the guest's response has a Content-Length that is no number, or two of them")
        if self.request.method == "HEAD" or response.status in (204, 304):
            return wire.Framing.NONE, 0
        if lengths:
            return wire.Framing.LENGTH, int(lengths[0])
        return (wire.Framing.CHUNKED if self.request.minor else wire.Framing.CLOSE), 0

    def _head(self, response: OutgoingResponse) -> Callable[[wire.Framing, int], bytes]:
        def head(framing: wire.Framing, length: int) -> bytes:
            entries = response.fields.entries
            if response.status == 204:
                entries = [entry for entry in entries if entry[0] != "content-length"]
            names = [name for name, _ in entries]
            parts = [wire.status_line(response.status)]
            if entries:
                parts.append(wire.encode_headers(entries))
            if "date" not in names:
                parts.append(b"date: %b\r\n" % self._clock.date())
            if framing is wire.Framing.CHUNKED:
                parts.append(b"transfer-encoding: chunked\r\n")
            elif framing is wire.Framing.LENGTH and "content-length" not in names:
                parts.append(b"content-length: %d\r\n" % length)
            if framing is wire.Framing.CLOSE or not self.keeps:
                parts.append(b"connection: close\r\n")
            elif not self.request.minor:
                parts.append(b"connection: keep-alive\r\n")
            parts.append(b"\r\n")
            return b"".join(parts)

        return head

    def _plain(self, status: int) -> None:
        try:
            self.transport.send(plain(status, self._clock))
        except Broken:
            return


class _Flushed:
    """Ready when a sink has nothing left."""

    __slots__ = ("_sink",)

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def ready(self) -> bool:
        return not self._sink.move()

    def await_in(self, waits: Any) -> None:
        self._sink.await_in(waits)


def plain(status: int, clock: Clock) -> bytes:
    """An answer without a body, after which the connection ends."""
    return wire.status_line(status) + b"date: %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % clock.date()


def _told(error: Any) -> str:
    """An error-code in a line of the log."""
    if isinstance(error, tuple):
        return f"{error[0]} {error[1]}" if error[1] is not None else str(error[0])
    return str(error)
