"""A conversation with a QEMU: one command at a time, and the events that come between."""

from __future__ import annotations

import array
import contextlib
import select
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from engines.microvm.vmm.qemu.qmp import (
    EVENTS_MAX,
    Greeting,
    Happened,
    Message,
    Parser,
    QmpError,
    Refused,
    Returned,
    command,
)
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError

_CHUNK: Final = 64 * 1024
# Of one look: whoever talks without end is looked at again.
_CHUNKS: Final = 4
_NO_ARGUMENTS: Final[Mapping[str, object]] = {}


class Gone(InternalError):
    """The other side has ended, or says what cannot be understood."""


class Monitor:
    """Used by one thread; closes the connection it was given at :meth:`close`.

    :class:`Gone` says that there is nobody to talk to any more, InternalError that a command was refused.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._parser = Parser()
        self._events: deque[Happened] = deque()
        self._asked = 0
        self._broken = ""

    def fileno(self) -> int:
        """Of the connection."""
        return self._connection.fileno()

    def greet(self, deadline: Deadline) -> None:
        """Wait until it is there, and let it take commands."""
        for message in self._heard(deadline, "start"):
            if isinstance(message, Greeting):
                break
        self.execute("qmp_capabilities", deadline)

    def execute(
        self, name: str, deadline: Deadline, arguments: Mapping[str, object] = _NO_ARGUMENTS, *, fd: int = -1
    ) -> Any:
        """What the command returns. ``fd`` goes with it.

        :raises InternalError: it is refused.
        """
        self._asked += 1
        number = self._asked
        self._send(command(name, number, arguments), (fd,) if fd >= 0 else (), deadline, name)
        for message in self._heard(deadline, name):
            if isinstance(message, Returned) and message.id == number:
                return message.value
            if isinstance(message, Refused) and message.id in (number, -1):
                raise InternalError(f"QEMU refuses {name}: {message.message}")
        raise AssertionError

    def wait(self, wanted: Callable[[Happened], bool], doing: str, deadline: Deadline) -> Happened:
        """The next event that is wanted; it is not among :meth:`events` then."""
        while True:
            for event in self._events:
                if wanted(event):
                    self._events.remove(event)
                    return event
            self._listen(deadline, doing)

    def events(self) -> list[Happened]:
        """What has happened; never blocks. An end, or nonsense, is no event: :class:`Gone`, after all of them."""
        if not self._events:
            with contextlib.suppress(BlockingIOError):
                for _ in range(_CHUNKS):
                    self._take()
        found = list(self._events)
        self._events.clear()
        if not found and self._broken:
            raise Gone(self._broken)
        return found

    def close(self) -> None:
        """Hang up; again is no error."""
        self._connection.close()

    def _heard(self, deadline: Deadline, doing: str) -> Iterator[Message]:
        while True:
            yield from self._listen(deadline, doing)

    def _listen(self, deadline: Deadline, doing: str) -> list[Message]:
        """Answers of which there is at least the hope; events are put aside."""
        if self._broken:
            raise Gone(f"{doing}: {self._broken}")
        self._await(select.POLLIN, deadline, doing)
        try:
            answers = self._take()
        except BlockingIOError:
            return []
        if self._broken and not answers and not self._events:
            raise Gone(f"{doing}: {self._broken}")
        return answers

    def _take(self) -> list[Message]:
        """One piece of what came; BlockingIOError where nothing has."""
        if self._broken:
            return []
        try:
            data = self._connection.recv(_CHUNK)
        except BlockingIOError:
            raise
        except OSError as error:
            self._broken = f"QEMU cannot be heard: {error.strerror}"
            return []
        if not data:
            self._broken = "QEMU has ended"
            return []
        answers: list[Message] = []
        try:
            for message in self._parser.feed(data):
                if isinstance(message, Happened):
                    self._events.append(message)
                else:
                    answers.append(message)
            if len(self._events) > EVENTS_MAX:
                raise QmpError(f"more than {EVENTS_MAX} events at once")
        except QmpError as error:
            self._broken = f"QEMU is not itself: {error}"
            # So that whoever polls it comes to know.
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        return answers

    def _send(self, data: bytes, fds: Sequence[int], deadline: Deadline, doing: str) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        left = memoryview(data)
        while left:
            try:
                left = left[self._connection.sendmsg([left], rights, socket.MSG_NOSIGNAL) :]
                rights = []
            except BlockingIOError:
                self._await(select.POLLOUT, deadline, doing)
            except OSError as error:
                raise Gone(f"{doing}: QEMU has ended") from error

    def _await(self, event: int, deadline: Deadline, doing: str) -> None:
        poll = select.poll()
        poll.register(self._connection, event)
        left = deadline.remaining()
        # One that talks on and on says nothing that is waited for.
        if deadline.passed or not poll.poll(None if left is None else int(left * 1000 + 0.999)):
            raise DeadlineExceeded(f"deadline passed while QEMU was to {doing}")
