"""A machine with the real agent and a few disks, and nothing else of the engine's: what its containers see."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from engines.microvm.boot import clock
from engines.microvm.boot.bootset import read
from engines.microvm.vmm.base import Accel
from engines.microvm.wire.frames import Receiver, Side
from engines.microvm.wire.messages import (
    Caps,
    Create,
    Delete,
    Device,
    Exec,
    Hello,
    Mount,
    Program,
    Rootfs,
    Setting,
    Setup,
    Start,
    Stats,
    StatsRequest,
)
from engines.microvm.wire.protocol import CONTROL_PORT, SHARE_PORT, VERSION, Kind, MountKind, PidMode
from tests.e2e.microvm_pods import boot_set
from tests.unit.microvm.agents import Agent

ALL_CAPS: Final = (1 << 41) - 1
# As the native engine has them.
DEFAULT_CAPS: Final = 0xA80425FB
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
SAFE: Final = NOSUID | NODEV | NOEXEC
_BOOT_SECONDS: Final = 60.0
_APPLETS: Final = (
    *("cat", "chmod", "dd", "df", "echo", "grep", "head", "hostname", "id", "ip", "ls", "mkdir", "mknod", "mount"),
    *("ps", "readlink", "sh", "sleep", "stat", "swapon", "tail", "touch", "true", "tty", "umount", "wc"),
)


def kernel(destination: str, kind: str, flags: int = SAFE) -> Mount:
    return Mount(kind=MountKind.KERNEL, destination=destination, source=kind, flags=flags)


def file(destination: str, content: bytes = b"content\n", mode: int = 0o644, flags: int = 0) -> Mount:
    return Mount(kind=MountKind.FILE, destination=destination, content=content, mode=mode, flags=flags)


# What the engine mounts in every container that is not privileged, and what it hides.
KERNELS: Final = (kernel("/proc", "proc"), kernel("/sys", "sysfs", SAFE | RDONLY))
CGROUP: Final = kernel("/sys/fs/cgroup", "cgroup2", SAFE | RDONLY)
MASKED: Final = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/not-there")
READONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def caps(mask: int) -> Caps:
    return Caps(bounding=mask, effective=mask, permitted=mask, inheritable=0, ambient=0)


def root(directory: Path) -> Path:
    """A root file system of busybox."""
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "run"):
        (directory / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", directory / "bin" / "busybox")
    for name in _APPLETS:
        (directory / "bin" / name).symlink_to("busybox")
    (directory / "tmp").chmod(0o1777)
    return directory


def packed(directory: Path, target: Path) -> Path:
    """The directory as an erofs image."""
    subprocess.run(["mkfs.erofs", "-T0", str(target), str(directory)], check=True, capture_output=True)
    return target


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A container's request but for its id and program."""

    lun: int = 1
    mounts: Sequence[Mount] = ()
    readonly: bool = False
    privileged: bool = False
    upper_lun: int | None = None
    pid_mode: PidMode = PidMode.OWN
    target: str = ""
    ipc_own: bool = False
    devices: Sequence[Device] = ()
    cgroup: dict[str, str] = field(default_factory=dict)


PLAIN: Final = Asked()


def sh(script: str) -> Program:
    return program("sh", "-c", script)


def program(*args: str, mask: int = DEFAULT_CAPS, tty: bool = False, cwd: str = "/", uid: int = 0) -> Program:
    return Program(args=args, env=("PATH=/sbin:/bin", "HOME=/"), cwd=cwd, uid=uid, gid=uid, caps=caps(mask), tty=tty)


