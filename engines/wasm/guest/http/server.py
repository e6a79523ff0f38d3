"""The server: connections, the workers that serve them, and the main thread that watches both.

Workers wait on one epoll for whatever comes next and do all of a request themselves, so that none is handed from thread
to thread; a connection without a request costs no thread. A guest's waiting blocks its worker alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wasmtime import WasmtimeError

from engines.wasm.guest.http import wire
from engines.wasm.guest.http.exchange import Clock, Exchange, Limits, plain
from engines.wasm.guest.http.instances import Instance
from engines.wasm.guest.http.session import Exited, Expired, Session
from engines.wasm.guest.http.transport import Broken, Plain
from engines.wasm.guest.http.wasi_http import IncomingRequest, ResponseOutparam

# Of a head; a body's bytes are received where they are read. Larger ones make malloc(3) tidy up at each of them.
_RECEIVE: Final = 8 * 1024
_TICK: Final = 1.0
_ONCE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT
# wasm's own stack is at most 512 KiB, and that of the interpreter comes on top at every host call.
STACK_SIZE: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ending:
    """Why the server ended by itself: ``reason`` is a word, ``message`` a line."""

    reason: str
    message: str


class Connection:
    """A client's connection. ``busy`` while a worker has it; ``until`` is when it is given up otherwise."""

    __slots__ = ("buffer", "busy", "lingering", "searched", "transport", "until")

    def __init__(self, accepted: socket.socket, until: float) -> None:
        self.transport = Plain(accepted)
        self.buffer = b""
        self.searched = 0
        self.busy = False
        self.lingering = False
        self.until = until


