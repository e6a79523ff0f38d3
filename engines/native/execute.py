"""Running a command in a container: ``crun exec`` between two pipes, without a supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Sequence

from engines.base import ExecResult
from engines.native.conmon import Programs
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, ForgeError, InternalError, InvalidInput, NotFound, syscall_error
from forgeone_shim.kernel import procs
from forgeone_shim.kernel.spawn import Child, collect, spawn

_PROCESS, _LOG, _PID = 3, 4, 5
_LOG_MAX = 64 * 1024


def run(
    programs: Programs,
    container_id: str,
    process: bytes,
    timeout: float | None,
    limit: int,
    *,
    owner: tuple[int, int] | None = None,
) -> ExecResult:
    """Execute the OCI process ``process`` in a running container and keep what it writes.

    Its pipes belong to ``owner`` (user and group on the host), so that it may open them by name; to root unless given.

    crun gets its input and gives its pid and errors through descriptors, so nothing touches a disk and crun's own
    failure cannot be taken for the command's.
    """
    with contextlib.ExitStack() as stack:
        spec = stack.enter_context(_memory("process", process))
        log = stack.enter_context(_memory("log"))
        out, out_child = _pipe(stack)
        err, err_child = _pipe(stack)
        pid, pid_child = _pipe(stack)
        if owner is not None:
            for fd in (out, err):
                os.fchown(fd, *owner)
        argv = ["crun", *programs.crun_arguments, f"--log=/proc/self/fd/{_LOG}", "--log-format=json", "exec"]
        argv += [f"--pid-file=/proc/self/fd/{_PID}", f"--process=/proc/self/fd/{_PROCESS}", container_id]
        files = {1: out_child, 2: err_child, _PROCESS: spec, _LOG: log, _PID: pid_child}
        try:
            child = spawn(programs.crun.path(), argv, files=files, env=programs.environment)
        except OSError as error:
            raise syscall_error("start", "crun", error) from error
        with child:
            for fd in (out_child, err_child, pid_child):
                os.close(fd)
            output = collect([out, err], until=child.pidfd, deadline=Deadline.after(timeout), limit=limit)
            if not output.finished:
                _kill(child, pid)
                raise DeadlineExceeded(f"command in container {container_id} was killed after {timeout:g} s")
            code = child.wait()
        message = said(log)
        if message:
            raise exec_error(container_id, message)
        if code is None:
            raise InternalError(f"crun exec in container {container_id} left no exit code")
        return ExecResult(code, output.data[out], output.data[err], output.truncated)


def command(programs: Programs, words: Sequence[str], deadline: Deadline, *, patience: float = 0.0) -> str:
    """Run a crun command that answers at once; returns what is wrong, ``""`` if nothing is. Its streams are null.

    It is killed ``patience`` seconds after the deadline.
    """
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_memory("log"))
        argv = ["crun", *programs.crun_arguments, f"--log=/proc/self/fd/{_LOG}", "--log-format=json", *words]
        try:
            child = stack.enter_context(spawn(programs.crun.path(), argv, files={_LOG: log}, env=programs.environment))
        except OSError as error:
            raise syscall_error("start", "crun", error) from error
        code = child.wait(deadline.remaining())
        if code is None:
            if patience:
                child.wait(patience)
            raise DeadlineExceeded(f"deadline passed while crun {words[0]} ran")
        return "" if code == 0 else said(log) or f"crun {words[0]} failed with code {code}"


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    read, write = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, read)
    return read, write


@contextlib.contextmanager
def _memory(name: str, content: bytes = b"") -> Iterator[int]:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        yield fd
    finally:
        os.close(fd)


def _kill(child: Child, pid_pipe: int) -> None:
    """Kill the command, then crun. The pid that crun wrote is the command's only while crun is its parent."""
    os.set_blocking(pid_pipe, False)
    with contextlib.suppress(BlockingIOError, ValueError):
        pid = int(os.read(pid_pipe, 32))
        held = procs.open_process(pid)
        if held is not None:
            with held:
                seen = procs.stat(pid)
                if seen is not None and seen.parent == child.pid:
                    held.send(signal.SIGKILL)
                    child.wait(1.0)
    child.kill()


def said(log: int) -> str:
    """The last error crun logged; warnings are none."""
    last = ""
    for line in os.pread(log, _LOG_MAX, 0).splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and entry.get("level") == "error":
                last = str(entry.get("msg", ""))
    return last


def exec_error(container_id: str, message: str) -> ForgeError:
    """What crun said, as an error of the right kind."""
    if message.startswith(("executable file", "open executable", "exec:")):
        return InvalidInput("cmd", message)
    if "does not exist" in message:
        return NotFound("container", container_id)
    return InternalError(f"exec in container {container_id}: {message}")
