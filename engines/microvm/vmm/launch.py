"""A monitor executed as a stranger on its own host: nobody's user, in namespaces of its own.

It is executed in an empty file system in which, below one mount, are the files that it is loaded from. When it has
loaded them its parent takes that mount away (:meth:`Confined.blind`): from then on it has no file but those that it was
given, and no way to any. Its first instruction of a guest comes later.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
import select
import signal
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, NoReturn

from engines.microvm.vmm import view
from engines.microvm.vmm.base import Confinement
from engines.microvm.vmm.view import FILES, View, step
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError, Unavailable, syscall_error
from forgeone_shim.kernel import privileges
from forgeone_shim.kernel.cgroups import write
from forgeone_shim.kernel.descriptors import close_all_but
from forgeone_shim.kernel.namespaces import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWUTS
from forgeone_shim.kernel.syscalls import number, syscall

_CLONE_NEWNS, _CLONE_NEWCGROUP, _CLONE_NEWPID = 0x00020000, 0x02000000, 0x20000000
_MNT_DETACH: Final = 2
# One arena: threads that come and go would each leave one.
_ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": "", "MALLOC_ARENA_MAX": "1"}
_NOFILE: Final = 1024
# Threads, of all that its user has: one for each processor of a machine, and at most 64 that wait for a disk.
_NPROC: Final = 1024
# Above any number that a program is given a descriptor as.
_HIGH: Final = 256
_ERROR_MAX: Final = 4096
_ENDS_SECONDS: Final = 30.0
_TUNSETIFF: Final = 0x400454CA
# linux/if_tun.h: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
_TAP: Final = 0x5002
_IFREQ: Final = struct.Struct("16sH22x")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is executed. ``fds`` are its descriptors besides the standard streams: its number -> ours.

    ``tap`` is the number that a network interface gets which leads nowhere, -1: none. ``file_size`` in bytes: it can
    make no file larger. ``filter`` is one of seccomp(2). ``network`` is a descriptor of the network namespace it is in,
    -1: an empty one of its own.
    """

    path: str
    argv: tuple[str, ...]
    fds: Mapping[int, int]
    view: View
    tap: int = -1
    file_size: int = 0
    filter: bytes
    network: int = -1


class Confined:
    """A monitor's process, whose parent this is. ``errors`` is what it says, to be read (nonblocking).

    ``says`` is the other side of that, held so that it never ends: a pipe without a writer would be readable for ever.
    """

    def __init__(self, pid: int, pidfd: int, errors: int, says: int) -> None:
        self.pid, self.pidfd, self.errors = pid, pidfd, errors
        self._says = says
        self._status: int | None = None

    def blind(self) -> None:
        """Take the files away that it was loaded from. This process has one thread. InternalError otherwise."""
        with self.inside(), step("umount", FILES):
            syscall(number("umount2"), FILES.encode(), _MNT_DETACH)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Within the block this process, which has one thread, sees the monitor's files. InternalError otherwise."""
        with step("open", "/proc/self/ns/mnt"):
            ours = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with step("setns", "the monitor's files"):
                syscall(number("setns"), self.pidfd, _CLONE_NEWNS)
            try:
                yield
            finally:
                with step("setns", "the host's files"):
                    syscall(number("setns"), ours, _CLONE_NEWNS)
        finally:
            os.close(ours)

    def wait(self, seconds: float) -> bool:
        """Whether it ends within that time."""
        return _readable(self.pidfd, Deadline.after(seconds))

    def ended(self) -> int | None:
        """How it ended (128 + number for a signal), ``None`` while it has not."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._status = code if code >= 0 else 128 - code
        return self._status

    def kill(self) -> None:
        """End it, and wait for that; again is no error."""
        if self.pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        # One that a broken disk keeps in the kernel is the system's to wait for.
        _readable(self.pidfd, Deadline.after(_ENDS_SECONDS))
        self.ended()
        os.close(self.pidfd)
        os.close(self.errors)
        os.close(self._says)
        self.pidfd = self.errors = -1


def execute(program: Program, who: Confinement, deadline: Deadline) -> Confined:
    """Start it; on any error nothing is left of it. The calling process has one thread.

    :raises Unavailable: there is no such program.
    :raises InternalError: it cannot be confined, or executed.
    """
    path = os.path.realpath(program.path)
    if not os.access(path, os.X_OK):
        raise Unavailable(f"there is no monitor {program.path!r} that can be executed", fix="see forge doctor")
    with ExitStack() as stack:
        told, tell = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, told)
        with ExitStack() as theirs:
            theirs.callback(os.close, tell)
            with ExitStack() as undo:
                errors, says = os.pipe2(os.O_CLOEXEC)
                undo.callback(os.close, errors)
                undo.callback(os.close, says)
                os.set_blocking(errors, False)
                pid, pidfd = _fork(lambda: _be(program, path, who, tell, says))
                undo.pop_all()
        started = Confined(pid, pidfd, errors, says)
        with ExitStack() as undo:
            undo.callback(started.kill)
            if not _readable(told, deadline):
                raise DeadlineExceeded(f"deadline passed while {program.path} was to be executed")
            if wrong := os.read(told, _ERROR_MAX):
                raise InternalError(f"start {program.path}: {wrong.decode(errors='replace')}")
            undo.pop_all()
        return started


def _fork(child: Callable[[], NoReturn]) -> tuple[int, int]:
    """Fork one that is the first of a new PID namespace; later ones are in this process's own again."""
    ours = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with step("unshare", "the PID namespace"):
            syscall(number("unshare"), _CLONE_NEWPID)
        try:
            with step("fork", "the monitor"):
                pid = os.fork()
            if pid == 0:
                child()
        finally:
            syscall(number("setns"), ours, _CLONE_NEWPID)
    finally:
        os.close(ours)
    try:
        return pid, os.pidfd_open(pid)
    except OSError as error:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise syscall_error("pidfd_open", pid, error) from error


