"""The keeper's side of the file server. Nothing here waits."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from typing import Final

from engines.microvm.shares import orders
from engines.microvm.shares.orders import Add, Answer, Remove, Volume
from forgeone_shim.kernel.procs import Pidfd
from forgeone_shim.shim import wire
from forgeone_shim.shim.wire import ProtocolError

# A killed process's way out; one that the kernel keeps waiting goes when it is let.
_END_SECONDS: Final = 2.0


class FileServer:
    """A file server that runs as a child of this process, and the connection to it."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self._pid, self._connection = pid, connection
        self._tickets = 0
        self._reaped = False

    @property
    def pid(self) -> int:
        """Of the child, which is the caller's to reap: by :meth:`stop`, or told of by :meth:`reaped`."""
        return self._pid

    def fileno(self) -> int:
        """A descriptor that is readable when :meth:`answers` has something."""
        return self._connection.fileno()

    def add(self, volumes: Sequence[Volume], fds: Sequence[int]) -> list[int]:
        """Have volumes served whose descriptors (O_PATH; they stay the caller's) are ``fds``, in the same order.

        Returns a ticket for each :data:`wire.DESCRIPTORS_MAX` of them, which their answers bear. Nobody has to wait
        for those before the guest is told of the volumes.

        :raises OSError: the server is gone (ConnectionError), or is behind with far too many orders.
        """
        if len(volumes) != len(fds):
            raise ValueError(f"{len(volumes)} volumes with {len(fds)} descriptors")
        tickets = []
        for first in range(0, len(volumes), wire.DESCRIPTORS_MAX):
            past = first + wire.DESCRIPTORS_MAX
            ticket = self._next()
            wire.send(self._connection, orders.encode(Add(ticket, tuple(volumes[first:past]))), fds[first:past])
            tickets.append(ticket)
        return tickets

    def remove(self, numbers: Sequence[int]) -> int:
        """Have it let go of volumes. Returns the ticket; raises as :meth:`add`."""
        ticket = self._next()
        wire.send(self._connection, orders.encode(Remove(ticket, tuple(numbers))))
        return ticket

    def answers(self) -> list[Answer]:
        """What it has said since.

        :raises wire.Ended: it is gone; what it said before was returned by an earlier call.
        :raises ProtocolError: it says what no file server says.
        """
        found: list[Answer] = []
        while True:
            try:
                message = wire.receive(self._connection)
            except BlockingIOError:
                return found
            except wire.Ended:
                if found:
                    return found
                raise
            with contextlib.closing(message):
                if message.fds:
                    raise ProtocolError("a file server sent descriptors")
                found.append(orders.decode_answer(message.data))

    def reaped(self) -> None:
        """The caller has waited for the child, so that its number may be another's by now."""
        self._reaped = True

    def stop(self) -> None:
        """End it and wait for its end, but not for a file system that does not answer it; again is no error."""
        self._connection.close()
        if self._reaped:
            return
        self._reaped = True
        with contextlib.suppress(ProcessLookupError, ChildProcessError), Pidfd(self._pid) as held:
            held.send(signal.SIGKILL)
            if held.wait(_END_SECONDS):
                os.waitpid(self._pid, 0)

    def _next(self) -> int:
        self._tickets += 1
        return self._tickets
