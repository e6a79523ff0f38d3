"""The streams of a command that is executed in a guest: kept for a caller, or in a client's hands."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from engines.base import ExecResult, Output, Stdio
from engines.microvm import client
from engines.microvm.client import Keeper
from engines.microvm.keeper.orders import Ended
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError
from forgeone_shim.kernel.spawn import collect
from forgeone_shim.shim import contract, wire
from forgeone_shim.shim.consoles import OwnStreams
from forgeone_shim.shim.supervision import Failed

_CODE_SECONDS: Final = 10.0


class ExecConsole(OwnStreams):
    """Implements :class:`engines.base.Console` for a command in a guest, whose terminal, if any, is in the guest.

    The command is ended by the end of the connection to the keeper.
    """

    def __init__(self, container_id: str) -> None:
        super().__init__()
        self._container_id = container_id
        self._connection: socket.socket | None = None
        self._tty = False
        self._code: int | None = None
        self._closed = False

    def start(self, keeper: Keeper, payload: bytes, stdio: Stdio, deadline: Deadline) -> None:
        """Have it started; on an error :meth:`close` is still due.

        ``payload``: the fields of :attr:`Kind.EXEC` but PROCESS; its program's TTY and STDIN are as in ``stdio``.
        """
        self._tty = stdio.tty
        # A terminal has one output.
        wanted = Stdio(stdin=stdio.stdin, stdout=True) if stdio.tty else stdio
        with contextlib.ExitStack() as theirs:
            streams = self._open_pipes(theirs, wanted)
            connection = keeper.execute(self._container_id, payload, streams, deadline)
        connection.setblocking(False)
        self._connection = connection

    @property
    def exited(self) -> int:
        """The connection: the command's end is told by it."""
        return -1 if self._connection is None else self._connection.fileno()

    def resize(self, width: int, height: int) -> None:
        """By the keeper, in the guest; no error without a terminal."""
        if self._tty and self._connection is not None and self._code is None:
            client.resize(self._connection, width, height)

    def finish(self) -> int:
        """The exit code: 128 and the signal's number where one ended it."""
        return self.exit_code(Deadline.after(_CODE_SECONDS))

    def exit_code(self, deadline: Deadline) -> int:
        """:raises DeadlineExceeded: it has not ended.

        :raises InternalError: it ended with its machine.
        """
        if self._code is None:
            self._code = self._receive(deadline)
        return self._code

    def _receive(self, deadline: Deadline) -> int:
        if self._connection is None:
            raise InternalError(f"exec in container {self._container_id} was never started")
        self._connection.settimeout(deadline.remaining())
        try:
            message = wire.receive(self._connection)
        except (TimeoutError, BlockingIOError) as error:
            raise DeadlineExceeded(f"command in container {self._container_id} has not ended") from error
        except (wire.Ended, wire.ProtocolError, OSError) as error:
            raise InternalError(f"exec in container {self._container_id} left no exit code: {error}") from error
        message.close()
        answer = client.read_answer(message.data)
        if isinstance(answer, Failed):
            raise contract.create_error("", answer)
        if not isinstance(answer, Ended):
            raise InternalError(f"exec in container {self._container_id} ended with {type(answer).__name__}")
        return answer.code

    def collect(self, deadline: Deadline, limit: int) -> ExecResult:
        """Everything it writes until it ends, at most ``limit`` bytes of each stream.

        :raises DeadlineExceeded: it has not ended by then, and will be killed.
        """
        streams = {output: fd for fd, output in self._outputs.items()}
        # Nothing but the keeper holds the other ends, which closes them when the command has ended.
        kept = collect(tuple(streams.values()), until=None, deadline=deadline, limit=limit)
        try:
            code = self.exit_code(deadline) if kept.finished else None
        except DeadlineExceeded:
            code = None
        if code is None:
            raise DeadlineExceeded(f"command in container {self._container_id} was killed as its time was over")
        out, err = (kept.data.get(streams.get(output, -1), b"") for output in (Output.STDOUT, Output.STDERR))
        return ExecResult(code, out, err, kept.truncated)

    def close(self) -> None:
        """Let go, which ends what still runs."""
        if self._closed:
            return
        self._closed = True
        if self._connection is not None:
            self._connection.close()
        self._close_pipes()
