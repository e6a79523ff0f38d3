"""What monitors have in common that are told what to do by HTTP and carry a guest's connections to unix sockets.

The guest's ports are connections of its agent's over vsock (vsock(7)): to the host, port 1024 and those that follow,
each to a socket of the keeper's that the monitor knows by its own socket's name and the number.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final

from engines.microvm.vmm import filter as seccomp
from engines.microvm.vmm.base import Accel, Confinement, Event, Machine, Template
from engines.microvm.vmm.launch import Confined, Program
from engines.microvm.vmm.place import Place, readable
from engines.microvm.vmm.rest import Rest
from engines.microvm.vmm.view import FILES, PLACE, step
from engines.microvm.wire.protocol import VSOCK_PORT
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InternalError

Launch = Callable[[Program, Confinement, Deadline], Confined]

KERNEL: Final = f"{FILES}/kernel"
INITRD: Final = f"{FILES}/initrd"
API: Final = "api"
VSOCK: Final = "vsock"
# The first free one; 0, 1 and 2 have a meaning.
CID: Final = 3
FILTER: Final = seccomp.program(keep_holes=False, allowed=seccomp.SOCKETS)
_CREDENTIALS: Final = struct.Struct("iII")
_CHUNK: Final = 16 * 1024
_SAID_MAX: Final = 4096


class Hosted:
    """A monitor's process with its place, its API, and the guest's connections. ``launch`` executes it."""

    def __init__(self, name: str, launch: Launch, base: str = "") -> None:
        self._name, self._launch, self._base = name, launch, base
        self._process: Confined | None = None
        self._place: Place | None = None
        self._rest: Rest | None = None
        self._channels: dict[str, socket.socket] = {}
        self._said = b""
        self.over = False

    @property
    def pid(self) -> int:
        """Of the process; 0 where there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def fds(self) -> tuple[int, ...]:
        """Readable when it says something, or has ended."""
        return () if self._process is None or self.over else (self._process.errors, self._process.pidfd)

    @property
    def place(self) -> Place:
        """Of one that was prepared."""
        if self._place is None:
            raise InternalError("this machine was not started")
        return self._place

    @property
    def process(self) -> Confined:
        """Of one that was started."""
        if self._process is None:
            raise InternalError("this machine was not started")
        return self._process

    @property
    def rest(self) -> Rest:
        """Of one that was started."""
        if self._rest is None:
            raise InternalError("this machine was not started")
        return self._rest

    def check(self, machine: Machine, template: Template | None, memory: int) -> None:
        """:raises FailedPrecondition: it is more than these monitors do here."""
        if self._place is not None:
            raise InternalError("this machine was started before")
        if machine.accel is not Accel.KVM:
            raise FailedPrecondition(f"{self._name} needs KVM", fix='set microvm.vmm to "qemu"')
        if template is not None or memory >= 0:
            raise FailedPrecondition(f"machines of {self._name} do not begin from templates")

    def prepare(self, who: Confinement) -> Place:
        """Make its place."""
        self._place = Place(who)
        return self._place

    def execute(self, program: Program, who: Confinement, deadline: Deadline) -> None:
        """Start it. Its API is asked for only then."""
        self._process = self._launch(program, who, deadline)
        self._rest = Rest(self._name, lambda: self.place.connect(API), self._base)

    def run(self, ports: Sequence[str], who: Confinement, boot: Callable[[], None], deadline: Deadline) -> None:
        """Have the machine booted, and wait until its agent has connected each of its ports."""
        with ExitStack() as stack:
            listeners = {}
            for number, name in enumerate(ports, VSOCK_PORT):
                listeners[name] = self.place.listen(f"{VSOCK}_{number}")
                stack.callback(listeners[name].close)
            boot()
            for name, listener in listeners.items():
                self._channels[name] = self._accept(listener, who, deadline)
        for number, _ in enumerate(ports, VSOCK_PORT):
            # Nobody in the guest but the agent, which was there first, is ever heard.
            self.place.forget(f"{VSOCK}_{number}")

    def _accept(self, listener: socket.socket, who: Confinement, deadline: Deadline) -> socket.socket:
        if self.process.pidfd in readable((listener.fileno(), self.process.pidfd), deadline, "for the guest's agent"):
            raise InternalError(f"{self._name} ended before its guest's agent came: {self.last_words()}")
        with step("accept", "the guest's agent"):
            channel, _ = listener.accept()
        _, uid, _ = _CREDENTIALS.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != who.uid:
            channel.close()
            raise InternalError(f"somebody else (user {uid}) connected in the place of {self._name}")
        channel.setblocking(True)
        return channel

    def channels(self) -> dict[str, socket.socket]:
        """As the line says."""
        found, self._channels = self._channels, {}
        return found

    def ended(self) -> list[Event]:
        """What the process itself tells; never blocks."""
        if self._process is None or self.over:
            return []
        self._read_errors()
        if self._process.ended() is None:
            return []
        self.over = True
        return [Event("exited", self.last_words())]

    def last_words(self) -> str:
        """How it ended, and what it said last."""
        self._read_errors()
        code = self.process.ended()
        ended = "" if code is None else f"ended by signal {code - 128}" if code > 128 else f"ended with code {code}"
        return "; ".join(part for part in (ended, self._said.decode(errors="replace").strip()) if part)

    def stop(self) -> None:
        """As the line says."""
        self.over = True
        if self._process is not None:
            self._process.kill()
        if self._rest is not None:
            self._rest.close()
        for channel in self.channels().values():
            channel.close()
        if self._place is not None:
            self._place.close()

    def _read_errors(self) -> None:
        if self._process is not None and self._process.errors >= 0:
            with contextlib.suppress(BlockingIOError, OSError):
                self._said = (self._said + os.read(self._process.errors, _CHUNK))[-_SAID_MAX:]


def place_path(name: str) -> str:
    """What the monitor knows something in its place by."""
    return f"{PLACE}/{name}"
