"""The streams of a guest that was started beside a container's own: kept for a caller, or in a client's hands."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
from typing import Final

from engines.base import ExecResult, Output, Stdio
from engines.wasm import messages
from engines.wasm.client import Zygote
from engines.wasm.messages import Code, Ended, Execution
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError
from forgeone_shim.kernel.procs import Pidfd
from forgeone_shim.kernel.spawn import collect
from forgeone_shim.shim import wire

_CHUNK: Final = 64 * 1024
_CODE_SECONDS: Final = 10.0


class ExecConsole:
    """Implements :class:`engines.base.Console` for one more guest in a container.

    The guest is ended by the end of the connection to the process that waits for it.
    """

    def __init__(self, container_id: str) -> None:
        self._container_id = container_id
        self._outputs: dict[int, Output] = {}
        self._input = -1
        self._terminal = -1
        self._connection: socket.socket | None = None
        self._code: int | None = None
        self._closed = False

    def start(
        self,
        zygote: Zygote,
        code: tuple[Code, int],
        execution: Execution,
        target: Pidfd,
        stdio: Stdio,
        *,
        deadline: Deadline,
    ) -> None:
        """Have it started beside ``target``, the container's first process. On an error :meth:`close` is still due.

        ``code`` comes with its file's descriptor.
        """
        with contextlib.ExitStack() as theirs:
            streams = self._open_terminal(theirs) if stdio.tty else self._open_pipes(theirs, stdio)
            if stdio.tty and stdio.stdin:
                self._input = self._terminal
            self._connection = zygote.execute(code, execution, target, streams, deadline)
            self._connection.setblocking(False)

    def _open_terminal(self, theirs: contextlib.ExitStack) -> tuple[int, int, int]:
        self._terminal, slave = os.openpty()
        theirs.callback(os.close, slave)
        os.set_blocking(self._terminal, False)
        self._outputs[self._terminal] = Output.STDOUT
        return slave, slave, slave

    def _open_pipes(self, theirs: contextlib.ExitStack, stdio: Stdio) -> tuple[int, int, int]:
        """Pipes for the wanted streams; what is not wanted is /dev/null."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        theirs.callback(os.close, null)
        streams = [null, null, null]
        if stdio.stdin:
            streams[0], self._input = os.pipe2(os.O_CLOEXEC)
            theirs.callback(os.close, streams[0])
            os.set_blocking(self._input, False)
        for number, wanted, output in ((1, stdio.stdout, Output.STDOUT), (2, stdio.stderr, Output.STDERR)):
            if wanted:
                read, streams[number] = os.pipe2(os.O_CLOEXEC)
                theirs.callback(os.close, streams[number])
                os.set_blocking(read, False)
                self._outputs[read] = output
        return streams[0], streams[1], streams[2]

    @property
    def readers(self) -> tuple[int, ...]:
        """Pipes, or the terminal."""
        return tuple(self._outputs)

    @property
    def writer(self) -> int:
        """The pipe, or the terminal."""
        return self._input

    @property
    def exited(self) -> int:
        """The connection: the guest's end is told by it."""
        return -1 if self._connection is None else self._connection.fileno()

    def read(self, fd: int) -> tuple[Output, bytes] | None:
        """What is there; a terminal whose other side has gone has ended."""
        output = self._outputs[fd]
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""
        if not data:
            del self._outputs[fd]
            if fd != self._terminal:
                os.close(fd)
        return output, data

    def write(self, data: bytes) -> int:
        """How much was taken; all of it when nobody reads any more."""
        if self._input < 0:
            return len(data)
        try:
            return os.write(self._input, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            self.end_input()
            return len(data)

    def end_input(self) -> None:
        """Close the pipe; a terminal that reads lines, which cannot be half closed, gets what stands for an end."""
        fd, self._input = self._input, -1
        if fd < 0:
            return
        if fd != self._terminal:
            os.close(fd)
            return
        with contextlib.suppress(OSError, termios.error):
            attributes = termios.tcgetattr(fd)
            if attributes[3] & termios.ICANON:
                os.write(fd, attributes[6][termios.VEOF])

    def resize(self, width: int, height: int) -> None:
        """TIOCSWINSZ."""
        if self._terminal >= 0:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def finish(self) -> int:
        """The exit code: 128 and the signal's number where one ended it."""
        return self.exit_code(Deadline.after(_CODE_SECONDS))

    def exit_code(self, deadline: Deadline) -> int:
        """:raises DeadlineExceeded: it has not ended."""
        if self._code is None:
            self._code = self._receive(deadline)
        return self._code

    def _receive(self, deadline: Deadline) -> int:
        if self._connection is None:
            raise InternalError(f"exec in container {self._container_id} was never started")
        self._connection.settimeout(deadline.remaining())
        try:
            answer = messages.decode_answer(wire.receive(self._connection).data)
        except (TimeoutError, BlockingIOError) as error:
            raise DeadlineExceeded(f"command in container {self._container_id} has not ended") from error
        except (wire.Ended, wire.ProtocolError, OSError) as error:
            raise InternalError(f"exec in container {self._container_id} left no exit code: {error}") from error
        if not isinstance(answer, Ended):
            raise InternalError(f"exec in container {self._container_id} ended with {answer}")
        return answer.code

    def collect(self, deadline: Deadline, limit: int) -> ExecResult:
        """Everything it writes until it ends.

        :raises DeadlineExceeded: it has not ended by then, and will be killed.
        """
        streams = {output: fd for fd, output in self._outputs.items()}
        # Nothing but the guest holds the other ends, so they end with it.
        kept = collect(tuple(streams.values()), until=None, deadline=deadline, limit=limit)
        try:
            code = self.exit_code(deadline) if kept.finished else None
        except DeadlineExceeded:
            code = None
        if code is None:
            raise DeadlineExceeded(f"command in container {self._container_id} was killed as its time was over")
        out, err = kept.data[streams[Output.STDOUT]], kept.data[streams[Output.STDERR]]
        return ExecResult(code, out, err, kept.truncated)

    def close(self) -> None:
        """Let go, which ends what still runs. Closing a terminal hangs up on what is left."""
        if self._closed:
            return
        self._closed = True
        if self._connection is not None:
            self._connection.close()
        owned = {self._input, self._terminal, *self._outputs} - {-1}
        self._outputs.clear()
        self._input = self._terminal = -1
        wire.close_all(owned)
