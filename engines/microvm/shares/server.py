"""The file server's one loop: orders of the keeper's on one socket, requests of the guest's on the other.

A request is handled when the answer to the one before it has left, so what a guest does not read is never more than one
answer. Answers to the keeper are few; one that has not read hundreds of them is not served on.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engines.microvm.shares import dispatch, fuse, orders
from engines.microvm.shares.nodes import Nodes
from engines.microvm.shares.orders import Add, Answer, Broken, Done, Failed, Order
from engines.microvm.shares.state import Handles, Share, give_back, room
from forgeone_shim.shim import wire
from forgeone_shim.shim.loop import HUNG_UP, READ, WRITE, Loop

# Besides what nodes and handles hold.
_OTHER_DESCRIPTORS: Final = 96
_NODES_MAX: Final = 1 << 15
_HANDLES_MAX: Final = 1 << 13
_MANY: Final = 1 << 13
# Beyond so many bytes at once memory is given back after so long without a request.
_LARGE: Final = 64 * 1024
_IDLE_SECONDS: Final = 2.0
# How long a guest that has to forget has for it, before it is asked once more.
_FORGET_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How many nodes and open files there may be; ``many`` nodes are so many that the guest is asked to forget some."""

    nodes: int
    handles: int
    many: int


def limits(descriptors: int) -> Limits:
    """What a process may promise that may have so many descriptors."""
    spare = max(64, descriptors - _OTHER_DESCRIPTORS)
    handles = min(_HANDLES_MAX, spare // 4)
    nodes = min(_NODES_MAX, spare - handles)
    return Limits(nodes, handles, min(_MANY, nodes // 2))


class Server:
    """Serves until one of its connections ends."""

    def __init__(
        self, port: socket.socket, control: socket.socket, root: int, most: Limits, *, paths: str = ""
    ) -> None:
        """``root``: a descriptor of an empty directory. ``paths``: see :class:`Share`."""
        port.setblocking(False)
        control.setblocking(False)
        self._port, self._control = port, control
        nodes = Nodes(root, most.nodes)
        self._share = Share(nodes, Handles(nodes, most.handles), paths=paths, news=self._take_orders)
        self._received = room(fuse.REQUEST_MAX)
        self._filled = 0
        self._unsent = memoryview(b"")
        self._most = most
        self._asked_at, self._asked_when = most.many, 0.0
        self._over = False
        self._grown = self._busy = self._let_go = False
        self._loop = Loop()
        self._loop.watch(control.fileno(), self._on_control)
        self._loop.watch(port.fileno(), self._on_port)

    def run(self) -> None:
        """Serve. Raises ProtocolError: the keeper says what no keeper says."""
        while not self._over:
            self.turn()

    def turn(self) -> None:
        """Wait for something, and do it; nothing for a while is something, too."""
        self._busy = False
        self._loop.turn(_IDLE_SECONDS if self._grown or self._borrows() else None)
        if self._busy:
            return
        if self._borrows() and not self._unsent:
            # Nothing that the guest merely remembers is to keep the host from unmounting what it has mounted.
            self._let_go = True
            self._send(fuse.please_forget())
        if self._grown:
            self._grown = False
            if not self._filled and not self._unsent:
                give_back(self._received)
                give_back(self._share.answer)

    def _borrows(self) -> bool:
        return self._share.nodes.borrowed > 0 and not self._let_go

    # -- the keeper

    def _on_control(self, events: int) -> None:
        self._take_orders()
        if events & HUNG_UP:
            self._over = True

    def _take_orders(self) -> None:
        while not self._over:
            try:
                message = wire.receive(self._control)
            except BlockingIOError:
                return
            except wire.Ended:
                self._over = True
                return
            with contextlib.closing(message):
                order = orders.decode_order(message.data)
                self._say(self._obey(order, message.take()))

    def _obey(self, order: Order, fds: Sequence[int]) -> Answer:
        if isinstance(order, Add):
            return self._add(order, fds)
        wire.close_all(fds)
        for number in order.numbers:
            self._share.remove_volume(number)
        return Done(order.ticket)

    def _add(self, order: Add, fds: Sequence[int]) -> Answer:
        if len(fds) != len(order.volumes):
            wire.close_all(fds)
            return Failed(order.ticket, f"{len(order.volumes)} volumes came with {len(fds)} descriptors")
        for at, (volume, fd) in enumerate(zip(order.volumes, fds, strict=True)):
            try:
                self._share.nodes.add_volume(
                    volume.number, fd, readonly=volume.readonly, common=volume.common, live=volume.live
                )
            except OSError as error:
                wire.close_all(fds[at + 1 :])
                for added in order.volumes[:at]:
                    self._share.remove_volume(added.number)
                return Failed(order.ticket, f"volume {volume.number}: {error.strerror or error}")
        return Done(order.ticket)

    def _say(self, answer: Answer) -> None:
        try:
            wire.send(self._control, orders.encode(answer))
        except OSError:
            self._over = True

    # -- the guest

    def _on_port(self, _: int) -> None:
        self._busy, self._let_go = True, False
        try:
            if self._unsent:
                self._send(self._unsent)
            else:
                self._receive()
            self._handle_all()
        except BlockingIOError:
            return
        except OSError:
            # The machine has gone.
            self._over = True
        except ValueError as error:
            self._say(Broken(str(error)))
            self._over = True

    def _receive(self) -> None:
        size = self._port.recv_into(self._received[self._filled :])
        if not size:
            self._over = True
        self._filled += size
        self._grown |= self._filled > _LARGE

    def _handle_all(self) -> None:
        at = 0
        while not self._unsent and not self._over:
            size = fuse.message_length(self._received[at : self._filled])
            if not size or at + size > self._filled:
                break
            answer = dispatch.handle(self._share, self._received[at : at + size])
            at += size
            if answer is not None:
                self._send(answer)
            self._ask_to_forget()
        if at:
            left = self._filled - at
            self._received[:left] = self._received[at : self._filled]
            self._filled = left

    def _send(self, answer: bytes | memoryview) -> None:
        view = memoryview(answer)
        self._grown |= len(view) > _LARGE
        try:
            while view:
                view = view[self._port.send(view) :]
        except BlockingIOError:
            pass
        self._unsent = view
        self._loop.change(self._port.fileno(), WRITE if view else READ)

    def _ask_to_forget(self) -> None:
        known = len(self._share.nodes)
        if known < self._most.many:
            self._asked_at = self._most.many
        elif known >= min(self._asked_at, self._most.nodes) and not self._unsent:
            now = time.monotonic()
            if now - self._asked_when >= _FORGET_SECONDS:
                self._asked_at, self._asked_when = known + self._most.many // 4, now
                self._send(fuse.please_forget())


def serve(port: socket.socket, control: socket.socket, root: int, descriptors: int) -> None:
    """Serve in a confined process; see :func:`engines.microvm.shares.confinement.confine`."""
    Server(port, control, root, limits(descriptors)).run()
    os.close(root)