class Server:
    """Serves ``listener`` (bound, not blocking) with instances that ``make`` gives, until it is stopped.

    ``log`` takes a text for the container's log.
    """

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], Instance],
        limits: Limits,
        log: Callable[[str], None],
    ) -> None:
        self._listener = listener
        self._make = make
        self._limits = limits
        self._log = log
        self._clock = Clock()
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._connections: dict[int, Connection] = {}
        self._running: dict[Exchange, Connection] = {}
        self._spares: deque[Instance] = deque()
        self._workers = 0
        self._free = 0
        self._lost = 0
        self._accepting = False
        self._stopping = False

    def warm(self) -> None:
        """Make the first instance, so that what cannot be made is found out at the start.

        :raises WasmtimeError: it cannot.
        """
        self._spares.append(self._make())

    def run(self, stop: int, ended: Callable[[], Ending | None]) -> Ending | None:
        """Serve until ``stop`` (a descriptor) becomes readable; then finish what has been begun, and return.

        ``ended`` is asked every second while there are connections whether something else ends the server.
        """
        threading.stack_size(STACK_SIZE)
        self._listener.listen(1024)
        self._accept_more()
        self._add_worker()
        watched = select.poll()
        watched.register(stop, select.POLLIN)
        watched.register(self._wake, select.POLLIN)
        while not (self._stopping and not self._connections):
            came = watched.poll(_TICK * 1000 if self._connections else None)
            if any(fd == stop for fd, _ in came):
                watched.unregister(stop)
                self._stop()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            ending = self._tick(time.monotonic()) or ended()
            if ending is not None:
                return ending
        return None

    # The main thread.

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            if self._accepting:
                self._epoll.unregister(self._listener)
                self._accepting = False
            self._listener.close()
            idle = [item for item in self._connections.items() if not item[1].busy and not item[1].buffer]
            for fd, connection in idle:
                self._forget(fd, connection)

    def _tick(self, now: float) -> Ending | None:
        with self._lock:
            late = [item for item in self._connections.items() if not item[1].busy and item[1].until <= now]
            for fd, connection in late:
                if connection.buffer and not connection.lingering:
                    with contextlib.suppress(Broken):
                        connection.transport.send(plain(408, self._clock))
                self._forget(fd, connection)
            stuck = [exchange for exchange in self._running if exchange.is_stuck(now)]
        for exchange in stuck:
            if exchange.give_up(504):
                self._lose(exchange)
        if self._lost > self._limits.lost:
            return Ending(
                "HTTPRequestsStuck",
                f"{self._lost} requests did not come back within {self._limits.answer:g} s and cannot be interrupted",
            )
        return None

    def _lose(self, exchange: Exchange) -> None:
        request = exchange.request
        self._log(f"{request.method} {request.path}: the guest took longer than {self._limits.answer:g} s")
        with self._lock:
            connection = self._running.get(exchange)
            if connection is not None:
                self._lost += 1
                exchange.lost = True
                # The worker that is still in it finds it closed.
                connection.transport.finish_sending()
                self._forget(connection.transport.fd, connection)
        self._add_worker_if_needed()

    # Connections; the lock is held.

    def _accept_more(self) -> None:
        if not self._accepting and not self._stopping and len(self._connections) < self._limits.connections:
            self._epoll.register(self._listener, select.EPOLLIN)
            self._accepting = True

    def _forget(self, fd: int, connection: Connection) -> None:
        # Once it is closed, its number may be another one's.
        if self._connections.get(fd) is connection:
            del self._connections[fd]
            connection.transport.close()
            self._accept_more()
        if self._stopping and not self._connections:
            os.eventfd_write(self._wake, 1)

    # Workers.

    def _add_worker(self) -> None:
        with self._lock:
            self._workers += 1
            self._free += 1
            number = self._workers
        try:
            threading.Thread(target=self._work, name=f"http-{number}", daemon=True).start()
        except RuntimeError as error:
            with self._lock:
                self._workers -= 1
                self._free -= 1
            self._log(f"{self._workers} workers have to do: {error}")

    def _add_worker_if_needed(self) -> None:
        if self._free < 1 and self._workers < self._limits.workers + self._lost:
            self._add_worker()

    def _work(self) -> None:
        poll, listener = self._epoll.poll, self._listener.fileno()
        while True:
            if not self._spares:
                self._prepare()
            for fd, _ in poll(-1, 1):
                if fd == listener:
                    self._accept()
                else:
                    self._turn_to(fd)

    def _turn_to(self, fd: int) -> None:
        with self._lock:
            connection = self._connections.get(fd)
            if connection is None or connection.busy:
                return
            connection.busy = True
            self._free -= 1
        self._add_worker_if_needed()
        self._attend(fd, connection)

    def _prepare(self) -> None:
        """An instance for the next request; why one cannot be made is told to that request."""
        try:
            self._spares.append(self._make())
        except WasmtimeError:
            return

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError as error:
            if not isinstance(error, BlockingIOError | ConnectionAbortedError) and not self._stopping:
                self._hold_back(error)
            return
        try:
            self._take(accepted)
        except OSError as error:
            accepted.close()
            self._log(f"a connection cannot be taken: {error}")

    def _take(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fd = accepted.fileno()
        with self._lock:
            if self._stopping:
                accepted.close()
                return
            first = not self._connections
            self._epoll.register(fd, _ONCE)
            self._connections[fd] = Connection(accepted, time.monotonic() + self._limits.head)
            if len(self._connections) >= self._limits.connections and self._accepting:
                self._epoll.unregister(self._listener)
                self._accepting = False
        if first:
            os.eventfd_write(self._wake, 1)

    def _hold_back(self, error: OSError) -> None:
        """No descriptor, no memory: connections wait in the kernel until one of those here ends."""
        with self._lock:
            if self._accepting and self._connections:
                self._epoll.unregister(self._listener)
                self._accepting = False
        self._log(f"no connection is accepted for now: {error}")

    def _attend(self, fd: int, connection: Connection) -> None:
        """A connection has something to say. It is this thread's until it is armed again, or forgotten."""
        again = False
        try:
            data = connection.transport.receive(_RECEIVE)
            while data and (again := self._listen_to(connection, data)):
                data = self._more(connection)
            again = again if data else data is None
        except Broken:
            again = False
        except Exception as error:
            again = False
            self._log(f"a connection ended for an error of the server's: {type(error).__name__}: {error}")
        with self._lock:
            self._free += 1
            if not again or (self._stopping and not connection.buffer and not connection.lingering):
                self._forget(fd, connection)
                return
            if self._connections.get(fd) is not connection:
                return
            connection.busy = False
            self._epoll.modify(fd, _ONCE)

    def _more(self, connection: Connection) -> bytes | None:
        """What a client asks next that has just been answered, if it comes soon; as :meth:`Plain.receive`.

        The thread that is already here needs not be woken and has its caches, but only where another one waits for
        all others, and only between requests: within one the connection's time is watched.
        """
        if connection.buffer or connection.lingering or self._free < 1 or self._stopping:
            return None
        if not self._spares:
            self._prepare()
        return connection.transport.receive(_RECEIVE)

    def _listen_to(self, connection: Connection, data: bytes) -> bool:
        """Take what has come and serve what is whole; whether the connection stays."""
        if connection.lingering:
            return True
        if not connection.buffer:
            connection.until = time.monotonic() + self._limits.head
        connection.buffer += data
        try:
            while connection.buffer:
                if connection.buffer.startswith(b"\r\n"):
                    # One empty line before a request is passed over (RFC 9112, section 2.2), a second is none.
                    connection.buffer, connection.searched = connection.buffer[2:], 0
                end = wire.head_end(connection.buffer, connection.searched)
                if not end:
                    connection.searched = len(connection.buffer)
                    return True
                request = wire.parse_request(connection.buffer[:end])
                rest, connection.buffer, connection.searched = connection.buffer[end:], b"", 0
                exchange = Exchange(
                    connection.transport,
                    request,
                    rest,
                    limits=self._limits,
                    clock=self._clock,
                    stays=self._goes_on,
                )
                if not self._serve(connection, exchange):
                    return not exchange.intake.done and self._linger(connection)
                connection.buffer = exchange.intake.rest()
                # Of a next request that has begun to come: it had no time while this one was served.
                connection.until = time.monotonic() + self._limits.head
        except wire.Malformed as error:
            connection.transport.send(plain(error.status, self._clock))
            return self._linger(connection)
        connection.until = time.monotonic() + self._limits.idle
        return True

    def _goes_on(self) -> bool:
        return not self._stopping

    def _linger(self, connection: Connection) -> bool:
        """Let the client read the answer before the connection ends: what it still sends would reset it."""
        connection.transport.finish_sending()
        connection.buffer, connection.lingering = b"", True
        connection.until = time.monotonic() + self._limits.linger
        return True

    def _serve(self, connection: Connection, exchange: Exchange) -> bool:
        """One request, whole; whether the connection can take another."""
        with self._lock:
            self._running[exchange] = connection
        try:
            return self._hand_over(exchange)
        finally:
            with self._lock:
                del self._running[exchange]
                if exchange.lost:
                    self._lost -= 1

    def _hand_over(self, exchange: Exchange) -> bool:
        try:
            instance = self._spares.popleft()
        except IndexError:
            try:
                instance = self._make()
            except WasmtimeError as error:
                self._tell(exchange, f"no instance of the guest can be made: {error}")
                exchange.refuse(500)
                return False
        session = instance.session
        exchange.begin(session)
        try:
            try:
                instance.handle(IncomingRequest(exchange.request, exchange.intake), ResponseOutparam(exchange.answer))
            except WasmtimeError as error:
                if not self._forgiven(exchange, session, error):
                    return False
            if not exchange.answered:
                self._tell(exchange, "the guest returned without an answer")
                exchange.refuse(500)
                return False
            return exchange.settle(session)
        except Expired:
            return False
        finally:
            instance.close()

    def _forgiven(self, exchange: Exchange, session: Session, error: WasmtimeError) -> bool:
        """The guest did not return; whether its answer is whole all the same."""
        failure, sink = session.failure, exchange.sink
        whole = sink is not None and sink.whole and not sink.failed
        if isinstance(failure, Exited) and failure.code == 0 and whole:
            return True
        self._tell(exchange, str(failure) if failure is not None else str(error))
        exchange.refuse(504 if isinstance(failure, Expired) else 500)
        return False

    def _tell(self, exchange: Exchange, text: str) -> None:
        self._log(f"{exchange.request.method} {exchange.request.path}: {text}")


def log_to_stderr(text: str) -> None:
    """A text for the container's log, in one write, so that texts of several threads are not mixed."""
    with contextlib.suppress(OSError):
        os.write(2, (text.rstrip("\n") + "\n").encode("utf-8", "backslashreplace"))
