"""The streams of a guest that was started beside a container's own: kept for a caller, or in a client's hands."""

from __future__ import annotations

import contextlib
import os
import socket
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
from forgeone_shim.shim.consoles import OwnStreams

_CODE_SECONDS: Final = 10.0


class ExecConsole(OwnStreams):
    """Implements :class:`engines.base.Console` for one more guest in a container.

    The guest is ended by the end of the connection to the process that waits for it.
    """

    def __init__(self, container_id: str) -> None:
        super().__init__()
        self._container_id = container_id
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
            streams = self._open_terminal(theirs, stdio) if stdio.tty else self._open_streams(theirs, stdio)
            self._connection = zygote.execute(code, execution, target, streams, deadline)
            self._connection.setblocking(False)

    def _open_terminal(self, theirs: contextlib.ExitStack, stdio: Stdio) -> tuple[int, int, int]:
        master, slave = os.openpty()
        theirs.callback(os.close, slave)
        self._take_terminal(master, stdin=stdio.stdin)
        return slave, slave, slave

    def _open_streams(self, theirs: contextlib.ExitStack, stdio: Stdio) -> tuple[int, int, int]:
        """Pipes for the wanted streams; what is not wanted is /dev/null."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        theirs.callback(os.close, null)
        ends = self._open_pipes(theirs, stdio)
        return ends.get(0, null), ends.get(1, null), ends.get(2, null)

    @property
    def exited(self) -> int:
        """The connection: the guest's end is told by it."""
        return -1 if self._connection is None else self._connection.fileno()

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
        self._close_pipes()
        self._close_terminal()