class Guest(Agent):
    """One, in a machine whose disks are the images in ``disks``, from lun 1 on, each with whether it is read-only."""

    def __init__(self, directory: Path, disks: Sequence[tuple[Path, bool]]) -> None:
        self.errors = directory / "errors"
        self.receiver = Receiver(Side.AGENT)
        self.outputs = {}
        self.answers = {}
        self.notes = deque()
        self.id = 0
        self.grants = True
        self._numbers = 0
        control, share = socket.socketpair(), socket.socketpair()
        self.sock, self._share = control[0], share[0]
        theirs = (control[1].fileno(), share[1].fileno())
        with self.errors.open("wb") as errors, control[1], share[1]:
            self.process = subprocess.Popen(
                _argv(theirs, disks), pass_fds=theirs, stdin=subprocess.DEVNULL, stderr=errors
            )
        self._greet()

    def _greet(self) -> None:
        ident = self.asked(Kind.HELLO, Hello(version=VERSION))
        end = time.monotonic() + _BOOT_SECONDS
        while ident not in self.answers:
            assert self.step(end - time.monotonic()), self.errors.read_text(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.sock.close()
        self._share.close()

    def setup_pod(self, what: Setup) -> None:
        self.ask(Kind.SETUP, what)

    def begin(self, name: str, first: Program, asked: Asked = PLAIN, *, start: bool = True) -> int:
        """Create a container and start it; the number of its process."""
        self._numbers += 1
        memory = 0 if asked.readonly or asked.upper_lun is not None else 32 << 20
        rootfs = Rootfs(
            lun=asked.lun, fstype="erofs", readonly=asked.readonly, upper_size=memory, upper_lun=asked.upper_lun
        )
        what = Create(
            container=name,
            rootfs=rootfs,
            program=first,
            mounts=(*KERNELS, kernel("/sys/fs/cgroup", "cgroup2") if asked.privileged else CGROUP, *asked.mounts),
            masked=() if asked.privileged else MASKED,
            readonly_paths=() if asked.privileged else READONLY,
            pid_mode=asked.pid_mode,
            target=asked.target,
            ipc_own=asked.ipc_own,
            devices=tuple(asked.devices),
            cgroup=tuple(Setting(name=key, value=value) for key, value in asked.cgroup.items()),
            process=self._numbers,
        )
        self._run(Kind.CREATE, what, self._numbers)
        if start:
            self.ask(Kind.START, Start(container=name))
        return self._numbers

    def end_of(self, name: str) -> None:
        """Delete a container."""
        self.ask(Kind.DELETE, Delete(container=name))

    def run(self, first: Program, asked: Asked = PLAIN) -> tuple[int, str, str]:
        """A container from its creation to its deletion: its code, output and errors."""
        number = self.begin("once", first, asked)
        code, out, err = self.wait(number)
        self.end_of("once")
        return code, out.decode(), err.decode()

    def run_in(self, name: str, what: Program) -> tuple[int, str, str]:
        """A process in a container."""
        self._numbers += 1
        self._run(Kind.EXEC, Exec(container=name, program=what, process=self._numbers), self._numbers)
        code, out, err = self.wait(self._numbers)
        return code, out.decode(), err.decode()

    def said(self, number: int, text: bytes) -> None:
        """Waits until the process has said it."""
        while text not in self.outputs[number].streams[1]:
            assert self.step()

    def stats(self, name: str) -> Stats:
        found = self.ask(Kind.STATS, StatsRequest(containers=(name,)))
        return found.containers[0]  # type: ignore[attr-defined, no-any-return]


def _argv(fds: tuple[int, int], disks: Sequence[tuple[Path, bool]]) -> list[str]:
    boot = read(Path(boot_set()))
    argv = [
        *("qemu-system-x86_64", "-M", "microvm,accel=tcg,isa-serial=off,pit=off,x-option-roms=off", "-m", "192"),
        *("-cpu", "max,-erms,-fsrm", "-nodefaults", "-display", "none", "-no-user-config", "-no-reboot"),
        *("-global", "virtio-mmio.force-legacy=false", "-kernel", boot.kernel, "-initrd", boot.initrd),
        *("-append", boot.cmdline(Accel.TCG, clock.khz()), "-device", "virtio-serial-device,max_ports=3"),
        *("-netdev", "hubport,id=net0,hubid=0", "-device", "virtio-net-device,netdev=net0"),
        *("-device", "virtio-scsi-device,id=scsi0"),
    ]
    for fd, name in zip(fds, (CONTROL_PORT, SHARE_PORT), strict=True):
        argv += ["-chardev", f"socket,id={name},fd={fd}", "-device", f"virtserialport,chardev={name},name={name}"]
    for lun, (path, readonly) in enumerate(disks, 1):
        image = {"driver": "file", "filename": str(path), "read-only": readonly}
        block = {"driver": "raw", "node-name": f"disk{lun}", "read-only": readonly, "file": image}
        argv += ["-blockdev", json.dumps(block)]
        argv += ["-device", f"scsi-hd,drive=disk{lun},bus=scsi0.0,channel=0,scsi-id=0,lun={lun}"]
    return argv
