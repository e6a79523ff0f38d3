"""Freezing all processes of a control group.

Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst, and ``cgroup.freeze`` in cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from pathlib import Path

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, syscall_error
from forgeone_shim.kernel.cgroups import CgroupHost, Mode, relative, write

_LOOK_EVERY = 0.01
_WAIT_AT_MOST = 0.5


def freeze(host: CgroupHost, cgroup: str, deadline: Deadline) -> None:
    """Returns when no process of ``cgroup`` runs any more; on any error they go on.

    :raises FailedPrecondition: there is no such cgroup, or this host cannot freeze one.
    :raises DeadlineExceeded: the processes did not stop in time.
    """
    directory = _directory(host, cgroup)
    if directory is None:
        raise FailedPrecondition(f"cgroup {cgroup} cannot be frozen: there is none, or no freezer")
    with contextlib.ExitStack() as undo:
        undo.callback(thaw, host, cgroup)
        try:
            if host.mode is Mode.V2:
                _freeze_v2(directory, deadline)
            else:
                _freeze_v1(directory, deadline)
        except OSError as error:
            raise syscall_error("freeze", directory, error) from error
        undo.pop_all()


def thaw(host: CgroupHost, cgroup: str) -> None:
    """Let the processes go on; a cgroup that is not frozen, or has gone, is no error."""
    directory = _directory(host, cgroup)
    if directory is None:
        return
    try:
        if host.mode is Mode.V2:
            write(f"{directory}/cgroup.freeze", "0")
        else:
            write(f"{directory}/freezer.state", "THAWED")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise syscall_error("thaw", directory, error) from error


def _directory(host: CgroupHost, cgroup: str) -> str | None:
    if not relative(cgroup):
        return None
    found = host.unified + relative(cgroup) if host.mode is Mode.V2 else host.directory("freezer", cgroup)
    return found if found and Path(found).is_dir() else None


def _freeze_v2(directory: str, deadline: Deadline) -> None:
    events = os.open(f"{directory}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        write(f"{directory}/cgroup.freeze", "1")
        while b"frozen 1" not in os.pread(events, 4096, 0):
            deadline.check("while a container was frozen")
            left = deadline.remaining(_WAIT_AT_MOST) or 0.0
            poll.poll(int(left * 1000))
    finally:
        os.close(events)


def _freeze_v1(directory: str, deadline: Deadline) -> None:
    state = Path(directory, "freezer.state")
    # A process that is being born escapes the first attempt; the kernel tells nobody, so it is asked.
    while True:
        write(str(state), "FROZEN")
        if state.read_text().strip() == "FROZEN":
            return
        deadline.check("while a container was frozen")
        time.sleep(_LOOK_EVERY)
