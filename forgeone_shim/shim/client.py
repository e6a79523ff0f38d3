"""The daemon's side of the fork server: found where an earlier daemon left it, or started when it is first needed."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, ForgeError, InternalError, InvalidInput, syscall_error
from forgeone_shim.kernel.spawn import Child, spawn
from forgeone_shim.shim import messages
from forgeone_shim.shim.messages import Answer, Failed, Finish, Made, MakeNamespaces, ProtocolError, Request

_SERVER: Final = "forgeone_shim.shim.server"
_LISTENER: Final = 3
_BACKLOG: Final = 128
# For what takes milliseconds; a caller's own deadline may be earlier.
_ANSWER_SECONDS: Final = 30.0
_FINISH_SECONDS: Final = 5.0
# A timeout of 0 would mean another thing to a socket.
_TICK: Final = 0.001
# A server that an older or newer forgeoned left behind is not asked what it does not know.
_SOCKET: Final = f"v{messages.VERSION}"
_LOCK: Final = "lock"


class StepFailed(Exception):
    """The server could not do a step of what it was asked; the kernel's reason is ``errno``."""

    def __init__(self, step: str, errno: int) -> None:
        super().__init__(f"{step}: {os.strerror(errno)}")
        self.step, self.errno = step, errno


class _Gone(Exception):
    """No server answers, or it ended before it did."""


class ForkServer:
    """One per daemon; thread-safe. Nothing is started or opened before the first request.

    ``directory`` is where the server's socket is, and a lock under which it is started: two daemons, of which one
    replaces the other, share one server.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._lease: socket.socket | None = None
        self._child: Child | None = None

    def make_namespaces(self, request: MakeNamespaces, deadline: Deadline) -> dict[str, int]:
        """Descriptors of the new namespaces by kind, ``user`` among them; the caller closes them.

        :raises StepFailed: the kernel refused a step; nothing was made.
        :raises InvalidInput: the request is too long to be sent.
        :raises DeadlineExceeded: no answer in time.
        :raises InternalError: there is no server and none can be started.
        """
        try:
            messages.encode(request)
        except ProtocolError as error:
            raise InvalidInput("sysctls", f"too much with the id mappings: {error}") from error
        answer, descriptors = self._ask(request, deadline)
        if isinstance(answer, Failed):
            raise StepFailed(answer.step, answer.errno)
        if not isinstance(answer, Made) or answer.kinds != ("user", *request.kinds):
            _close_all(descriptors)
            raise InternalError(f"the fork server answers {answer} to {type(request).__name__}")
        return dict(zip(answer.kinds, descriptors, strict=True))

    def close(self) -> None:
        """Tell the server, if there is one, to end when nothing is under way. Fails on nothing."""
        with self._lock:
            if self._directory.exists():
                with contextlib.suppress(OSError, ForgeError, _Gone), self._starting():
                    with contextlib.suppress(_Gone), self._connected() as connection:
                        _exchange(connection, Finish(), Deadline.after(_FINISH_SECONDS))
                    (self._directory / _SOCKET).unlink(missing_ok=True)
            self._let_go()

    def _ask(self, request: Request, deadline: Deadline) -> tuple[Answer, list[int]]:
        """Safe to repeat with a new server: what an old one made went with its connection."""
        if self._lease is None:
            self._ensure()
        try:
            with self._connected() as connection:
                return _exchange(connection, request, deadline)
        except _Gone:
            self._ensure()
        try:
            with self._connected() as connection:
                return _exchange(connection, request, deadline)
        except _Gone as error:
            raise InternalError(f"the fork server ended without an answer: {error}") from error

    @contextlib.contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            try:
                connection.settimeout(_ANSWER_SECONDS)
                with _short_name(self._directory) as name:
                    connection.connect(f"{name}/{_SOCKET}")
            except (FileNotFoundError, ConnectionError) as error:
                raise _Gone("nobody listens") from error
            except OSError as error:
                raise syscall_error("connect", self._directory / _SOCKET, error) from error
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
        new = f"{_SOCKET}.new"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, _short_name(self._directory) as at:
                (self._directory / new).unlink(missing_ok=True)
                listener.bind(f"{at}/{new}")
                (self._directory / new).chmod(0o600)
                listener.listen(_BACKLOG)
                argv = [sys.executable, "-I", "-S", "-c", _boot(), str(self._directory)]
                self._child = spawn(argv[0], argv, files={_LISTENER: listener.fileno()}, new_session=True)
                (self._directory / new).replace(self._directory / _SOCKET)
        except OSError as error:
            raise InternalError(f"start the fork server: {error.strerror or error}") from error


def _boot() -> str:
    """The program text; ``-S`` leaves out site-packages (and the time to scan it), so the few folders are named."""
    folders: dict[str, None] = {}
    for package in ("forgeone_shim", "msgspec"):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            folders[str(Path(spec.origin).resolve().parent.parent)] = None
    return f"import sys; sys.path[:0] = {list(folders)!r}; from {_SERVER} import main; main()"


@contextlib.contextmanager
def _short_name(directory: Path) -> Iterator[str]:
    """A socket's address takes 107 bytes, which a directory's path may exceed."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _exchange(connection: socket.socket, request: Request, deadline: Deadline) -> tuple[Answer, list[int]]:
    room = socket.CMSG_SPACE(messages.DESCRIPTORS_MAX * array.array("i").itemsize)
    deadline.check("before the fork server was asked")
    try:
        connection.settimeout(max(_TICK, deadline.remaining(_ANSWER_SECONDS) or 0.0))
        connection.send(messages.encode(request))
        data, ancillary, _, _ = connection.recvmsg(messages.MESSAGE_MAX, room, socket.MSG_CMSG_CLOEXEC)
    except TimeoutError as error:
        raise DeadlineExceeded("the fork server did not answer in time") from error
    except (BrokenPipeError, ConnectionError) as error:
        raise _Gone(str(error)) from error
    except OSError as error:
        raise InternalError(f"ask the fork server: {error.strerror or error}") from error
    descriptors = _descriptors(ancillary)
    try:
        if not data:
            raise _Gone("the connection ended")
        return messages.decode_answer(data, descriptors), descriptors
    except ProtocolError as error:
        _close_all(descriptors)
        raise InternalError(f"the fork server's answer cannot be read: {error}") from error
    except _Gone:
        _close_all(descriptors)
        raise


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _close_all(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)
