"""The daemon's side of conmon's contract, for every engine whose containers have a supervisor that keeps it.

What a supervisor knows is in the container's bundle (:mod:`forgeone_shim.shim.supervision` has the names): its own pid
and the container's, the fifo that it takes orders from, the one that holds a container until it is started, and what a
container said about its end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import select
import signal
import stat
import termios
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from engines.base import Live, LiveState, Verdict
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import (
    FailedPrecondition,
    ForgeError,
    InternalError,
    InvalidInput,
    Kind,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    syscall_error,
)
from forgeone_shim.kernel.inotify import IN_ATTRIB, DirectoryEvents
from forgeone_shim.kernel.procs import Pidfd, of_pidfile, open_process
from forgeone_shim.shim import supervision
from forgeone_shim.shim.supervision import Failed, decode_ending
from forgeone_shim.shim.wire import ProtocolError

_PROGRAMS: Final = ("conmon", supervision.SUPERVISOR_TITLE)
# What newer versions of conmon read sizes from.
SIZES: Final = "winsz"
_REOPEN_SECONDS: Final = 5.0
# One that ends closes its fifo last, some milliseconds after it has no name any more.
_LISTEN_SECONDS: Final = 0.25
_KILL_SECONDS: Final = 5.0
_VERDICT_MAX: Final = 32 * 1024
_KNOWN: Final = (FailedPrecondition, PermissionDenied, ResourceExhausted, Unavailable, Unimplemented)


# Creation and start


def create_error(container_id: str, failed: Failed, *, doing: str = "create container") -> ForgeError:
    """A supervisor's failure, or another's that was ``doing`` something for a container, as the error it was."""
    if failed.error == Kind.INVALID:
        field, _, reason = failed.message.partition(": ")
        return InvalidInput(field, reason)
    for known in _KNOWN:
        if failed.error == known.kind:
            return known(failed.message)
    return InternalError(f"{doing} {container_id}: {failed.step}: {failed.message}")


def start(bundle: str) -> bool:
    """Let a created container run. ``False`` when it was started before.

    :raises BrokenPipeError: it has ended.
    :raises OSError: the fifo cannot be opened.
    """
    path = f"{bundle}/{supervision.START}"
    try:
        # The waiting process holds its end open; without it, this fails at once.
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise BrokenPipeError(errno.EPIPE, "no process waits to be started", path) from error
        raise
    try:
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            return False
        os.write(fd, b"\0")
        # The supervisor does so too; a look from now on finds a container that runs.
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
    finally:
        os.close(fd)
    return True


# Looks


def process(bundle: str) -> Pidfd | None:
    """The container's first process, if it lives: the number is trusted only with its start time."""
    try:
        pid, started = map(int, Path(bundle, supervision.PIDFILE).read_text().split())
    except (OSError, ValueError):
        return None
    return open_process(pid, started)


def look(bundle: str, freezer: str | None = None) -> Live:
    """The container as it is now; ``freezer`` is the file that tells whether its cgroup is frozen."""
    try:
        pid, started = map(int, Path(bundle, supervision.PIDFILE).read_text().split())
    except (FileNotFoundError, NotADirectoryError):
        return Live(LiveState.MISSING)
    except (OSError, ValueError) as error:
        raise InternalError(f"{bundle}/{supervision.PIDFILE} is not as known: {error}") from error
    held = open_process(pid, started)
    if held is None:
        return Live(LiveState.STOPPED)
    held.close()
    if Path(bundle, supervision.START).exists():
        return Live(LiveState.CREATED, pid)
    if freezer and _frozen(freezer):
        return Live(LiveState.PAUSED, pid)
    return Live(LiveState.RUNNING, pid)


def _frozen(path: str) -> bool:
    # Version 1 says for a moment, or for good where a process cannot be stopped, that it is at it: some stand already.
    try:
        return Path(path).read_text().strip() in {"1", "FROZEN", "FREEZING"}
    except OSError:
        return False


def verdict(bundle: str) -> Verdict | None:
    """What the container said about its end, ``None`` where it said nothing."""
    try:
        with Path(bundle, supervision.VERDICT).open("rb") as file:
            found = decode_ending(file.read(_VERDICT_MAX))
    except (OSError, ProtocolError):
        return None
    return Verdict(found.reason, found.message)