def _be(program: Program, path: str, who: Confinement, tell: int, says: int) -> NoReturn:
    """In the child."""
    try:
        gc.disable()
        _enter(program, path, who, tell, says)
    except Exception as error:
        with contextlib.suppress(OSError):
            os.write(tell, (str(error) or type(error).__name__).encode()[:_ERROR_MAX])
    finally:
        os._exit(127)


def _enter(program: Program, path: str, who: Confinement, tell: int, says: int) -> None:
    os.setsid()
    for one in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        # A write to a file that is too large fails, and does not kill.
        with contextlib.suppress(OSError):
            signal.signal(one, signal.SIG_IGN if one == signal.SIGXFSZ else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    _join_cgroup(who)
    network = 0 if program.network >= 0 else CLONE_NEWNET
    with step("unshare", "namespaces"):
        syscall(number("unshare"), _CLONE_NEWNS | _CLONE_NEWCGROUP | CLONE_NEWIPC | CLONE_NEWUTS | network)
    if program.network >= 0:
        with step("setns", "the network namespace"):
            syscall(number("setns"), program.network, CLONE_NEWNET)
    tell, fds = _arrange(program, tell, says)
    view.enter(program.view, path, who)
    close_all_but((*fds, tell))
    _limit(program)
    _become(who)
    with step("prctl", "the monitor"):
        privileges.no_new_privileges()
        # Forgotten with each change of user; what is executed keeps it.
        privileges.die_with_parent()
        if _orphaned(tell):
            os._exit(127)
        privileges.filter_system_calls(program.filter)
    with step("execve", path):
        os.execve(path, program.argv, _ENVIRONMENT)  # noqa: S606 - no shell is wanted


def _join_cgroup(who: Confinement) -> None:
    # What may be killed first, before there is anything to kill for.
    with step("write", "/proc/self/oom_score_adj"):
        write("/proc/self/oom_score_adj", str(who.oom_score_adj))
    for directory in who.cgroups:
        with step("write", f"{directory}/cgroup.procs"):
            write(f"{directory}/cgroup.procs", "0")


def _arrange(program: Program, tell: int, says: int) -> tuple[int, list[int]]:
    """Put its descriptors to their numbers; where ``tell`` is now, and all of them."""
    with step("dup", "descriptors"):
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        wanted = {0: null, 1: says, 2: says, **program.fds}
        if program.tap >= 0:
            wanted[program.tap] = _tap()
        # Out of the way of all numbers first.
        high = {theirs: fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, _HIGH) for theirs, ours in wanted.items()}
        tell = fcntl.fcntl(tell, fcntl.F_DUPFD_CLOEXEC, _HIGH)
        for theirs, ours in high.items():
            os.dup2(ours, theirs, inheritable=True)
    return tell, list(wanted)


def _tap() -> int:
    """An interface of this network namespace, in which there is no other."""
    with step("open", "/dev/net/tun"):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(b"nowhere", _TAP))
    return fd


def _limit(program: Program) -> None:
    with step("setrlimit", "the monitor"):
        for limit, wanted in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NOFILE, _NOFILE),
            (resource.RLIMIT_NPROC, _NPROC),
            (resource.RLIMIT_FSIZE, program.file_size),
        ):
            # Where this process is limited itself, no more than that.
            most = resource.getrlimit(limit)[1]
            value = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
            resource.setrlimit(limit, (value, value))


def _become(who: Confinement) -> None:
    with step(f"become user {who.uid}, group", str(who.gid)):
        privileges.give_up_bounding()
        os.setgroups(())
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
        privileges.give_up_capabilities()


def _orphaned(tell: int) -> bool:
    """Whether the parent has died before this could be noticed: nobody reads any more what went wrong."""
    poll = select.poll()
    poll.register(tell, 0)
    return bool(poll.poll(0))


def _readable(fd: int, deadline: Deadline) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    left = deadline.remaining()
    return bool(poll.poll(None if left is None else int(left * 1000 + 0.999)))
