"""What the machine has of the host's files: by its file server."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable, Sequence
from typing import Final

from engines.microvm.keeper.orders import Volume
from engines.microvm.shares import client as shares
from engines.microvm.shares import orders
from engines.microvm.shares.launch import READY_TICKET
from engines.microvm.shares.orders import Broken, Failed
from engines.microvm.wire.fields import ProtocolError
from forgeone_shim.errors import ResourceExhausted
from forgeone_shim.shim import wire
from forgeone_shim.shim.loop import Loop

_FIRST: Final = 1
Launch = Callable[[socket.socket], shares.FileServer]


class FilesEnded(Exception):
    """The machine has its volumes no more."""


class Volumes:
    """``channel`` is the host's side of the machine's share port, this one's from now on.

    ``launch`` starts the file server on it: at once, for it takes what a keeper gives up.
    """

    def __init__(self, loop: Loop, channel: socket.socket, launch: Launch) -> None:
        """Raises OSError where there is no file server to be had."""
        self._loop = loop
        self._server = launch(channel)
        channel.close()
        loop.watch(self._server.fileno(), lambda _: self._said())
        self._numbers = itertools.count(_FIRST)
        self._tickets: dict[int, Callable[[str], None]] = {}
        self._obsolete: list[int] = []

    def add(self, volumes: Sequence[Volume], fds: Sequence[int], served: Callable[[str], None]) -> list[int]:
        """Have them served; their numbers. The descriptors stay the caller's.

        ``served`` is called later, once: with what is wrong, or nothing. At most one packet's worth of them.

        :raises FilesEnded: there is no file server any more.
        """
        numbers = list(itertools.islice(self._numbers, len(volumes)))
        pairs = zip(numbers, volumes, strict=True)
        asked = [orders.Volume(number, one.readonly, one.common, one.live) for number, one in pairs]
        try:
            (ticket,) = self._server.add(asked, fds)
        except ConnectionError as error:
            raise FilesEnded(f"its file server takes no orders: {error.strerror}") from error
        except BlockingIOError as error:
            raise ResourceExhausted("the pod's file server is behind with its orders") from error
        self._tickets[ticket] = served
        return numbers

    def remove(self, numbers: Sequence[int]) -> None:
        """Serve them no more, as soon as the server takes it. Fails on nothing: its end is noticed elsewhere."""
        self._obsolete += numbers
        self._tidy()

    def _tidy(self) -> None:
        if self._obsolete:
            with contextlib.suppress(OSError):
                self._server.remove(self._obsolete)
                self._obsolete = []

    def close(self) -> None:
        """End the file server."""
        self._loop.leave(self._server.fileno())
        self._server.stop()

    def _said(self) -> None:
        try:
            answers = self._server.answers()
        except (wire.Ended, wire.ProtocolError, OSError) as error:
            raise FilesEnded(f"its file server has ended: {error}") from error
        for answer in answers:
            if isinstance(answer, Broken):
                raise ProtocolError("share", answer.message)
            if isinstance(answer, Failed) and answer.ticket == READY_TICKET:
                raise FilesEnded(answer.message)
            served = self._tickets.pop(answer.ticket, None)
            if served is not None:
                served(answer.message if isinstance(answer, Failed) else "")
        self._tidy()
