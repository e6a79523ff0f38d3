"""The daemon's side of a fork server: found where an earlier daemon left it, or started when it is first needed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, ForgeError, InternalError, InvalidInput, syscall_error
from forgeone_shim.kernel.spawn import Child, spawn
from forgeone_shim.shim import wire
from forgeone_shim.shim.programs import Program
from forgeone_shim.shim.wire import Ended, Message, ProtocolError

_LISTENER: Final = 3
# Beyond it a request is refused, not kept waiting; more than the daemon has threads.
_BACKLOG: Final = 1024
# For what takes milliseconds; a caller's own deadline may be earlier.
_ANSWER_SECONDS: Final = 30.0
_FINISH_SECONDS: Final = 5.0
# A timeout of 0 would mean another thing to a socket.
_TICK: Final = 0.001
_LOCK: Final = "lock"
# Where programs and libraries are, and whom they trust.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "TZ")
# Children write their titles over the server's own arguments.
_TITLE_ROOM: Final = 512


def socket_name(program: Program) -> str:
    """The file in a server's directory by which clients find it."""
    return f"v{program.version}"


class _Gone(Exception):
    """No server answers, or it ended before it did. ``heard``: it may have begun with what it was asked."""

    def __init__(self, why: str, *, heard: bool) -> None:
        super().__init__(why)
        self.heard = heard


