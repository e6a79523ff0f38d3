"""crun's own files, read (and where it is safe, acted on) without executing it.

Layout, the same from crun 0.13 to 1.x: ``ROOT/ID/status`` is JSON with the first process's ``pid`` and
``process-start-time``; ``ROOT/ID/exec.fifo`` exists while the container is created and waits on it to start.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from engines.base import Live, LiveState
from forgeone_shim.errors import InternalError
from forgeone_shim.kernel.procs import Pidfd, open_process


@dataclass(frozen=True, slots=True)
class Status:
    """What crun remembers of a container; ``started`` is in clock ticks since boot."""

    pid: int
    started: int
    cgroup: str


class Containers:
    """The containers below one crun ``--root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, container_id: str) -> Path:
        """crun's directory of a container."""
        return self.root / container_id

    def status(self, container_id: str) -> Status | None:
        """crun's memory of a container, ``None`` where there is none (or it was never completed)."""
        try:
            found = json.loads((self.directory(container_id) / "status").read_bytes())
            return Status(int(found["pid"]), int(found["process-start-time"]), str(found.get("cgroup-path", "")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise InternalError(f"crun's status file of container {container_id} is not as known: {error}") from error

    def first_process(self, container_id: str) -> Pidfd | None:
        """The first process, if it lives: the number in the status file is trusted only with its start time."""
        status = self.status(container_id)
        return None if status is None else open_process(status.pid, status.started)

    def waits_to_start(self, container_id: str) -> bool:
        """Whether the container was created and not started."""
        return (self.directory(container_id) / "exec.fifo").exists()

    def look(self, container_id: str, freezer: str | None) -> Live:
        """The container as it is now; ``freezer`` is the file that tells whether its cgroup is frozen."""
        status = self.status(container_id)
        if status is None:
            return Live(LiveState.MISSING)
        held = open_process(status.pid, status.started)
        if held is None:
            return Live(LiveState.STOPPED)
        held.close()
        if self.waits_to_start(container_id):
            return Live(LiveState.CREATED, status.pid)
        if freezer and _frozen(freezer):
            return Live(LiveState.PAUSED, status.pid)
        return Live(LiveState.RUNNING, status.pid)

    def release(self, container_id: str) -> bool:
        """Start a created container by writing to the fifo it reads, as ``crun start`` does.

        ``False`` when there is no fifo: it was started before, or another layout of crun's is in use. A container that
        died while it waited has no reader, which raises BrokenPipeError.
        """
        path = self.directory(container_id) / "exec.fifo"
        try:
            # The waiting process holds its end open for reading; without it, non-blocking open fails at once.
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise BrokenPipeError(errno.EPIPE, "no process waits to be started", str(path)) from error
            raise
        try:
            if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                return False
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            os.write(fd, b"\0")
        finally:
            os.close(fd)
        return True

    def forget(self, container_id: str) -> None:
        """Remove crun's directory of a container that has no processes and no cgroup any more."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.directory(container_id))


def _frozen(path: str) -> bool:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return False
    # Version 1 says for a moment, or for good where a process cannot be stopped, that it is at it: some stand already.
    return text in {"1", "FROZEN", "FREEZING"}
