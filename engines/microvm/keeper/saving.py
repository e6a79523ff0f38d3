"""Booting a machine that is nobody's, to save it: a process that ends with it. Forked by a fork server."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Final

from engines.microvm.keeper.agent import Agent
from engines.microvm.keeper.orders import Done, Save, encode
from engines.microvm.keeper.process import MachineEnded, ask, become, greet, refuse, told
from engines.microvm.vmm.base import Vmm
from engines.microvm.wire.protocol import CONTROL_PORT, Kind
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError
from forgeone_shim.shim import wire
from forgeone_shim.shim.loop import Loop

_QUIESCE: Final = (Kind.QUIESCE, b"")
_TITLE: Final = "forgeone-template"


def save(asked: Save, fds: list[int], make: Callable[[], Vmm], connection: socket.socket) -> None:
    """The child function of a :class:`forgeone_shim.shim.forks.Fork`; ``fds`` as :class:`Save` says."""
    try:
        _save(asked, fds, make, connection)
    except Exception as error:
        refuse(connection, "save", error)
    else:
        with contextlib.suppress(OSError):
            wire.send(connection, encode(Done()))


def _save(asked: Save, fds: list[int], make: Callable[[], Vmm], connection: socket.socket) -> None:
    memory, state = fds
    deadline = Deadline.after(asked.seconds)
    become((_TITLE, asked.name), asked.cgroups)
    loop = Loop()
    gone: list[int] = []
    with contextlib.ExitStack() as end:
        vmm = make()
        end.callback(vmm.stop)
        vmm.start(asked.machine, -1, asked.who, deadline, memory=memory)
        channels = vmm.channels()
        for channel in channels.values():
            end.callback(channel.close)
        if CONTROL_PORT not in channels:
            raise InternalError(f"the monitor has no port {CONTROL_PORT}")
        agent = Agent(loop, channels[CONTROL_PORT], _unheard)
        for fd in vmm.fds:
            loop.watch(fd, lambda _: _happened(vmm))
        # Nothing but an end comes from a client that waits for its answer.
        loop.watch(connection.fileno(), gone.append)
        if greet(loop, agent, deadline, gone) is None or ask(loop, agent, _QUIESCE, deadline, gone) is None:
            raise DeadlineExceeded("nobody waits for the template any more")
        vmm.pause(deadline)
        vmm.snapshot(state, deadline)


def _happened(vmm: Vmm) -> None:
    for event in vmm.events():
        raise MachineEnded(told(event))


def _unheard(_: str) -> None:
    """A template is no pod's: what its guest says is said again by those that begin from it, if it matters."""
