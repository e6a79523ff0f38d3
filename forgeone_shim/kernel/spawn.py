"""Programs started by ``posix_spawn`` (vfork underneath, so a large daemon pays nothing for its size)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError
from forgeone_shim.kernel import syscalls
from forgeone_shim.kernel.procs import Pidfd

_HIGH = 512
_CLONE_FS = 0x200
_RESET_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PIPE_CHUNK = 65536


class Child:
    """A program of ours that runs. :meth:`wait` reaps it; leaving the ``with`` block kills and reaps it."""

    __slots__ = ("_code", "pid", "pidfd")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = Pidfd(pid)
        self._code: int | None = None

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code (128+n for signal n), or ``None`` when ``timeout`` seconds pass first."""
        if self._code is None and self.pidfd.wait(timeout):
            _, status = os.waitpid(self.pid, 0)
            code = os.waitstatus_to_exitcode(status)
            self._code = code if code >= 0 else 128 - code
        return self._code

    def kill(self) -> None:
        """Kill with SIGKILL, and reap; an exited child is no error."""
        if self._code is None:
            self.pidfd.send(signal.SIGKILL)
            self.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.pidfd.close()


def find_program(name: str) -> str | None:
    """The absolute path of ``name`` (a path stays one), ``None`` when it is not there or not executable."""
    return shutil.which(name)


def spawn(
    program: str,
    argv: Sequence[str],
    *,
    files: Mapping[int, int] | None = None,
    env: Mapping[str, str] | None = None,
    new_session: bool = False,
    cwd: str = "",
) -> Child:
    """Start ``program`` (a path) with ``files`` as its descriptors (child's number -> ours) and nothing else of ours.

    Descriptors 0, 1 and 2 are ``/dev/null`` unless given. Every other descriptor of ours must be CLOEXEC. The child has
    no blocked signals and default handlers, and starts in ``cwd`` if given. OSError says that the program could not be
    started.
    """
    wanted = dict(files or {})
    with contextlib.ExitStack() as stack:
        null = -1
        for number in (0, 1, 2):
            if number not in wanted:
                if null < 0:
                    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                    stack.callback(os.close, null)
                wanted[number] = null
        targets = set(wanted)
        for number, ours in wanted.items():
            # A source that is itself a target could be overwritten before it is used.
            if ours in targets and ours != number:
                wanted[number] = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, _HIGH)
                stack.callback(os.close, wanted[number])
        if cwd:
            _enter(cwd, stack)
        pid = os.posix_spawn(
            program,
            list(argv),
            dict(os.environ if env is None else env),
            file_actions=[(os.POSIX_SPAWN_DUP2, ours, number) for number, ours in wanted.items()],
            setsigmask=(),
            setsigdef=_RESET_SIGNALS,
            setsid=new_session,
        )
    return Child(pid)


def _enter(cwd: str, stack: contextlib.ExitStack) -> None:
    """Change this thread's directory until ``stack`` closes: posix_spawn has no action for it that Python knows.

    With CLONE_FS unshared a thread's working directory is its own (unshare(2)).
    """
    syscalls.syscall(syscalls.number("unshare"), _CLONE_FS)
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, before)
    os.chdir(cwd)
    stack.callback(os.fchdir, before)


@dataclass(frozen=True, slots=True)
class Output:
    """What came out of some streams, by our descriptor; ``truncated`` says that a cap cut one."""

    data: Mapping[int, bytes]
    truncated: bool
    finished: bool


def collect(
    streams: Sequence[int], *, until: Pidfd | None, deadline: Deadline, limit: int, at_most: float | None = None
) -> Output:
    """Read ``streams`` to their ends, keeping ``limit`` bytes of each and dropping the rest.

    Where ``until`` exits first, what is already in the pipes is read and the call returns without waiting for ends that
    a left-behind descendant may hold open. ``finished`` is false when the deadline (or ``at_most`` seconds) came first.
    """
    kept: dict[int, bytearray] = {fd: bytearray() for fd in streams}
    truncated = False
    poll = select.poll()
    live = set(streams)
    for fd in streams:
        os.set_blocking(fd, False)
        poll.register(fd, select.POLLIN)
    gone = -1
    if until is not None:
        gone = until.fileno()
        poll.register(gone, select.POLLIN)
    finished = False
    own = None if at_most is None else time.monotonic() + at_most

    def drain(fd: int, bounded: int | None) -> None:
        nonlocal truncated
        read = 0
        while bounded is None or read < bounded:
            try:
                chunk = os.read(fd, PIPE_CHUNK)
            except BlockingIOError:
                return
            if not chunk:
                live.discard(fd)
                poll.unregister(fd)
                return
            read += len(chunk)
            room = limit - len(kept[fd])
            kept[fd] += chunk[:room] if room < len(chunk) else chunk
            truncated = truncated or room < len(chunk)

    while live or gone >= 0:
        left = deadline.remaining(None if own is None else max(0.0, own - time.monotonic()))
        events = poll.poll(None if left is None else int(left * 1000 + 0.999))
        ready = {fd for fd, _ in events}
        if not events:
            break
        if gone in ready:
            # A pipe holds at most 1 MiB, so a descendant that keeps writing cannot keep us here.
            for fd in list(live):
                drain(fd, 1 << 20)
            finished = True
            break
        for fd in ready & live:
            drain(fd, PIPE_CHUNK)
        if not live and gone < 0:
            finished = True
    return Output({fd: bytes(data) for fd, data in kept.items()}, truncated, finished or (not live and gone < 0))


@dataclass(frozen=True, slots=True)
class Completed:
    """A program that ran to its end: exit code, and its output and errors, interleaved as written."""

    code: int
    output: bytes

    @property
    def text(self) -> str:
        """The output as one stripped string."""
        return self.output.decode(errors="replace").strip()


def run(
    program: str, argv: Sequence[str], deadline: Deadline, *, env: Mapping[str, str] | None = None, limit: int = 65536
) -> Completed:
    """Run a program to its end and keep what it says. It is killed when the deadline passes (DeadlineExceeded)."""
    read, write = os.pipe2(os.O_CLOEXEC)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, read)
        try:
            child = stack.enter_context(spawn(program, argv, files={1: write, 2: write}, env=env))
        except OSError as error:
            raise InternalError(f"start {program}: {error.strerror}") from error
        finally:
            os.close(write)
        output = collect([read], until=child.pidfd, deadline=deadline, limit=limit)
        if not output.finished:
            raise DeadlineExceeded(f"deadline passed while {argv[0]} ran")
        code = child.wait()
        return Completed(code if code is not None else -1, output.data[read])