def was_oom_killed(bundle: str) -> bool:
    """Whether the supervisor saw that the kernel had killed for memory; a cgroup that is still there knows better."""
    return Path(bundle, supervision.OOM_MARKER).exists()


# The supervisor


def supervisor(bundle: str, container_id: str) -> Pidfd | None:
    """The supervisor of a container, if it lives: the process of its pid file, if it names the container."""
    return of_pidfile(Path(bundle, supervision.SUPERVISOR_PIDFILE), container_id, _PROGRAMS)


def stop(bundle: str, container_id: str, patience: float) -> None:
    """Wait ``patience`` seconds for the supervisor to finish, then kill it."""
    held = supervisor(bundle, container_id)
    if held is None:
        return
    with held:
        if not (patience > 0 and held.wait(patience)):
            held.send(signal.SIGKILL)
            held.wait(_KILL_SECONDS)


def forget(bundle: str, names: Sequence[str] = supervision.FILES) -> None:
    """Remove what a supervisor leaves in a bundle; it must have ended."""
    for name in names:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            Path(bundle, name).unlink()


def reopen_log(bundle: str, container_id: str, log_path: str) -> None:
    """Have the log file opened anew, and wait until it is."""
    if log_path:
        ask = functools.partial(order, bundle, container_id, supervision.REOPEN)
        await_reopened(container_id, log_path, IN_ATTRIB, ask, functools.partial(listen, bundle, container_id))


def await_reopened(
    container_id: str, log_path: str, mask: int, ask: Callable[[], None], still: Callable[[], None] | None = None
) -> None:
    """Ask for the log to be opened anew; returns once inotify(7) events of ``mask`` say that it was.

    ``still`` raises where nobody is there to do it any more: one that was about to end may have been asked.

    :raises FailedPrecondition: the log's directory is gone.
    """
    log = Path(log_path)
    try:
        events = DirectoryEvents(log.parent, mask)
    except (FileNotFoundError, NotADirectoryError):
        raise FailedPrecondition(
            f"the log of container {container_id} has no directory any more: {log.parent}"
        ) from None
    except OSError as error:
        raise syscall_error("watch", log.parent, error) from error
    try:
        ask()
        poll = select.poll()
        poll.register(events.fileno(), select.POLLIN)
        deadline = Deadline.after(_REOPEN_SECONDS)
        while True:
            left = deadline.remaining() or 0.0
            if not poll.poll(int(min(left, _LISTEN_SECONDS) * 1000)):
                if still is not None:
                    still()
                if left > 0:
                    continue
                raise InternalError(f"the supervisor of container {container_id} did not reopen {log_path}")
            seen = events.read()
            if seen.overflow or log.name in seen.names:
                return
    finally:
        events.close()


def resize(bundle: str, container_id: str, width: int, height: int) -> bool:
    """Tell the supervisor that the container's terminal has ``width`` columns and ``height`` rows.

    False: not yet, as it has not read what it was told before. Of lines that it reads at once some versions of conmon
    (2.1.6) heed the first alone.
    """
    if any(_unread(f"{bundle}/{name}") for name in (supervision.CONTROL, SIZES)):
        return False
    order(bundle, container_id, supervision.RESIZE, height, width)
    return True


def _unread(fifo: str) -> bool:
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        count = fcntl.ioctl(fd, termios.FIONREAD, bytes(4))
    finally:
        os.close(fd)
    return any(count)


def listen(bundle: str, container_id: str) -> None:
    """:raises FailedPrecondition: nobody reads the supervisor's control fifo."""
    os.close(_orders(bundle, container_id))


def _orders(bundle: str, container_id: str) -> int:
    try:
        return os.open(f"{bundle}/{supervision.CONTROL}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FailedPrecondition(f"container {container_id} has no supervisor to ask: {error.strerror}") from error


def order(bundle: str, container_id: str, what: int, first: int = 0, second: int = 0) -> None:
    """A line for the supervisor's control fifo.

    :raises FailedPrecondition: nobody reads it.
    """
    fd = _orders(bundle, container_id)
    try:
        os.write(fd, f"{what} {first} {second}\n".encode())
    except OSError as error:
        raise FailedPrecondition(f"ask the supervisor of container {container_id}: {error.strerror}") from error
    finally:
        os.close(fd)
