"""What a virtual machine monitor does for the engine: plain data in, sockets out.

Used by one thread, the keeper's. Every method blocks for milliseconds; what takes longer has a deadline.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from forgeone_shim.deadline import Deadline


class Accel(StrEnum):
    """What executes the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a machine is, and with it everything that a template and its clones have in common.

    ``memory`` in bytes, a multiple of 2 MiB. ``kernel`` and ``initrd`` are host paths, ``cmdline`` is complete.
    ``ports`` are the names of its channels (:mod:`engines.microvm.wire.protocol`). It has one network interface, one
    SCSI controller, a source of entropy and a balloon. ``reclaim``: memory that the guest has freed is
    the host's again; then it can have no disk that it may write to. Others may, of ``disk_max`` bytes at most.
    """

    memory: int
    vcpus: int
    accel: Accel
    kernel: str
    initrd: str
    cmdline: str
    ports: tuple[str, ...]
    reclaim: bool = True
    disk_max: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """Who the monitor is on the host: an unprivileged user, the cgroup's directories it joins, before it is executed.

    ``oom_score_adj`` as in proc(5). What else it cannot do is the driver's to see to.
    """

    uid: int
    gid: int
    cgroups: tuple[str, ...] = ()
    oom_score_adj: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A saved machine to begin from: descriptors of its memory (sealed, mapped privately) and of its devices' state.

    They stay the caller's; any number of machines may begin from them at once.
    """

    memory: int
    state: int


@dataclass(frozen=True, slots=True)
class Event:
    """What has become of a machine: ``shutdown``, ``reset``, ``panicked``, ``failed`` or ``exited`` (both with why).

    After ``failed`` (the monitor says what it never should) it is to be stopped; ``exited`` is the last.
    """

    name: str
    message: str = ""


class Vmm(Protocol):
    """One machine, from its start to its end.

    Where nothing else is said, a method fails with InternalError (the monitor refuses, or has ended: with what it said)
    or DeadlineExceeded.
    """

    @property
    def pid(self) -> int:
        """Of the monitor's process; 0 where there is none."""

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that become readable when :meth:`events` has something to tell."""

    @property
    def luns(self) -> int:
        """How many numbers of disks there are: 0 and those that follow."""

    @property
    def slots(self) -> int:
        """How many of these, 0 and those that follow, are for disks that are read only: such a one is there at once."""

    def start(
        self,
        machine: Machine,
        tap: int,
        who: Confinement,
        deadline: Deadline,
        template: Template | None = None,
        *,
        memory: int = -1,
    ) -> None:
        """Execute the monitor, and let the machine run: from the template, or else from its kernel.

        ``tap`` is the descriptor of the interface's other side (with IFF_VNET_HDR), -1: an interface that leads
        nowhere. ``memory`` is a file that is to hold the guest's memory, for who makes a template of it. All
        descriptors stay the caller's. On any error nothing is left of it. The process dies with the thread that called
        this (PR_SET_PDEATHSIG).

        :raises Unavailable: there is no such monitor on this host.
        """

    def channels(self) -> dict[str, socket.socket]:
        """The host's side of each port, connected and blocking; the caller's to close. Once."""

    def add_disk(self, lun: int, image: int, *, readonly: bool, deadline: Deadline) -> None:
        """Plug the raw image in a file in as SCSI disk 0:0:0:``lun``; the descriptor stays the caller's.

        :raises FailedPrecondition: it may be written to, and the machine's memory is reclaimed.
        """

    def remove_disk(self, lun: int, deadline: Deadline) -> None:
        """Unplug it and let go of its file; one that is not there is no error."""

    def pause(self, deadline: Deadline) -> None:
        """No instruction of the guest's is executed when this returns."""

    def resume(self, deadline: Deadline) -> None:
        """The guest goes on."""

    def snapshot(self, state: int, deadline: Deadline) -> None:
        """Write a paused machine's devices into the file ``state``; its memory is in its own since :meth:`start`."""

    def events(self) -> list[Event]:
        """What has happened since; never blocks."""

    def stop(self) -> None:
        """Kill it and wait for its end; again is no error."""
