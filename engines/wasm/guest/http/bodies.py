"""Bodies on their way: :class:`Intake` from a connection to the guest, :class:`Sink` from the guest to a connection.

Both hold a bounded number of bytes. A guest that does not read makes its client wait, and a client that does not read
makes its guest wait: nothing is gathered in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from engines.wasm.guest.http import wire
from engines.wasm.guest.http.session import Waits
from engines.wasm.guest.http.transport import Broken, Transport
from engines.wasm.guest.http.wasi_io import StreamEnded, StreamFailed

BUFFER_MAX: Final = 256 * 1024
_RECEIVE: Final = 64 * 1024


class Intake:
    """A body that comes in. An inlet for the guest's stream.

    ``idle_max`` (seconds) is how long its sender may be silent while it is read; ``begin`` is called before the first
    wait for more (``100 Continue``), ``came`` when some has come, ``over`` when nobody wants more.
    """

    __slots__ = ("_ahead", "_begin", "_body", "_came", "_failure", "_idle_max", "_over", "_since", "_transport")

    def __init__(
        self,
        transport: Transport,
        body: wire.Body,
        idle_max: float,
        *,
        begin: Callable[[], None] | None = None,
        came: Callable[[], None] | None = None,
        over: Callable[[], None] | None = None,
    ) -> None:
        self._transport = transport
        self._body = body
        self._idle_max = idle_max
        self._begin = begin
        self._came = came
        self._over = over
        self._ahead = b""
        # Since when there has been nothing to read, 0 while there is.
        self._since = 0.0
        self._failure: StreamFailed | None = None

    @property
    def done(self) -> bool:
        """Whether all of it has been taken."""
        return self._body.done and not self._ahead

    @property
    def failure(self) -> StreamFailed | None:
        """Why it will never be whole."""
        return self._failure

    @property
    def trailers(self) -> wire.Headers | None:
        return self._body.trailers

    def rest(self) -> bytes:
        """What came behind it."""
        return self._body.rest()

    def read(self, length: int) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead[:length], self._ahead[length:]
            return data
        return self._pull(length)

    def ready(self) -> bool:
        if self._ahead or self._failure is not None:
            return True
        try:
            self._ahead = self._pull(_RECEIVE)
        except (StreamEnded, StreamFailed):
            return True
        return bool(self._ahead)

    def await_in(self, waits: Waits) -> None:
        self._transport.await_receive(waits)
        if self._since:
            waits.at(self._since + self._idle_max)

    def skip(self, limit: int | None = None) -> bool:
        """Drop what has come, up to about ``limit`` bytes; whether the body is over, well or not."""
        self._ahead = b""
        if self._body.done:
            return True
        dropped = 0
        try:
            while (limit is None or dropped < limit) and (data := self._pull(_RECEIVE)):
                dropped += len(data)
        except (StreamEnded, StreamFailed):
            return True
        return False

    def close(self) -> None:
        """Nobody wants more of it. Again is no error."""
        if self._over is not None:
            over, self._over = self._over, None
            over()

    def _pull(self, length: int) -> bytes:
        if self._failure is not None:
            raise self._failure
        body = self._body
        try:
            data = body.take(length)
            while not data and not body.done:
                came = self._transport.receive(_RECEIVE)
                if came is None:
                    self._nothing()
                    return b""
                if came:
                    body.feed(came)
                else:
                    body.end()
                self._since = 0.0
                if self._came is not None:
                    self._came()
                data = body.take(length)
        except Broken as error:
            raise self._fail(str(error), "connection-terminated") from None
        except wire.Malformed as error:
            raise self._fail(str(error), "HTTP-protocol-error") from None
        if data:
            return data
        raise StreamEnded

    def _nothing(self) -> None:
        if self._begin is not None:
            begin, self._begin = self._begin, None
            begin()
        if not self._since:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > self._idle_max:
            raise self._fail("its sender has been silent for too long", "connection-read-timeout")

    def _fail(self, text: str, code: Any) -> StreamFailed:
        self._failure = StreamFailed(text, http=code)
        return self._failure


Head = Callable[[wire.Framing, int], bytes]


class Sink:
    """A message that goes out: its head, made when it is known how the body ends, and its body. An outlet, and a mover.

    Until :meth:`attach` it has no connection and takes what fits into the buffer.
    """

    __slots__ = (
        "_corked",
        "_failure",
        "_framing",
        "_head",
        "_held",
        "_holds",
        "_left",
        "_out",
        "_since",
        "_stall_max",
        "_transport",
        "abandoned",
        "finished",
        "started",
        "too_much",
        "trailers",
        "whole",
    )

    def __init__(self) -> None:
        self._stall_max = 0.0
        self._transport: Transport | None = None
        self._head: Head | None = None
        self._framing = wire.Framing.CHUNKED
        self._left = 0
        # The body's bytes before the head is made, and everything behind it.
        self._held: list[bytes] = []
        self._holds = 0
        self._out = bytearray()
        self._since = 0.0
        # The last that was sent may be held back by the kernel.
        self._corked = False
        self._failure = ""
        self.started = False
        self.finished = False
        self.too_much = False
        self.abandoned = False
        self.whole = False
        self.trailers: wire.Headers | None = None

    def attach(
        self, transport: Transport, head: Head, stall_max: float, framing: wire.Framing, length: int = 0
    ) -> None:
        """Where it goes, and how the body's end is told: NONE drops the body, LENGTH is its sender's word.

        ``stall_max`` (seconds) is how long its receiver may take nothing.
        """
        self._stall_max = stall_max
        self._transport, self._head, self._framing, self._left = transport, head, framing, length
        self._since = time.monotonic()
        if framing is wire.Framing.LENGTH and self._holds > length:
            # Not a byte of it goes: what is behind a message's end would be taken for the next message.
            self.too_much = True
            self.fail("more than its Content-Length")

    @property
    def framing(self) -> wire.Framing:
        return self._framing

    @property
    def holds(self) -> int:
        """Bytes of the body that wait for its head."""
        return self._holds

    @property
    def sent(self) -> bool:
        """Whether everything written so far has left this process."""
        return self.started and not self._out

    def fail(self, text: str) -> None:
        """Nothing more can be sent."""
        self._failure = text or "the connection is closed"
        self._out.clear()
        self._held.clear()

    @property
    def failed(self) -> bool:
        return bool(self._failure)

    def room(self) -> int:
        if self._failure or self.finished:
            raise StreamEnded
        space = BUFFER_MAX - self._holds - len(self._out)
        if space <= BUFFER_MAX // 2 and self._transport is not None:
            self.move()
            if self._failure:
                raise StreamEnded
            space = BUFFER_MAX - self._holds - len(self._out)
        return max(space, 0)

    def write(self, data: bytes) -> None:
        if self._failure or self.finished:
            raise StreamEnded
        if not data:
            return
        told = self._transport is not None and self._framing is wire.Framing.LENGTH
        if told and len(data) + self._holds > self._left:
            self.too_much = True
            raise StreamFailed("more than its Content-Length", http=("HTTP-response-body-size", self._left))
        if self.started:
            self._frame(data)
        elif self._framing is not wire.Framing.NONE or self._transport is None:
            self._held.append(data)
            self._holds += len(data)

    def flush(self) -> bool:
        if self._failure:
            raise StreamEnded
        # Most answers are one piece, and their end follows: they shall not wake their client twice.
        return self._transport is None or not self._send(more=not self.started)

    def ready(self) -> bool:
        try:
            return self.room() > 0
        except StreamEnded:
            return True

    def await_in(self, waits: Waits) -> None:
        if self._transport is not None and (self._out or not self.started):
            self._transport.await_send(waits)
            waits.at(self._since + self._stall_max)

    def finish(self, trailers: wire.Headers | None = None) -> bool:
        """The body is whole; whether it is as long as was said (without a connection :meth:`end` tells)."""
        if self._failure or self.finished:
            return not self._failure
        self.finished, self.trailers = True, trailers
        return self._transport is None or self.end(trailers)

    def abandon(self) -> None:
        """The body will never be whole."""
        if not self.finished:
            self.abandoned = True
            self.fail("its sender gave it up")

    def end(self, trailers: wire.Headers | None) -> bool:
        """What :meth:`finish` does once there is a connection."""
        if self._framing is wire.Framing.LENGTH and (self.too_much or self._left != self._holds):
            return False
        if not self.started:
            if self._framing in (wire.Framing.CHUNKED, wire.Framing.CLOSE) and not trailers:
                # All of it is known before any has gone: say how long it is.
                self._framing, self._left = wire.Framing.LENGTH, self._holds
            self._start()
        if self._framing is wire.Framing.CHUNKED:
            self._out += wire.last_chunk(trailers)
        self.whole = True
        self.move()
        return True

    def move(self) -> bool:
        return self._send(more=False)

    def _send(self, *, more: bool) -> bool:
        transport = self._transport
        if transport is None or self._failure:
            return False
        if not self.started:
            self._start()
        out = self._out
        try:
            if self._corked and not out and not more:
                transport.push()
            self._corked = more
            while out:
                taken = transport.send(out, more)
                if not taken:
                    if time.monotonic() - self._since > self._stall_max:
                        self.fail("its receiver takes nothing")
                        return False
                    return True
                del out[:taken]
                self._since = time.monotonic()
        except Broken as error:
            self.fail(str(error))
        return False

    def _start(self) -> None:
        if self._head is not None:
            self._out += self._head(self._framing, self._left)
        self.started = True
        held, self._held, self._holds = self._held, [], 0
        if held and self._framing is not wire.Framing.NONE:
            self._frame(b"".join(held) if len(held) > 1 else held[0])

    def _frame(self, data: bytes) -> None:
        if not self._out:
            self._since = time.monotonic()
        if self._framing is wire.Framing.CHUNKED:
            self._out += wire.chunk(data)
        elif self._framing is not wire.Framing.NONE:
            if self._framing is wire.Framing.LENGTH:
                self._left -= len(data)
            self._out += data
