"""Streams of a command that crun executes, in a client's hands."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import tempfile
from typing import Final

from engines.base import Stdio
from engines.native.conmon import Programs
from engines.native.execute import exec_error, said
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import (
    DeadlineExceeded,
    InternalError,
    syscall_error,
)
from forgeone_shim.kernel import procs
from forgeone_shim.kernel.spawn import Child, spawn
from forgeone_shim.shim.consoles import OwnStreams

_PROCESS, _LOG, _PID, _SOCKETS = 3, 4, 5, 6
_TERMINAL_SECONDS: Final = 30.0
_KILL_SECONDS: Final = 2.0
_CONSOLE_NAME: Final = "console"


class ExecConsole(OwnStreams):
    """Implements :class:`engines.base.Console` for a command executed by crun."""

    def __init__(self, container_id: str, owner: tuple[int, int] | None) -> None:
        super().__init__()
        self._container_id, self._owner = container_id, owner
        self._child: Child | None = None
        self._log = self._pid = -1
        self._closed = False

    def start(self, programs: Programs, bundle: str, process: bytes, stdio: Stdio) -> None:
        """Run crun with ``process``, an OCI process that has a terminal if ``stdio`` has.

        On an error :meth:`close` is still to be called.
        """
        argv = ["crun", *programs.crun_arguments, f"--log=/proc/self/fd/{_LOG}", "--log-format=json", "exec"]
        argv += [f"--pid-file=/proc/self/fd/{_PID}", f"--process=/proc/self/fd/{_PROCESS}"]
        with contextlib.ExitStack() as stack:
            spec = os.memfd_create("process", os.MFD_CLOEXEC)
            stack.callback(os.close, spec)
            os.write(spec, process)
            self._log = os.memfd_create("log", os.MFD_CLOEXEC)
            files = {_PROCESS: spec, _LOG: self._log}
            listener = None
            if stdio.tty:
                listener, files[_SOCKETS] = _listen(stack, bundle)
                argv += ["--tty", f"--console-socket=/proc/self/fd/{_SOCKETS}/{_CONSOLE_NAME}"]
            with contextlib.ExitStack() as childs:
                if not stdio.tty:
                    files |= self._open_pipes(childs, stdio, self._owner)
                self._pid, files[_PID] = os.pipe2(os.O_CLOEXEC)
                childs.callback(os.close, files[_PID])
                argv.append(self._container_id)
                child = self._child = spawn(
                    programs.crun.path(), argv, files=files, env=programs.environment, new_session=True
                )
            if listener is not None:
                self._take_terminal(self._receive_terminal(listener, child), stdin=stdio.stdin)

    def _receive_terminal(self, listener: socket.socket, child: Child) -> int:
        """The master that crun sends over the console socket."""
        deadline = Deadline.after(_TERMINAL_SECONDS)
        self._await(listener.fileno(), child, deadline)
        peer, _ = listener.accept()
        with peer:
            self._await(peer.fileno(), child, deadline)
            _, descriptors, _, _ = socket.recv_fds(peer, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        if not descriptors:
            raise InternalError(f"exec in container {self._container_id}: crun sent no terminal")
        return descriptors[0]

    def _await(self, fd: int, child: Child, deadline: Deadline) -> None:
        """Until ``fd`` is readable; crun's own failure or the deadline comes first as an error."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(child.pidfd.fileno(), select.POLLIN)
        left = deadline.remaining()
        ready = {found for found, _ in poll.poll(None if left is None else int(left * 1000))}
        if fd in ready:
            return
        if not ready:
            raise DeadlineExceeded(f"exec in container {self._container_id}: no terminal after {_TERMINAL_SECONDS:g} s")
        self.finish()
        raise InternalError(f"exec in container {self._container_id}: crun ended without a terminal")

    @property
    def exited(self) -> int:
        """crun's pidfd: it ends with the command."""
        return -1 if self._child is None else self._child.pidfd.fileno()

    def finish(self) -> int:
        """crun's exit code is the command's, unless it says that it failed itself."""
        code = None if self._child is None else self._child.wait()
        message = said(self._log)
        if message:
            raise exec_error(self._container_id, message)
        if code is None:
            raise InternalError(f"crun exec in container {self._container_id} left no exit code")
        return code

    def close(self) -> None:
        """Kill what still runs and give every descriptor back."""
        if self._closed:
            return
        self._closed = True
        self._close_pipes()
        if self._child is not None:
            with self._child as child:
                if child.wait(0) is None:
                    _kill(child, self._pid)
        self._close_terminal()
        for fd in (self._log, self._pid):
            if fd >= 0:
                os.close(fd)


def _listen(stack: contextlib.ExitStack, bundle: str) -> tuple[socket.socket, int]:
    """A socket for crun to send the terminal to, and a directory of its own, which is gone when ``stack`` closes.

    Named by way of the directory's descriptor, so that no path is too long for a socket's address.
    """
    path = stack.enter_context(tempfile.TemporaryDirectory(prefix="console-", dir=bundle))
    directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, directory)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    listener.bind(f"/proc/self/fd/{directory}/{_CONSOLE_NAME}")
    listener.listen(1)
    return listener, directory


def _kill(child: Child, pid_pipe: int) -> None:
    """Kill the command with its process group, then crun with its own: without a terminal they are the same.

    The pid that crun wrote is the command's only while crun is its parent.
    """
    os.set_blocking(pid_pipe, False)
    with contextlib.suppress(BlockingIOError, ValueError):
        pid = int(os.read(pid_pipe, 32))
        held = procs.open_process(pid)
        if held is not None:
            with held:
                seen = procs.stat(pid)
                if seen is not None and seen.parent == child.pid:
                    _kill_group(pid)
                    held.send(signal.SIGKILL)
                    child.wait(_KILL_SECONDS)
    if child.wait(0) is None:
        _kill_group(child.pid)
    child.kill()


def _kill_group(pid: int) -> None:
    """Kill the group that ``pid`` is in, if it is one of crun's session and not ours."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        group = os.getpgid(pid)
        if group != os.getpgrp():
            os.killpg(group, signal.SIGKILL)


def executed(
    programs: Programs,
    container_id: str,
    bundle: str,
    process: bytes,
    stdio: Stdio,
    *,
    owner: tuple[int, int] | None = None,
) -> ExecConsole:
    """Start the OCI process ``process`` in a running container; ``owner`` as :func:`engines.native.execute.run`."""
    console = ExecConsole(container_id, owner)
    try:
        console.start(programs, bundle, process, stdio)
    except OSError as error:
        console.close()
        raise syscall_error("exec in container", container_id, error) from error
    except BaseException:
        console.close()
        raise
    return console
