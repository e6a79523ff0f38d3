"""One more guest in a running container, and beside it the process that waits for it. Runs in a child of the zygote.

The one that waits is outside of the container, so that it can tell how the guest ended and end it when nobody waits for
it any more; the guest joins all that the container's first process has.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import termios
from collections.abc import Sequence
from typing import Final, Never

import msgspec

from engines.wasm import jail, messages
from engines.wasm.guest import insight
from engines.wasm.guest.running import run
from engines.wasm.launch import Held, prepared
from engines.wasm.messages import Ended, Executing, Execution
from forgeone_shim.errors import ForgeError, Kind
from forgeone_shim.kernel import privileges
from forgeone_shim.kernel.descriptors import close_all_but
from forgeone_shim.shim import titles, wire
from forgeone_shim.shim.channel import failure
from forgeone_shim.shim.supervision import Failed, shortened

FIELD: Final = "cmd"
_SAID_MAX: Final = 65536
_LOST_CODE: Final = 255
_TITLE: Final = "forgeone-exec"


def execute(plan: msgspec.Raw, held: Held, fds: Sequence[int], connection: socket.socket) -> None:
    """``fds`` are a pidfd of the container's first process, and the guest's streams."""
    asked = messages.decode_plan(plan, Execution)
    titles.rename(titles.area(), (_TITLE, asked.container_id))
    target, *streams = fds
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        jail.enter_processes(target)
        child = os.fork()
    except (ForgeError, OSError) as error:
        kind, message = failure(error)
        _say(connection, Failed(step="fork", error=kind, message=shortened(message)))
        return
    if child == 0:
        _guest(asked, held, target, streams, write)
    for fd in (write, *fds):
        os.close(fd)
    pidfd = os.pidfd_open(child)
    if (refused := _heard(read, connection)) is not None:
        _end(child, pidfd)
        _say(connection, refused)
        return
    _say(connection, Executing())
    _say(connection, Ended(code=_wait(child, pidfd, connection)))


def _heard(read: int, connection: socket.socket) -> Failed | None:
    """What keeps the guest from running; ``None`` when nothing does."""
    poll = select.poll()
    poll.register(read, select.POLLIN)
    poll.register(connection, select.POLLIN)
    said = b""
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if connection.fileno() in ready:
            return Failed(step="wait", error=Kind.DEADLINE, message="nobody waits for the command any more")
        chunk = os.read(read, _SAID_MAX)
        if not chunk:
            break
        said += chunk
    if said == b"\0":
        return None
    try:
        return msgspec.json.decode(said, type=Failed)
    except (msgspec.DecodeError, UnicodeError):
        return Failed(step="start", error=Kind.INTERNAL, message="the guest's process ended before it was ready")


def _wait(child: int, pidfd: int, connection: socket.socket) -> int:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(connection, select.POLLIN)
    ready = {fd for fd, _ in poll.poll()}
    if pidfd not in ready:
        return _end(child, pidfd)
    return _reap(child)


def _end(child: int, pidfd: int) -> int:
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    return _reap(child)


def _reap(child: int) -> int:
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _say(connection: socket.socket, answer: Failed | Executing | Ended) -> None:
    # Whoever asked may have gone.
    with contextlib.suppress(OSError):
        wire.send(connection, messages.encode(answer))


def _guest(asked: Execution, held: Held, target: int, streams: Sequence[int], write: int) -> Never:
    """In the second child, which is in the container's PID namespace."""
    code = _LOST_CODE
    try:
        os.setsid()
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        # Of Python's handlers nobody hears while a guest runs.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            if asked.tty:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            extensions = insight.of_execution(asked.insight, held.loaded)
            jail.join(asked.jail, target)
            close_all_but((0, 1, 2, write, *held.fds))
            jail.become(asked.jail)
            ready = prepared(asked.guest, held.loaded, FIELD, extensions)
            # Not before there is nobody else to become: the kernel forgets it then (prctl(2)).
            privileges.die_with_parent()
            jail.restrict(asked.jail)
        except (ForgeError, OSError) as error:
            kind, message = failure(error)
            os.write(write, messages.encode(Failed(step="start", error=kind, message=shortened(message))))
            os._exit(code)
        # Nobody may hear it any more, and then nobody would end this.
        os.write(write, b"\0")
        os.close(write)
        code = run(ready).code
    finally:
        os._exit(code)