class ForkServer:
    """One per daemon and program; thread-safe. Nothing is started or opened before the first request.

    ``directory`` is where the server's socket is, and a lock under which it is started: two daemons, of which one
    replaces the other, share one server. One that an older or newer forgeoned left behind, with another
    ``program.version``, is not asked, as it does not know what this one says; it ends when its own daemon has gone.
    """

    def __init__(self, directory: Path, program: Program) -> None:
        self._directory, self._program = directory, program
        self._socket = socket_name(program)
        self._lock = threading.Lock()
        self._lease: socket.socket | None = None
        self._child: Child | None = None

    def ask(
        self,
        data: bytes,
        fds: Sequence[int],
        deadline: Deadline,
        *,
        again: bool = False,
        seconds: float = _ANSWER_SECONDS,
    ) -> tuple[bytes, list[int]]:
        """What the server, or the child it forked, answers; the caller closes the descriptors.

        The connection ends with the call, whatever comes of it, and so tells a child that nobody waits. ``again`` says
        that a request may be repeated after it was begun with; one that was never read always is. ``seconds`` is how
        long an answer may take where the deadline is later.

        :raises InvalidInput: the request is too long to be sent.
        :raises DeadlineExceeded: no answer in time, or the caller went away.
        :raises InternalError: there is no server and none can be started, or it ended without an answer.
        """
        with contextlib.ExitStack() as stack:
            answer, fds_back, connection = self.connect(data, fds, deadline, again=again, seconds=seconds)
            stack.callback(connection.close)
            return answer, fds_back

    def connect(
        self,
        data: bytes,
        fds: Sequence[int],
        deadline: Deadline,
        *,
        again: bool = False,
        seconds: float = _ANSWER_SECONDS,
    ) -> tuple[bytes, list[int], socket.socket]:
        """As :meth:`ask`, with the connection for more to be said; the caller closes it."""
        try:
            wire.check(data, fds)
        except ProtocolError as error:
            raise InvalidInput("request", str(error)) from error
        if self._lease is None:
            self._ensure()
        try:
            return self._converse(data, fds, deadline, seconds)
        except _Gone as error:
            if error.heard and not again:
                raise InternalError(f"the fork server ended without an answer: {error}") from error
            self._ensure()
        try:
            return self._converse(data, fds, deadline, seconds)
        except _Gone as error:
            raise InternalError(f"the fork server ended without an answer: {error}") from error

    def ensure(self) -> None:
        """Have a server that runs, so that the first request need not wait for its start."""
        if self._lease is None:
            self._ensure()

    def close(self) -> None:
        """Tell the server, if there is one, to end when nothing is under way. Fails on nothing."""
        with self._lock:
            if self._directory.exists():
                with contextlib.suppress(OSError, ForgeError, _Gone), self._starting():
                    with contextlib.suppress(_Gone, Ended, ProtocolError), self._connected() as connection:
                        connection.settimeout(_FINISH_SECONDS)
                        wire.send_finish(connection)
                        wire.receive(connection).close()
                    (self._directory / self._socket).unlink(missing_ok=True)
            self._let_go()

    def _converse(
        self, data: bytes, fds: Sequence[int], deadline: Deadline, seconds: float
    ) -> tuple[bytes, list[int], socket.socket]:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(self._connected())
            message = _exchange(connection, data, fds, deadline, seconds)
            try:
                kept = connection.dup()
            except OSError as error:
                message.close()
                raise InternalError(f"ask the fork server: {error.strerror or error}") from error
            return bytes(message.data), message.take(), kept

    @contextlib.contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            try:
                connection.settimeout(_ANSWER_SECONDS)
                with _short_name(self._directory) as name:
                    connection.connect(f"{name}/{self._socket}")
            except (FileNotFoundError, ConnectionError) as error:
                raise _Gone("nobody listens", heard=False) from error
            except OSError as error:
                raise syscall_error("connect", self._directory / self._socket, error) from error
            yield connection

    def _ensure(self) -> None:
        """Have a server that listens, and hold on to it."""
        with self._lock, self._starting():
            lease = self._lease
            try:
                self._lease = self._take_lease()
            except _Gone:
                self._let_go()
                self._start()
                self._lease = self._take_lease()
            else:
                if lease is not None:
                    lease.close()

    def _let_go(self) -> None:
        """Of a server that takes no more requests."""
        if self._lease is not None:
            self._lease.close()
            self._lease = None
        if self._child is not None:
            self._child.wait(_FINISH_SECONDS)
            self._child.pidfd.close()
            self._child = None

    def _take_lease(self) -> socket.socket:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(self._connected())
            return connection.dup()

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        """One daemon at a time."""
        path = self._directory / _LOCK
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise syscall_error("open", path, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _start(self) -> None:
        """The socket listens before there is a process behind it, so that nothing has to wait for its readiness."""
        new = f"{self._socket}.new"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, _short_name(self._directory) as at:
                (self._directory / new).unlink(missing_ok=True)
                listener.bind(f"{at}/{new}")
                (self._directory / new).chmod(0o600)
                listener.listen(_BACKLOG)
                argv = self._program.command(str(self._directory), room=_TITLE_ROOM)
                files = {_LISTENER: listener.fileno()}
                self._child = spawn(argv[0], argv, files=files, env=_environment(), new_session=True)
                (self._directory / new).replace(self._directory / self._socket)
        except OSError as error:
            raise InternalError(f"start the fork server: {error.strerror or error}") from error


def _environment() -> dict[str, str]:
    """What the daemon was given (proxies with passwords, say) is nothing for what is forked for strangers' code."""
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}


@contextlib.contextmanager
def _short_name(directory: Path) -> Iterator[str]:
    """A socket's address takes 107 bytes, which a directory's path may exceed."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _exchange(
    connection: socket.socket, data: bytes, fds: Sequence[int], deadline: Deadline, seconds: float
) -> Message:
    deadline.check("before the fork server was asked")

    def hang_up() -> None:
        # It may have ended by itself, or be told twice.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    deadline.listen(hang_up)
    try:
        connection.settimeout(max(_TICK, deadline.remaining(seconds) or 0.0))
        wire.send(connection, data, fds)
        return wire.receive(connection)
    except TimeoutError as error:
        raise DeadlineExceeded("the fork server did not answer in time") from error
    except ProtocolError as error:
        raise InternalError(f"the fork server's answer cannot be read: {error}") from error
    except (Ended, ConnectionError) as error:
        deadline.check("while the fork server was asked")
        raise _Gone(str(error), heard=getattr(error, "heard", False)) from error
    except OSError as error:
        raise InternalError(f"ask the fork server: {error.strerror or error}") from error
    finally:
        deadline.ignore(hang_up)
