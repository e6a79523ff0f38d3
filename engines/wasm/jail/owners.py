"""A user namespace for a mount whose files show other owners than those of the pod."""

from __future__ import annotations

import contextlib
import os
import signal
from contextlib import ExitStack
from pathlib import Path

from engines.wasm.jail.plan import Bind, Extent
from forgeone_shim.errors import InternalError
from forgeone_shim.kernel.namespaces import CLONE_NEWUSER, write_proc
from forgeone_shim.kernel.syscalls import number, syscall


def owners_namespace(bind: Bind, stack: ExitStack) -> int:
    """A descriptor, open as long as ``stack``. Raises OSError, InternalError.

    The process forks for it, and must have one thread: a namespace comes with a process, which ends at once.
    """
    told, tell = os.pipe()
    hold, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be(tell, hold, (told, release))
    with ExitStack() as undo:
        undo.callback(_end, pid)
        for fd in (told, release):
            undo.callback(os.close, fd)
        os.close(tell)
        os.close(hold)
        name = os.read(told, 32).decode()
        if not name:
            raise InternalError(f"mount {bind.destination}: no user namespace can be made")
        write_proc(f"/proc/{name}/uid_map", _lines(bind.uids))
        write_proc(f"/proc/{name}/gid_map", _lines(bind.gids))
        fd = os.open(f"/proc/{name}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
    return fd


def _be(tell: int, hold: int, others: tuple[int, ...]) -> None:
    """In the child, which never returns."""
    try:
        for fd in others:
            os.close(fd)
        syscall(number("unshare"), CLONE_NEWUSER)
        # The number by which whoever mounted this /proc knows it, which is not the one it has for itself.
        os.write(tell, bytes(Path("/proc/self").readlink()))
        os.read(hold, 1)
    finally:
        os._exit(0)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _lines(extents: tuple[Extent, ...]) -> str:
    return "".join(f"{one.inside} {one.outside} {one.length}\n" for one in extents)
