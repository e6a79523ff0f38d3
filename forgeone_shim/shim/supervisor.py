"""The supervisor: one small process beside each container, forked by a fork server, of conmon's contract.

It forks the container's first process, holds its pipes or its terminal, writes its log, serves its attach socket and
control fifo, and when it has ended writes what is left of the log, why it ended, and last the exit file. It belongs to
nobody: forgeoned and the fork server may come and go. Should it be killed itself, the kernel kills the container's
first process (:meth:`Channel.tether`).

Until the client has read the answer it can take everything back: where it hangs up, nothing is left of the container.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import select
import signal
import socket
import termios
from collections.abc import Callable, Collection
from typing import Final, NoReturn

from forgeone_shim.errors import Kind
from forgeone_shim.kernel import procs
from forgeone_shim.kernel.descriptors import close_all_but
from forgeone_shim.shim import supervision, titles, wire
from forgeone_shim.shim.bundle import Bundle
from forgeone_shim.shim.channel import Channel, failure
from forgeone_shim.shim.journal import Journal
from forgeone_shim.shim.loop import Loop
from forgeone_shim.shim.outputs import Outputs
from forgeone_shim.shim.streams import Attachments
from forgeone_shim.shim.supervision import (
    REASON_MAX,
    Broken,
    Ending,
    Failed,
    Launched,
    Ready,
    Started,
    Supervision,
    shortened,
)
from forgeone_shim.shim.wire import ProtocolError

_WORD_MAX: Final = 32 * 1024
_ORDERS_MAX: Final = 4096
_SMALL: Final = 65536
_DIES_MS: Final = 10_000
_SAFE_FROM_OOM: Final = b"-1000"
_OOM_SCORE: Final = "/proc/self/oom_score_adj"
_IGNORED: Final = tuple(map(int, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)))
_libc = ctypes.CDLL(None, use_errno=True)
_LOST_CODE: Final = 255
# Far more than there is to say: a supervisor's time is not its container's to spend.
_WORDS: Final = 32

Launch = Callable[[Channel], int]


def supervise(
    plan: Supervision,
    enter: Callable[[], None],
    launch: Launch,
    connection: socket.socket,
    keep: Collection[int] = (),
) -> NoReturn:
    """Become the supervisor of a container; for the child function of a :class:`forgeone_shim.shim.forks.Fork`.

    ``enter`` runs here, just before the fork of the container's first process, for what must be entered by its parent
    (a PID namespace). ``launch(channel)`` runs in that process, with its streams as 0, 1 and 2 and no other descriptors
    than the channel's and ``keep`` (which are closed here): it makes what is missing, says :meth:`Channel.ready`, waits
    by :meth:`Channel.await_start`, and returns the exit code. What either raises is answered as the error that it is.
    """
    try:
        Supervisor(plan, Bundle(plan.bundle), connection).run(enter, launch, keep)
    except OSError as error:
        _say(connection, _failed("open the bundle", error))
    finally:
        os._exit(0)


class Supervisor:
    """One container's, with descriptors that it leaves to the end of its process; see :func:`supervise`."""

    def __init__(self, plan: Supervision, bundle: Bundle, connection: socket.socket) -> None:
        self._plan, self._bundle, self._connection = plan, bundle, connection
        self._loop = Loop()
        self._step = "begin"
        self._pid = self._pidfd = -1
        # Whether the answer was sent, whether the client will never read it, and whether all is done.
        self._answered = self._abandoned = self._over = False
        self._failure: Failed | None = None
        self._ending: Ending | None = None
        self._told = False
        self._signal = 0
        self._heard = 0
        self._orders = b""

    def run(self, enter: Callable[[], None], launch: Launch, keep: Collection[int]) -> None:
        """Until the container has ended and everything is told."""
        try:
            # One whose request waited longer than its client did: what is in the bundle now may be another's.
            if self._hung_up():
                return
            self._begin()
            if self._hung_up():
                self._forget()
                return
            self._open()
            self._step = "enter the container's namespaces"
            enter()
            self._step = "fork"
            self._fork(launch, keep)
        except Exception as error:
            self._undo(error)
            return
        self._step = "launch"
        try:
            while not self._over:
                self._turn()
        except Exception as error:
            self._crash(error)

    # What is made before the container is there

    def _begin(self) -> None:
        os.setsid()
        _dispose(signal.SIG_IGN)
        # Pages with objects of the fork server's stay shared.
        gc.freeze()
        self._area = titles.area()
        titles.rename(self._area, (supervision.SUPERVISOR_TITLE, self._plan.container_id, self._plan.bundle))
        self._score = _read(_OOM_SCORE)
        with contextlib.suppress(OSError):
            _write(_OOM_SCORE, _SAFE_FROM_OOM)
        # From here on whoever wants this to end finds it; one that hung up before will not look, but is seen below.
        self._bundle.put(supervision.SUPERVISOR_PIDFILE, f"{os.getpid()}\n".encode())

    def _hung_up(self) -> bool:
        """Nothing but an end comes from a client that waits for its answer."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0))

    def _open(self) -> None:
        plan = self._plan
        self._step = "open the log"
        self._journal = Journal(plan.log_path, plan.log_size_max, plan.log_rate)
        self._outputs = Outputs(self._loop, self._journal)
        self._step = "open the bundle"
        self._control = self._bundle.fifo(supervision.CONTROL, os.O_NONBLOCK)
        self._loop.watch(self._control, lambda _: self._order())
        self._attached = Attachments(self._loop, self._bundle.listen(supervision.ATTACH), self._outputs.flow)
        self._hold = self._bundle.fifo(supervision.START)

    def _fork(self, launch: Launch, keep: Collection[int]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        alarm, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        make = self._outputs.terminal if self._plan.tty else self._outputs.pipes
        streams = make(self._attached, stdin=self._plan.stdin, once=self._plan.stdin_once)
        pid = os.fork()
        if pid == 0:
            channel = Channel(theirs, wakeup, self._hold)
            self._be_container(launch, channel, streams, keep)
        self._pid = pid
        self._pidfd = os.pidfd_open(pid)
        for fd in {*streams, wakeup, self._hold, *keep}:
            os.close(fd)
        theirs.close()
        self._words = ours
        self._loop.watch(ours.fileno(), lambda _: self._listen())
        self._loop.watch(alarm, lambda _: self._forward(alarm))
        self._loop.watch(self._pidfd, lambda _: self._ended())
        self._loop.watch(self._connection.fileno(), lambda _: self._client())

    def _be_container(
        self, launch: Launch, channel: Channel, streams: tuple[int, int, int], keep: Collection[int]
    ) -> NoReturn:
        """In the container's first process."""
        code = _LOST_CODE
        try:
            _dispose(signal.SIG_DFL)
            os.setsid()
            for target, fd in enumerate(streams):
                os.dup2(fd, target)
            close_all_but((0, 1, 2, *channel.fds, *keep))
            if self._plan.tty:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            with contextlib.suppress(OSError):
                _write(_OOM_SCORE, self._score)
            titles.rename(self._area, (self._plan.title, self._plan.container_id))
            channel.tether()
            code = launch(channel)
        except Exception as error:
            kind, message = failure(error)
            if channel.held:
                channel.ending("EngineError", message)
            else:
                channel.failed(kind, message)
        finally:
            # Not to come back from here, whatever it is.
            os._exit(code & 0xFF if isinstance(code, int) else _LOST_CODE)

    # What happens while it is there

    def _turn(self) -> None:
        waits = [one for one in (self._journal.wait(), self._attached.wait()) if one is not None]
        self._loop.turn(min(waits) if waits else None)
        self._attached.drop_stalled()
        self._outputs.flow()

    def _listen(self) -> None:
        """To the container's process, which may be anything by now."""
        data = self._words.recv(_WORD_MAX)
        self._heard += 1
        if not data or self._heard >= _WORDS:
            self._loop.leave(self._words.fileno())
            return
        try:
            word = supervision.decode_word(data)
        except ProtocolError:
            return
        if isinstance(word, Ready) and not self._answered and self._failure is None:
            self._answer()
        elif isinstance(word, Broken) and not self._answered:
            self._failure = Failed(step=self._step, error=word.error, message=shortened(word.message))
            self._kill()
        elif isinstance(word, Started):
            with contextlib.suppress(OSError):
                self._bundle.remove(supervision.START)
        elif isinstance(word, Ending):
            self._ending = Ending(reason=shortened(word.reason, REASON_MAX), message=shortened(word.message))

    def _answer(self) -> None:
        seen = procs.stat(self._pid)
        if seen is None or seen.dead:
            return
        self._bundle.put(supervision.PIDFILE, f"{self._pid} {seen.started}\n".encode())
        try:
            wire.send(self._connection, supervision.encode(Launched(pid=self._pid)))
            self._answered = True
        except OSError:
            self._abandon()

    def _client(self) -> None:
        """It has read its answer and goes, or it goes without."""
        try:
            wire.receive(self._connection).close()
        except wire.Ended as end:
            self._loop.leave(self._connection.fileno())
            self._connection.close()
            if not (self._answered and end.heard):
                self._abandon()
        except ProtocolError:
            pass

    def _abandon(self) -> None:
        self._abandoned = True
        self._kill()

    def _forward(self, alarm: int) -> None:
        """A signal came to the container that ends it, and its process is not the one to act on it."""
        found = os.read(alarm, 64)
        self._loop.leave(alarm)
        if found and 0 < found[0] <= signal.SIGRTMAX:
            self._signal = found[0]
            self._kill()

    def _kill(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _order(self) -> None:
        """Lines of the control fifo (conmon's): a number that says what for, and two arguments."""
        *lines, rest = (self._orders + os.read(self._control, _ORDERS_MAX)).split(b"\n")
        self._orders = rest[:_ORDERS_MAX]
        for line in lines:
            try:
                what, first, second = map(int, line.split())
            except ValueError:
                continue
            if what == supervision.REOPEN:
                self._journal.reopen()
            elif what == supervision.RESIZE:
                self._outputs.resize(first, second)

    # The end

    def _ended(self) -> None:
        code = self._reap()
        # What it said last may have come with its end.
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self._words.setblocking(False)
            for _ in range(_WORDS - self._heard):
                self._listen()
        self._over = True
        if self._answered and not self._abandoned:
            self._finish(code)
            return
        # Whoever asked removes the cgroup once it is told.
        oom = _oom_kills(self._plan.oom_counter)
        self._forget()
        if not self._abandoned:
            kind, message = Kind.INTERNAL, f"its process ended with code {code} before it was ready"
            if oom:
                kind, message = Kind.EXHAUSTED, "its memory limit is so low that it was killed before it was ready"
            _say(self._connection, self._failure or Failed(step=self._step, error=kind, message=message))

    def _reap(self) -> int:
        self._loop.leave(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._pid = self._pidfd = -1
        if self._signal and code == -signal.SIGKILL:
            return 128 + self._signal
        return code if code >= 0 else 128 - code

    def _finish(self, code: int) -> None:
        """Everything that was written is in the log before the exit file says that nothing more comes."""
        self._outputs.drain()
        # Where there is no room to say why it ended, how it ended may still be told.
        with contextlib.suppress(OSError):
            if self._ending is not None:
                self._bundle.put(supervision.VERDICT, supervision.encode(self._ending))
        with contextlib.suppress(OSError):
            if _oom_kills(self._plan.oom_counter):
                self._bundle.put(supervision.OOM_MARKER, b"")
        self._tell(code)
        self._attached.close()
        while self._attached:
            self._loop.turn(self._attached.wait())
            self._attached.drop_stalled()

    def _tell(self, code: int) -> None:
        self._bundle.put_outside(f"{self._plan.exits}/{self._plan.container_id}", str(code).encode())
        self._told = True

    def _undo(self, error: Exception) -> None:
        """There is no container yet."""
        self._end_container()
        with contextlib.suppress(OSError):
            self._forget()
        _say(self._connection, _failed(self._step, error))

    def _forget(self) -> None:
        self._bundle.remove(*supervision.FILES)

    def _crash(self, error: Exception) -> None:
        """Something that was not thought of: without a supervisor the container is not to go on."""
        self._end_container()
        with contextlib.suppress(OSError):
            if not self._answered or self._abandoned:
                self._forget()
                _say(self._connection, _failed(self._step, error))
            elif not self._told:
                ending = Ending(reason="SupervisorFailed", message=shortened(f"{type(error).__name__}: {error}"))
                with contextlib.suppress(OSError):
                    self._bundle.put(supervision.VERDICT, supervision.encode(ending))
                self._tell(_LOST_CODE)

    def _end_container(self) -> None:
        if self._pid <= 0:
            return
        os.kill(self._pid, signal.SIGKILL)
        if self._pidfd >= 0:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            poll.poll(_DIES_MS)
        os.waitpid(self._pid, os.WNOHANG)


def _failed(step: str, error: Exception) -> Failed:
    kind, message = failure(error)
    return Failed(step=step, error=kind, message=shortened(message))


def _say(connection: socket.socket, failed: Failed) -> None:
    with contextlib.suppress(OSError, ProtocolError):
        wire.send(connection, supervision.encode(failed))


def _dispose(action: int) -> None:
    # Not by Python's function, whose enumerations cost a child a hundred pages that it shared until then.
    for number in _IGNORED:
        _libc.signal(number, ctypes.c_void_p(action))


def _oom_kills(path: str) -> bool:
    """As :func:`forgeone_shim.kernel.cgroups.oom_kills` counts."""
    try:
        lines = _read(path).splitlines() if path else []
    except OSError:
        return False
    return any(line.startswith(b"oom_kill ") and line.split()[1] != b"0" for line in lines)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _SMALL)
    finally:
        os.close(fd)


def _write(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
