"""The directory that a monitor shares with its keeper: the sockets by which they talk, and the files that become disks.

It is a file system in memory that is mounted nowhere but in the monitor's view; the keeper has a descriptor of it. A
monitor that a guest has taken over can put there what it likes, so no link in it is ever followed. A file of the host's
is shown there under another owner (``MOUNT_ATTR_IDMAP``): root's alone stays root's alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from engines.microvm.vmm.base import Confinement
from engines.microvm.vmm.launch import Confined
from engines.microvm.vmm.view import PLACE, step
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, InternalError
from forgeone_shim.kernel import mounts, privileges, trees
from forgeone_shim.kernel.inotify import IN_CREATE, DirectoryEvents
from forgeone_shim.kernel.namespaces import write_proc
from forgeone_shim.kernel.syscalls import number, syscall

_CLONE_NEWUSER: Final = 0x10000000
# linux/mount.h, Linux 5.14.
_NOSYMFOLLOW: Final = 0x00200000
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_SIZE: Final = "64k"
_FILES: Final = "128"
_LISTENS_SECONDS: Final = 0.001


class Place:
    """For one monitor, that of this user. ``tree`` is to be mounted at :data:`~engines.microvm.vmm.view.PLACE`."""

    def __init__(self, who: Confinement) -> None:
        options = {"mode": "700", "uid": str(who.uid), "gid": str(who.gid), "size": _SIZE, "nr_inodes": _FILES}
        with step("mount", "the monitor's place"):
            self.tree = trees.new("tmpfs", options, trees.NOSUID | trees.NODEV | trees.NOEXEC | _NOSYMFOLLOW)
        self._who = who

    def listen(self, name: str) -> socket.socket:
        """A socket of that name to which the monitor, and nobody else, can connect."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with step("bind", name):
                listener.bind(self._here(name))
                os.chown(self._here(name), self._who.uid, self._who.gid, follow_symlinks=False)
                listener.listen(1)
        except BaseException:
            listener.close()
            raise
        return listener

    def connect(self, name: str) -> socket.socket:
        """A connection to the socket that the monitor has there. Raises OSError."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.connect(self._here(name))
        except BaseException:
            made.close()
            raise
        return made

    def await_socket(self, name: str, process: Confined, deadline: Deadline) -> None:
        """Until the monitor has made its socket.

        :raises InternalError: it ended before.
        :raises DeadlineExceeded: it has not made it by then.
        """
        with step("watch", name):
            events = DirectoryEvents(Path(f"/proc/self/fd/{self.tree}"), IN_CREATE)
        try:
            while (refused := self._refused(name)) != 0:
                # No event tells of the moment between bind(2) and listen(2).
                seconds = None if refused == errno.ENOENT else _LISTENS_SECONDS
                if process.pidfd in readable((events.fileno(), process.pidfd), deadline, f"for its {name}", seconds):
                    raise InternalError("the monitor ended as soon as it was started")
                events.read()
        finally:
            events.close()

    def _refused(self, name: str) -> int:
        """Why nobody can connect to a socket that the monitor makes, 0: somebody can."""
        try:
            self.connect(name).close()
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ECONNREFUSED}:
                raise InternalError(f"connect {name}: {error.strerror}") from error
            return error.errno
        return 0

    def fill(self, name: str, content: bytes) -> str:
        """A file that the monitor can read; the path that it knows it by."""
        with step("write", name), open(self._here(name), "xb") as file:
            os.fchmod(file.fileno(), 0o444)
            file.write(content)
        return f"{PLACE}/{name}"

    def show(self, name: str, image: int, process: Confined) -> str:
        """Have the monitor see a file of root's, to read; the path that it knows it by.

        :raises FailedPrecondition: its file system cannot show it to another user.
        """
        with ExitStack() as stack, step("mount", name):
            tree = mounts.clone(f"/proc/self/fd/{image}")
            stack.callback(os.close, tree)
            owners = _owners(self._who)
            stack.callback(os.close, owners)
            try:
                attributes = trees.RDONLY | trees.NOSUID | trees.NODEV | trees.NOEXEC
                trees.change(tree, attributes, propagation="rprivate", userns=owners)
            except OSError as error:
                why = f"the file system of a disk's image cannot be shown to another user: {error.strerror}"
                raise FailedPrecondition(why, fix="keep forgeoned's root on ext4, XFS, Btrfs or tmpfs") from error
            os.close(os.open(self._here(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o400))
            stack.callback(os.unlink, self._here(name))
            target = os.open(self._here(name), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, target)
            with process.inside():
                trees.attach(tree, target)
            stack.pop_all()
            for fd in (tree, owners, target):
                os.close(fd)
        return f"{PLACE}/{name}"

    def forget(self, name: str) -> None:
        """Remove a socket or a file that is not shown; one that is not there is no error."""
        with step("unlink", name), contextlib.suppress(FileNotFoundError):
            os.unlink(self._here(name))  # noqa: PTH108 -- of a directory that has no path

    def hide(self, name: str, process: Confined) -> None:
        """Take such a file away; a monitor that still has it open keeps it until then."""
        with step("umount", name), process.inside():
            syscall(number("umount2"), f"{PLACE}/{name}".encode(), _MNT_DETACH | _UMOUNT_NOFOLLOW)
        self.forget(name)

    def close(self) -> None:
        """Let go of it; it goes with the monitor. Again is no error."""
        if self.tree >= 0:
            os.close(self.tree)
            self.tree = -1

    def _here(self, name: str) -> str:
        return f"/proc/self/fd/{self.tree}/{name}"


def readable(fds: tuple[int, ...], deadline: Deadline, what: str, seconds: float | None = None) -> list[int]:
    """Those that can be read from; none of them is after so many seconds.

    :raises DeadlineExceeded: none is by then.
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    left = deadline.remaining(seconds)
    found = [fd for fd, _ in poll.poll(None if left is None else int(left * 1000 + 0.999))]
    if not found and deadline.passed:
        raise DeadlineExceeded(f"deadline passed while a monitor was waited {what}")
    return found


def _owners(who: Confinement) -> int:
    """A user namespace in which root is the monitor's user, for a mount. This process has one thread."""
    with _stopped_child() as pid:
        write_proc(f"/proc/{pid}/uid_map", f"0 {who.uid} 1")
        write_proc(f"/proc/{pid}/gid_map", f"0 {who.gid} 1")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def _stopped_child() -> Iterator[int]:
    """A process in a new user namespace that does nothing, for as long as the block."""
    told, tell = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            privileges.die_with_parent()
            syscall(number("unshare"), _CLONE_NEWUSER)
            os.write(tell, b"+")
            while os.getppid() == parent:
                signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        if not os.read(told, 1):
            raise OSError(errno.EPERM, "no user namespace can be made")
        yield pid
    finally:
        os.close(told)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
