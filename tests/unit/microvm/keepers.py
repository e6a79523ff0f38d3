"""A pod whose machine is :mod:`tests.unit.microvm.fake_machine`'s."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from pathlib import Path

import msgspec

from engines.base import Live, Stdio
from engines.microvm.client import Keeper, Keepers
from engines.microvm.console import ExecConsole
from engines.microvm.keeper import orders
from engines.microvm.keeper.orders import Disk, Driver, Launch, Launched, Monitor, Volume
from engines.microvm.vmm.base import Accel, Confinement, Machine
from engines.microvm.wire import fields, messages
from engines.microvm.wire.protocol import CONTROL_PORT, SHARE_PORT
from forgeone_shim.deadline import Deadline
from forgeone_shim.kernel import procs
from forgeone_shim.kernel.procs import Pidfd, open_process
from forgeone_shim.shim import contract
from forgeone_shim.shim.client import ForkServer
from forgeone_shim.shim.exits import read_exit
from forgeone_shim.shim.programs import Program
from forgeone_shim.shim.supervision import Supervision
from tests.unit.shim.containers import LINE, watched

PROGRAM = Program("tests.unit.microvm.fake_machine", ("forgeone_shim", "engines", "msgspec", "tests"), "test")
SANDBOX = "5" * 64
CAPS = messages.Caps(bounding=0, effective=0, permitted=0, inheritable=0, ambient=0)


def soon() -> Deadline:
    return Deadline.after(20)


class FakeKeepers(Keepers):
    """With the fake machine's fork server."""

    def __init__(self, directory: Path) -> None:
        self._server = ForkServer(directory, PROGRAM)


def program(*args: str, tty: bool = False, stdin: bool = False) -> messages.Program:
    return messages.Program(args=args, cwd="/", uid=0, gid=0, caps=CAPS, tty=tty, stdin=stdin)


def created(container_id: str, *args: str, lun: int = 0) -> bytes:
    asked = messages.Create(
        container=container_id, rootfs=messages.Rootfs(lun=lun, fstype="erofs"), program=program(*args)
    )
    return fields.encode(asked)


class Pod:
    """One pod, and what is found of its containers on the host."""

    def __init__(self, keepers: Keepers, home: Path) -> None:
        self.keepers, self.home = keepers, home
        self.directory, self.exits, self.disks = home / "pod", home / "exits", home / "disks"
        self.directory.mkdir()
        self.exits.mkdir()
        self.keeper = Keeper(SANDBOX, str(self.directory))
        self.launched: Launched

    def machine(self, wrong: str = "") -> Machine:
        return Machine(
            memory=64 << 20,
            vcpus=1,
            accel=Accel.TCG,
            kernel=str(self.disks),
            initrd=wrong,
            cmdline="",
            ports=(CONTROL_PORT, SHARE_PORT),
        )

    def launch(self, wrong: str = "", seconds: float = 20, deadline: Deadline | None = None) -> Launched:
        asked = Launch(
            sandbox_id=SANDBOX,
            directory=str(self.directory),
            monitor=Monitor(driver=Driver.QEMU, program="/none"),
            machine=self.machine(wrong),
            who=Confinement(uid=os.getuid(), gid=os.getgid()),
            seconds=seconds,
        )
        self.launched = self.keepers.launch(asked, deadline or soon())
        return self.launched

    # Containers

    def bundle(self, name: str) -> Path:
        return self.home / name

    def supervision(self, name: str, **more: object) -> Supervision:
        self.bundle(name).mkdir(exist_ok=True)
        plan = Supervision(
            container_id=name,
            bundle=str(self.bundle(name)),
            exits=str(self.exits),
            log_path=str(self.home / f"{name}.log"),
        )
        return msgspec.structs.replace(plan, **more)

    def create(self, name: str, *args: str, **more: object) -> int:
        with self.keeper.creation(name, soon()) as making:
            return making.create(self.supervision(name, **more), created(name, *args)).pid

    def prepared(self, name: str, *args: str, image: str = "image") -> tuple[tuple[int, ...], tuple[str, ...]]:
        """One with a disk, and a volume."""
        with open("/dev/zero", "rb") as disk, self.keeper.creation(name, soon()) as making:
            found = making.prepare([(Disk(key=image), disk.fileno())], [(Volume(), disk.fileno())])
            making.create(self.supervision(name), created(name, *args, lun=found.luns[0]))
        return found.luns, found.volumes

    def run(self, name: str, *args: str, **more: object) -> None:
        self.create(name, *args, **more)
        self.keeper.start(name, soon())

    def ended(self, name: str, seconds: float = 30) -> int:
        with watched(self.exits) as wait:
            wait((self.exits / name).exists, seconds)
        found = read_exit(self.exits, name)
        assert found is not None
        return found.code

    def look(self, name: str) -> Live:
        return contract.look(str(self.bundle(name)), str(self.bundle(name) / orders.FROZEN))

    def verdict(self, name: str) -> tuple[str, str]:
        found = contract.verdict(str(self.bundle(name)))
        assert found is not None
        return found.reason, found.message

    def lines(self, name: str) -> list[tuple[str, bytes]]:
        content = (self.home / f"{name}.log").read_bytes()
        found = [LINE.match(line) for line in content.split(b"\n")[:-1]]
        return [(one[1].decode(), one[3]) for one in found if one is not None]

    # What runs beside them

    @contextlib.contextmanager
    def exec(self, name: str, *args: str, stdio: Stdio | None = None) -> Iterator[ExecConsole]:
        wanted = stdio or Stdio(stdout=True, stderr=True)
        asked = messages.Exec(container=name, program=program(*args, tty=wanted.tty, stdin=wanted.stdin))
        console = ExecConsole(name)
        try:
            console.start(self.keeper, fields.encode(asked), wanted, soon())
            yield console
        finally:
            console.close()

    # Its end

    def gone(self, seconds: float = 20) -> None:
        """The keeper, and with it the machine."""
        for pid, started in (
            (self.launched.pid, self.launched.started),
            (self.launched.monitor_pid, self.launched.monitor_started),
        ):
            held = open_process(pid, started)
            if held is not None:
                with held:
                    assert held.wait(seconds), f"{pid} goes on"

    def resident(self) -> int:
        """Bytes of memory of the keeper's own."""
        lines = Path(f"/proc/{self.launched.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))

    def cpu(self) -> float:
        """Seconds that the keeper has used."""
        text = Path(f"/proc/{self.launched.pid}/stat").read_text()
        fields_ = text[text.rindex(")") + 2 :].split()
        return (int(fields_[11]) + int(fields_[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.keeper.stop(soon())


def readable(fd: int, seconds: float = 20) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(seconds * 1000), "nothing came"


def is_alive(pid: int) -> bool:
    seen = procs.stat(pid)
    return seen is not None and not seen.dead


__all__ = ["Pidfd", "Pod", "created", "is_alive", "program", "readable", "soon"]
