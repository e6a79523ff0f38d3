"""Where a container's log goes: straight into its file, or through a pump that holds a rate."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError, syscall_error
from forgeone_shim.kernel.procs import Pidfd, of_pidfile
from forgeone_shim.kernel.spawn import collect, spawn
from forgeone_shim.shim.programs import Program

FIFO = "log.fifo"
PIDFILE = "log-pump.pid"
# Where conmon writes the pid of the container's first process.
CONTAINER_PIDFILE = "pidfile"
# What is in a bundle for a log with a rate.
FILES = (FIFO, PIDFILE)
_PUMP = Program("forgeone_shim.shim.log_pump", ("forgeone_shim",))
_GONE_SECONDS = 5.0
_SAID_MAX = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one container's log: ``size_max`` bytes of the file, ``rate`` bytes a second; 0 is no limit."""

    size_max: int = 0
    rate: int = 0


@contextlib.contextmanager
def pumped(bundle: str, log_path: str, limits: Limits, deadline: Deadline) -> Iterator[str]:
    """The path for conmon to write the log to. A pump behind it stays if the block is left without an error.

    Where forgeoned is killed within the block, a pump that nobody writes to ends by itself.
    """
    if not log_path or not limits.rate:
        yield log_path
        return
    fifo = f"{bundle}/{FIFO}"
    try:
        os.mkfifo(fifo, 0o600)
    except OSError as error:
        raise syscall_error("make fifo", fifo, error) from error
    with contextlib.ExitStack() as undo:
        undo.callback(_remove, bundle)
        lifeline = _start(bundle, log_path, limits, deadline)
        with contextlib.closing(lifeline):
            yield fifo
        undo.pop_all()


class _End:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)


def _start(bundle: str, log_path: str, limits: Limits, deadline: Deadline) -> _End:
    """Returns once the pump listens and has its log file; what is returned must be closed when conmon is there."""
    argv = _PUMP.command(f"{bundle}/{FIFO}", log_path)
    argv += [str(limits.rate), str(limits.size_max), f"{bundle}/{PIDFILE}", f"{bundle}/{CONTAINER_PIDFILE}"]
    with contextlib.ExitStack() as undo:
        life, lifeline = os.pipe2(os.O_CLOEXEC)
        undo.callback(os.close, lifeline)
        said, errors = os.pipe2(os.O_CLOEXEC)
        with contextlib.ExitStack() as ends:
            ends.callback(os.close, said)
            with contextlib.ExitStack() as theirs:
                theirs.callback(os.close, life)
                theirs.callback(os.close, errors)
                try:
                    child = ends.enter_context(spawn(argv[0], argv, files={0: life, 2: errors}, new_session=True))
                except OSError as error:
                    raise syscall_error("start", argv[0], error) from error
            output = collect([said], until=child.pidfd, deadline=deadline, limit=_SAID_MAX)
            if not output.finished:
                raise DeadlineExceeded("deadline passed while the container's log was opened")
            if child.wait():
                words = output.data[said].decode(errors="replace").strip().splitlines()
                raise InternalError(f"log {log_path}: {words[-1] if words else 'its pump ended at once'}")
        undo.pop_all()
    return _End(lifeline)


def pump(bundle: str) -> Pidfd | None:
    """The pump of a container's log, if it has one that lives."""
    return of_pidfile(Path(bundle, PIDFILE), f"{bundle}/{FIFO}")


def reopen(bundle: str) -> bool:
    """Ask the pump to open its log anew; it changes the new file's times when it has. False: there is no pump."""
    held = pump(bundle)
    if held is None:
        return False
    with held:
        held.send(signal.SIGHUP)
    return True


def end(bundle: str, patience: float = _GONE_SECONDS) -> None:
    """Wait ``patience`` seconds for the pump to pass on the rest, once conmon has gone; then kill it."""
    held = pump(bundle)
    if held is None:
        return
    with held:
        if not (patience > 0 and held.wait(patience)):
            held.send(signal.SIGKILL)
            held.wait(_GONE_SECONDS)


def _remove(bundle: str) -> None:
    end(bundle, patience=0.0)
    for name in FILES:
        with contextlib.suppress(FileNotFoundError):
            Path(bundle, name).unlink()
