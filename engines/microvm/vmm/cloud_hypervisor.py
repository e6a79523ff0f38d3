"""Cloud Hypervisor behind the line of :mod:`engines.microvm.vmm.base`, by its API (``cloud-hypervisor.yaml``, 0.3.0).

Never run against a real Cloud Hypervisor here, but against a double that holds to its interface's description.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from socket import socket
from typing import Any, Final

from engines.microvm.vmm.base import Confinement, Event, Machine, Template
from engines.microvm.vmm.hosted import API, CID, FILTER, INITRD, KERNEL, VSOCK, Hosted, Launch, place_path
from engines.microvm.vmm.launch import Program, execute
from engines.microvm.vmm.view import View
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InternalError, InvalidInput

_API_FD, _EVENTS_FD = 3, 4
_BASE: Final = "/api/v1"
_LUNS: Final = 256
_URANDOM: Final = os.makedev(1, 9)
_CHUNK: Final = 16 * 1024
# No event is as long, nor are as many left unread.
_EVENTS_MAX: Final = 256 * 1024
_NAMES: Final = {("vm", "shutdown"): "shutdown", ("vm", "rebooting"): "reset"}


class CloudHypervisor:
    """Implements :class:`engines.microvm.vmm.base.Vmm`. ``program`` is the path of ``cloud-hypervisor``."""

    def __init__(self, program: str, launch: Launch = execute) -> None:
        self._program = program
        self._hosted = Hosted("Cloud Hypervisor", launch, _BASE)
        self._disks: dict[int, str] = {}
        self._plugged = 0
        self._happened = Happened()

    @property
    def pid(self) -> int:
        """As the interface says."""
        return self._hosted.pid

    @property
    def fds(self) -> tuple[int, ...]:
        """As the interface says."""
        return (*self._hosted.fds, *self._happened.fds) if self._hosted.fds else ()

    @property
    def luns(self) -> int:
        """As the interface says."""
        return _LUNS

    @property
    def slots(self) -> int:
        """As the interface says."""
        return 0

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
        """As the interface says. Without a ``tap`` the machine has no interface."""
        hosted = self._hosted
        hosted.check(machine, template, memory)
        with ExitStack() as undo:
            undo.callback(self.stop)
            place = hosted.prepare(who)
            with ExitStack() as theirs:
                listener = place.listen(API)
                theirs.callback(listener.close)
                events = self._happened.open(theirs)
                argv = ("--api-socket", f"fd={_API_FD}", "--event-monitor", f"fd={_EVENTS_FD}", "--seccomp", "true")
                program = Program(
                    path=self._program,
                    argv=("cloud-hypervisor", *argv),
                    fds={_API_FD: listener.fileno(), _EVENTS_FD: events},
                    view=View(
                        files={"kernel": machine.kernel, "initrd": machine.initrd},
                        kvm=True,
                        devices={"urandom": _URANDOM},
                        place=place.tree,
                    ),
                    filter=FILTER,
                )
                hosted.execute(program, who, deadline)
            hosted.rest.put("/vm.create", config(machine), deadline)
            if tap >= 0:
                hosted.rest.put("/vm.add-net", {"id": "net0", "num_queues": 2}, deadline, fds=(tap,))
            hosted.run(machine.ports, who, lambda: self._begin(deadline), deadline)
            undo.pop_all()

    def _begin(self, deadline: Deadline) -> None:
        self._hosted.rest.put("/vm.boot", None, deadline)
        self._hosted.process.blind()

    def channels(self) -> dict[str, socket]:
        """As the interface says."""
        return self._hosted.channels()

    def add_disk(self, lun: int, image: int, *, readonly: bool, deadline: Deadline) -> None:
        """As the interface says; nothing can be written to."""
        if not 0 <= lun < _LUNS:
            raise InvalidInput("lun", f"{lun} is not between 0 and {_LUNS - 1}")
        if not readonly:
            why = "Cloud Hypervisor's machines have no disk to write to"
            raise FailedPrecondition(why, fix='set microvm.writable_layer to "memory"')
        if lun in self._disks:
            raise InternalError(f"there is a disk {lun} in this machine")
        hosted = self._hosted
        # One that is unplugged has its name until the guest has let go of it.
        self._plugged += 1
        name = f"disk{lun}-{self._plugged}"
        with ExitStack() as undo:
            path = hosted.place.show(name, image, hosted.process)
            undo.callback(hosted.place.hide, name, hosted.process)
            hosted.rest.put("/vm.add-disk", disk(name, lun, path), deadline)
            undo.pop_all()
        self._disks[lun] = name

    def remove_disk(self, lun: int, deadline: Deadline) -> None:
        """As the interface says."""
        name = self._disks.get(lun)
        if name is None:
            return
        hosted = self._hosted
        hosted.rest.put("/vm.remove-device", {"id": name}, deadline)
        hosted.place.hide(name, hosted.process)
        del self._disks[lun]

    def pause(self, deadline: Deadline) -> None:
        """As the interface says."""
        self._hosted.rest.put("/vm.pause", None, deadline)

    def resume(self, deadline: Deadline) -> None:
        """As the interface says."""
        self._hosted.rest.put("/vm.resume", None, deadline)

    def snapshot(self, state: int, deadline: Deadline) -> None:  # noqa: ARG002 -- of the interface
        """:raises FailedPrecondition: always: its machines do not begin from templates."""
        raise FailedPrecondition("machines of Cloud Hypervisor are not saved")

    def events(self) -> list[Event]:
        """As the interface says."""
        if not self._hosted.fds:
            return []
        found = list(self._happened.read())
        return found + self._hosted.ended()

    def stop(self) -> None:
        """As the interface says."""
        self._hosted.stop()
        self._happened.close()


def config(machine: Machine) -> dict[str, object]:
    """The machine, without its interface, which goes by a descriptor."""
    return {
        "cpus": {"boot_vcpus": machine.vcpus, "max_vcpus": machine.vcpus},
        "memory": {"size": machine.memory},
        "payload": {"kernel": KERNEL, "initramfs": INITRD, "cmdline": machine.cmdline},
        "rng": {"src": "/dev/urandom"},
        "balloon": {"size": 0, "deflate_on_oom": True, "free_page_reporting": machine.reclaim},
        "serial": {"mode": "Off"},
        "console": {"mode": "Off"},
        "vsock": {"cid": CID, "socket": place_path(VSOCK)},
    }


def disk(name: str, lun: int, path: str) -> dict[str, object]:
    """A disk that the guest finds by its serial number."""
    return {"id": name, "path": path, "readonly": True, "image_type": "Raw", "serial": f"forgeone-{lun}"}


class Happened:
    """What it tells of its machine: JSON objects, one after the other (``--event-monitor``)."""

    def __init__(self) -> None:
        self._fd = -1
        self._kept = ""
        self._decoder = json.JSONDecoder()

    @property
    def fds(self) -> tuple[int, ...]:
        """Readable when there is something."""
        return (self._fd,) if self._fd >= 0 else ()

    def open(self, theirs: ExitStack) -> int:
        """The monitor's side, which ``theirs`` closes."""
        self._fd, other = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        theirs.callback(os.close, other)
        return other

    def read(self) -> Iterator[Event]:
        """What has come since; ``failed``, and the end of it, where that is nothing that it would say."""
        if self._fd < 0:
            return
        data: bytes | None = None
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._fd, _CHUNK)
        if data == b"":
            self.close()
        self._kept += (data or b"").decode(errors="replace")
        while (text := self._kept.lstrip()) and (one := self._one(text)) is not None:
            value, end = one
            self._kept = text[end:]
            event = _NAMES.get((str(value.get("source")), str(value.get("event"))))
            if event is not None:
                yield Event(event)
        if len(self._kept) > _EVENTS_MAX or (text and text[0] != "{"):
            self.close()
            yield Event("failed", "Cloud Hypervisor tells of what is no event")

    def _one(self, text: str) -> tuple[dict[str, Any], int] | None:
        try:
            value, end = self._decoder.raw_decode(text)
        except (ValueError, RecursionError):
            return None
        return (value, end) if isinstance(value, dict) else None

    def close(self) -> None:
        """Again is no error."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._kept = -1, ""
