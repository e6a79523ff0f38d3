"""``forge exec`` and ``forge attach``: a process's streams are this one's."""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

from cri.api import runtime_pb2 as cri
from cri.streaming.wire import Wire
from forgeone_shim.cli import dial, logs
from forgeone_shim.cli.client import Client, running_container
from forgeone_shim.cli.remote import PROTOCOL, Detach, Remote
from forgeone_shim.cli.terminal import Terminal, raw
from forgeone_shim.errors import DeadlineExceeded, InvalidInput, Unavailable

_STDIN: Final = 0
_LOST: Final = "the connection to forgeoned is lost"
_CHUNK: Final = 64 * 1024
_ENDED: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL


def execute(client: Client, args: argparse.Namespace) -> int:
    """Run a command in a container; its exit code is this command's. It does not outlive this command."""
    if args.tty and args.stdin and not os.isatty(_STDIN):
        raise InvalidInput("--tty", "standard input is not a terminal", fix="leave out -t, or -i")
    target = running_container(client, args.container)
    request = cri.ExecRequest(
        container_id=target.id, cmd=args.command, stdin=args.stdin, tty=args.tty, stdout=True, stderr=not args.tty
    )
    with ExitStack() as stack:
        url = client.call(client.runtime.Exec, request).url
        session = Session(client, url, stack, stdin=args.stdin, tty=args.tty)
        if args.timeout:
            session.end_after(args.timeout)
        session.run()
        return session.remote.outcome()


def attach(client: Client, args: argparse.Namespace) -> int:
    """The streams of a container's first process from now on; its exit code is this command's.

    Ctrl-p ctrl-q let go of a container with a terminal, ctrl-c of one without: it goes on.
    """
    target = running_container(client, args.container)
    _, info = client.status(target.id, verbose=True)
    stdin, tty = _has(info, "stdin") and not args.no_stdin, _has(info, "tty")
    request = cri.AttachRequest(container_id=target.id, stdin=stdin, tty=tty, stdout=True, stderr=not tty)
    with ExitStack() as stack:
        url = client.call(client.runtime.Attach, request).url
        session = Session(client, url, stack, stdin=stdin, tty=tty)
        if session.terminal is not None:
            session.detach = Detach()
            # Programs draw anew when the size changes, and this may be what it was.
            session.tell_size(more=1)
        detached = session.run()
        if not detached:
            session.remote.outcome()
    if detached:
        sys.stderr.write(f"\ndetached from {target.name}, which goes on\n")
        return 0
    return int(logs.ended(client, target.id).exit_code)


def _has(info: Mapping[str, str], key: str) -> bool:
    try:
        return bool(json.loads(info["info"]).get(key, False))
    except (KeyError, ValueError, AttributeError):
        return False


class Session:
    """A remote command on a connection, between this process's descriptors 0, 1 and 2."""

    def __init__(self, client: Client, url: str, stack: ExitStack, *, stdin: bool, tty: bool) -> None:
        """``stack`` hangs up, which ends a command and leaves a container, and gives the terminal back."""
        dialled = dial.websocket_to(client, url, PROTOCOL)
        self._wire: Wire = stack.enter_context(dialled.wire)
        self._early = dialled.early
        self._reading = stdin
        self._until: float | None = None
        self._timeout = 0
        self.remote = Remote()
        self.detach: Detach | None = None
        self.terminal: Terminal | None = None
        if tty and stdin and os.isatty(_STDIN):
            self.terminal = stack.enter_context(raw(_STDIN))

    def end_after(self, seconds: int) -> None:
        """It may last so long."""
        self._until, self._timeout = time.monotonic() + seconds, seconds

    def tell_size(self, more: int = 0) -> None:
        """Say how large the terminal is, or (with ``more``) that it is larger than that."""
        size = self.terminal.size() if self.terminal is not None else None
        if size is not None:
            self.remote.resize(size[0] + more, size[1] + more)

    def settle(self) -> None:
        """Wait until forgeoned has the process's streams in hand, or is over with it: it answers after that."""
        self.tell_size()
        self.remote.ask()
        while not (self.remote.answered or self.remote.over):
            self._send()
            self._listen()

    def run(self) -> bool:
        """Until the process has ended, or (True) the user lets go of it.

        :raises DeadlineExceeded: it lasts too long.
        """
        self.tell_size()
        early, self._early = self._early, b""
        self._hear(early)
        while not self.remote.over:
            self._send()
            ready = self._poll()
            if self.terminal is not None and self.terminal.resized in ready:
                self.tell_size()
            if _STDIN in ready and self._type():
                return True
            seen = ready.get(self._wire.fileno(), 0)
            if seen & select.POLLOUT:
                self._wire.flush()
            if seen & ~select.POLLOUT:
                self._receive()
        return False

    def _listen(self) -> None:
        """Wait for the connection alone."""
        early, self._early = self._early, b""
        if early:
            self._hear(early)
            return
        poll = select.poll()
        poll.register(self._wire.fileno(), self._wire.interest(reading=True))
        for _, seen in poll.poll(dial.SECONDS * 1000) or [(0, 0)]:
            if not seen:
                raise Unavailable("forgeoned's streaming port does not answer")
            if seen & select.POLLOUT:
                self._wire.flush()
            if seen & ~select.POLLOUT:
                self._receive()

    def _receive(self) -> None:
        try:
            data = self._wire.receive()
        except OSError as error:
            raise Unavailable(_LOST) from error
        self._hear(data or b"")

    def _poll(self) -> dict[int, int]:
        poll = select.poll()
        poll.register(self._wire.fileno(), self._wire.interest(reading=True))
        if self._reading and not self._wire.full:
            poll.register(_STDIN, select.POLLIN)
        if self.terminal is not None:
            poll.register(self.terminal.resized, select.POLLIN)
        left = None if self._until is None else self._until - time.monotonic()
        if left is not None and left <= 0:
            raise DeadlineExceeded(f"the command was still running after {self._timeout} s, and is killed")
        return dict(poll.poll(None if left is None else int(left * 1000) + 1))

    def _send(self) -> None:
        try:
            self._wire.send(self.remote.take())
        except OSError as error:
            raise Unavailable(_LOST) from error

    def _hear(self, data: bytes) -> None:
        for output in self.remote.receive(data):
            _write(output.fd, output.data)

    def _type(self) -> bool:
        """Pass on what there is on standard input; whether the keys that let go were among it."""
        try:
            data = os.read(_STDIN, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # a terminal that has hung up
        if not data:
            self._reading = False
            self.remote.end_input()
            return False
        gone = False
        if self.detach is not None:
            data, gone = self.detach.feed(data)
        if data:
            self.remote.input(data)
        if gone:
            self._send()
        return gone


def _write(fd: int, data: bytes) -> None:
    """All of it, also to a descriptor that its owner made non-blocking."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            select.select([], [fd], [])
