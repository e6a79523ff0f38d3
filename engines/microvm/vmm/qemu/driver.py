"""QEMU behind the line of :mod:`engines.microvm.vmm.base`: machine type ``microvm``, by KVM or by translation.

QEMU opens no file but those that it is loaded from: what it works with it inherits, or is sent over the monitor's
connection. Until it is blind (:mod:`engines.microvm.vmm.launch`) no instruction of the guest's is executed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from engines.microvm.vmm import filter as seccomp
from engines.microvm.vmm.base import Accel, Confinement, Event, Machine, Template
from engines.microvm.vmm.launch import Confined, Program, execute
from engines.microvm.vmm.qemu.arguments import FIRST_FD, SCSI, SLOTS, Boot, Descriptors, arguments, empty
from engines.microvm.vmm.qemu.monitor import Gone, Monitor
from engines.microvm.vmm.qemu.qmp import Happened
from engines.microvm.vmm.view import FILES, View
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, ForgeError, InternalError, InvalidInput, syscall_error

# QEMU's own filter: no old system calls, no other user, no other program, no other scheduling.
_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_BOOT: Final = Boot(kernel=f"{FILES}/kernel", initrd=f"{FILES}/initrd")
_LUNS: Final = 256
# Far more than the devices of such a machine have to say.
STATE_MAX: Final = 64 << 20
_SAID_MAX: Final = 4096
# What a pipe holds.
_CHUNK: Final = 64 * 1024
_ENDS_SECONDS: Final = 1.0
_UNDO_SECONDS: Final = 5.0
# Of a migration's states (qapi/migration.json): those it stays in.
_MIGRATED: Final = frozenset({"completed", "failed", "cancelled"})
_NAMES: Final = {"GUEST_PANICKED": "panicked", "RESET": "reset"}


class Qemu:
    """Implements :class:`engines.microvm.vmm.base.Vmm`. ``program`` is the path of ``qemu-system-x86_64``."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._process: Confined | None = None
        self._monitor: Monitor | None = None
        self._channels: dict[str, socket.socket] = {}
        self._disks: dict[int, str] = {}
        self._reclaims = False
        self._file_size = 0
        self._said = b""
        self._over = False

    @property
    def pid(self) -> int:
        """As the interface says."""
        return self._process.pid if self._process is not None else 0

    @property
    def fds(self) -> tuple[int, ...]:
        """As the interface says."""
        if self._process is None or self._monitor is None or self._over:
            return ()
        return self._monitor.fileno(), self._process.errors, self._process.pidfd

    @property
    def luns(self) -> int:
        """As the interface says."""
        return _LUNS

    @property
    def slots(self) -> int:
        """As the interface says."""
        return SLOTS

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
        """As the interface says."""
        if self._process is not None or self._over:
            raise InternalError("this machine was started before")
        with ExitStack() as undo:
            undo.callback(self.stop)
            with ExitStack() as theirs:
                self._execute(machine, tap, who, deadline, template=template, memory=memory, theirs=theirs)
            with self._explained():
                monitor = self._running()
                monitor.greet(deadline)
                # Answered by the loop that QEMU comes to once the machine is there.
                monitor.execute("query-status", deadline)
                self._blind()
                if template is not None:
                    self._load(template, deadline)
                monitor.execute("cont", deadline)
            undo.pop_all()

    def channels(self) -> dict[str, socket.socket]:
        """As the interface says."""
        found, self._channels = self._channels, {}
        return found

    def add_disk(self, lun: int, image: int, *, readonly: bool, deadline: Deadline) -> None:
        """As the interface says."""
        if not 0 <= lun < _LUNS:
            raise InvalidInput("lun", f"{lun} is not between 0 and {_LUNS - 1}")
        if not readonly and lun < SLOTS:
            raise InvalidInput("lun", f"{lun} is of a disk that cannot be written to")
        if not readonly and self._reclaims:
            raise FailedPrecondition("a machine whose memory is reclaimed can have no disk that it may write to")
        if lun in self._disks:
            raise InternalError(f"there is a disk {lun} in this machine")
        monitor, name = self._running(), f"disk{lun}"
        with self._explained(), ExitStack() as undo:
            file = _reopen(image, readonly=readonly)
            try:
                if not readonly and os.fstat(file).st_size > self._file_size:
                    raise FailedPrecondition(f"a disk that is written to has at most {self._file_size} bytes here")
                monitor.execute("add-fd", deadline, {"fdset-id": lun}, fd=file)
            finally:
                os.close(file)
            undo.callback(self._forget, "remove-fd", {"fdset-id": lun})
            monitor.execute("blockdev-add", deadline, _node(name, lun, readonly=readonly))
            undo.callback(self._forget, "blockdev-del", {"node-name": name})
            # Before each, as an answer that is late is one, too.
            if lun < SLOTS:
                undo.callback(self._forget, "blockdev-reopen", _slot(lun, empty(lun)))
                monitor.execute("blockdev-reopen", deadline, _slot(lun, name))
            else:
                undo.callback(self._forget, "device_del", {"id": name})
                monitor.execute("device_add", deadline, _disk(name, lun))
            undo.pop_all()
        self._disks[lun] = name

    def remove_disk(self, lun: int, deadline: Deadline) -> None:
        """As the interface says."""
        name = self._disks.get(lun)
        if name is None:
            return
        monitor = self._running()
        with self._explained():
            if lun < SLOTS:
                monitor.execute("blockdev-reopen", deadline, _slot(lun, empty(lun)))
            else:
                monitor.execute("device_del", deadline, {"id": name})
                monitor.wait(lambda event: _deleted(event, name), "unplug a disk", deadline)
            monitor.execute("blockdev-del", deadline, {"node-name": name})
            monitor.execute("remove-fd", deadline, {"fdset-id": lun})
        del self._disks[lun]

    def pause(self, deadline: Deadline) -> None:
        """As the interface says."""
        with self._explained():
            self._running().execute("stop", deadline)

    def resume(self, deadline: Deadline) -> None:
        """As the interface says."""
        with self._explained():
            self._running().execute("cont", deadline)

    def snapshot(self, state: int, deadline: Deadline) -> None:
        """As the interface says."""
        monitor = self._running()
        with self._explained():
            monitor.execute("migrate-set-capabilities", deadline, {"capabilities": _capabilities()})
            monitor.execute("getfd", deadline, {"fdname": "state"}, fd=state)
            monitor.execute("migrate", deadline, {"uri": "fd:state"})
            self._migrated("save its state", deadline)

    def events(self) -> list[Event]:
        """As the interface says."""
        if self._process is None or self._monitor is None or self._over:
            return []
        self._read_errors()
        found: list[Event] = []
        broken = ""
        try:
            found += [event for one in self._monitor.events() if (event := _event(one)) is not None]
        except Gone as error:
            broken = error.what
            # Its connection ends a moment before it does itself.
            self._process.wait(_ENDS_SECONDS)
        if self._process.ended() is not None:
            self._over = True
            self._read_errors()
            found.append(Event("exited", self._last_words()))
        elif broken:
            self._over = True
            found.append(Event("failed", broken))
        return found

    def stop(self) -> None:
        """As the interface says."""
        self._over = True
        if self._process is not None:
            self._process.kill()
        if self._monitor is not None:
            self._monitor.close()
        for channel in self.channels().values():
            channel.close()

    # -- its start

    def _execute(
        self,
        machine: Machine,
        tap: int,
        who: Confinement,
        deadline: Deadline,
        *,
        template: Template | None,
        memory: int,
        theirs: ExitStack,
    ) -> None:
        """``theirs`` closes what is QEMU's alone."""
        ours, monitor = _pair(theirs)
        self._monitor = Monitor(ours)
        fds = {FIRST_FD: monitor}
        ports = []
        for name in machine.ports:
            self._channels[name], port = _pair(theirs)
            ports.append(FIRST_FD + len(fds))
            fds[ports[-1]] = port
        ram = template.memory if template is not None else memory
        ram_fd = FIRST_FD + len(fds) if ram >= 0 else -1
        if ram >= 0:
            fds[ram_fd] = ram
        tap_fd = FIRST_FD + len(fds)
        if tap >= 0:
            fds[tap_fd] = tap
        self._reclaims = machine.reclaim
        self._file_size = STATE_MAX if memory >= 0 else 0 if machine.reclaim else machine.disk_max
        numbers = Descriptors(monitor=FIRST_FD, tap=tap_fd, ports=tuple(ports), memory=ram_fd)
        boot = _BOOT if template is None else None
        files = {} if boot is None else {"kernel": machine.kernel, "initrd": machine.initrd}
        program = Program(
            path=self._program,
            argv=tuple(arguments(self._program, machine, numbers, boot, _SANDBOX)),
            fds=fds,
            view=View(files=files, kvm=machine.accel is Accel.KVM),
            tap=-1 if tap >= 0 else tap_fd,
            file_size=self._file_size,
            filter=seccomp.program(keep_holes=template is not None and machine.reclaim),
        )
        self._process = execute(program, who, deadline)

    def _blind(self) -> None:
        if self._process is not None:
            self._process.blind()

    def _load(self, template: Template, deadline: Deadline) -> None:
        # Read from its beginning, which others do with the same descriptor at the same time.
        state = _reopen(template.state, readonly=True)
        monitor = self._running()
        try:
            monitor.execute("migrate-set-capabilities", deadline, {"capabilities": _capabilities()})
            monitor.execute("getfd", deadline, {"fdname": "state"}, fd=state)
        finally:
            os.close(state)
        monitor.execute("migrate-incoming", deadline, {"uri": "fd:state"})
        self._migrated("load its state", deadline)

    def _migrated(self, doing: str, deadline: Deadline) -> None:
        event = self._running().wait(_is_migrated, doing, deadline)
        if event.data["status"] != "completed":
            raise InternalError(f"QEMU cannot {doing}: migration {event.data['status']}")

    # -- talking to it

    def _running(self) -> Monitor:
        if self._monitor is None or self._process is None or self._over:
            raise InternalError("there is no such machine, or none any more")
        return self._monitor

    def _forget(self, name: str, arguments: dict[str, object]) -> None:
        with contextlib.suppress(ForgeError):
            self._running().execute(name, Deadline.after(_UNDO_SECONDS), arguments)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Of a QEMU that goes it is told what it said last."""
        try:
            yield
        except Gone as error:
            if self._process is None or not self._process.wait(_ENDS_SECONDS):
                raise
            self._read_errors()
            raise Gone(f"{error.what}: {self._last_words()}") from error

    def _read_errors(self) -> None:
        """Keep the last of what it says; a guest may be what makes it talk, so no more than a piece at once."""
        if self._process is None:
            return
        with contextlib.suppress(BlockingIOError):
            self._said = (self._said + os.read(self._process.errors, _CHUNK))[-_SAID_MAX:]

    def _last_words(self) -> str:
        code = self._process.ended() if self._process is not None else None
        ended = "" if code is None else f"ended by signal {code - 128}" if code > 128 else f"ended with code {code}"
        said = self._said.decode(errors="replace").strip()
        return "; ".join(part for part in (ended, said) if part)


def _pair(theirs: ExitStack) -> tuple[socket.socket, int]:
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.callback(other.close)
    return ours, other.fileno()


def _reopen(file: int, *, readonly: bool) -> int:
    """The same file with a position of its own, and for no more than it is to be used for."""
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise FailedPrecondition("what is to be a disk is no file")
    if not readonly and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise FailedPrecondition("what is to be a disk to write to was not opened for that")
    try:
        return os.open(f"/proc/self/fd/{file}", (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        raise syscall_error("open", f"descriptor {file}", error) from error


def _node(name: str, lun: int, *, readonly: bool) -> dict[str, object]:
    # Images are shared by readers alone, and nobody else's to lock.
    file = {"driver": "file", "filename": f"/dev/fdset/{lun}", "read-only": readonly, "locking": "off"}
    return {"driver": "raw", "node-name": name, "read-only": readonly, "file": file}


def _slot(lun: int, content: str) -> dict[str, object]:
    """What has been in it is let go of."""
    return {"options": [{"driver": "raw", "node-name": f"slot{lun}", "read-only": True, "file": content}]}


def _disk(name: str, lun: int) -> dict[str, object]:
    place = {"bus": f"{SCSI}.0", "channel": 0, "scsi-id": 0, "lun": lun}
    return {"driver": "scsi-hd", "id": name, "drive": name, **place}


def _capabilities() -> list[dict[str, object]]:
    # The memory is in its file, and what becomes of the rest is told as it happens.
    return [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]


def _is_migrated(event: Happened) -> bool:
    return event.name == "MIGRATION" and str(event.data.get("status")) in _MIGRATED


def _deleted(event: Happened, name: str) -> bool:
    return event.name == "DEVICE_DELETED" and event.data.get("device") == name


def _event(happened: Happened) -> Event | None:
    if happened.name == "SHUTDOWN":
        reason: Any = happened.data.get("reason")
        return Event("reset" if reason == "guest-reset" else "shutdown", str(reason or ""))
    name = _NAMES.get(happened.name)
    return None if name is None else Event(name)
