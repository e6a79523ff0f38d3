"""QEMU as a monitor: what it can see and do on the host, and what it does with machines."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engines.microvm.templates import sealed
from engines.microvm.templates.warm import save
from engines.microvm.vmm.base import Confinement, Event, Machine, Template
from engines.microvm.vmm.qemu.driver import Qemu
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, InternalError, InvalidInput, Unavailable
from tests.e2e.vmm_lab import COUNTER, COUNTS, MEMORY, QEMU, RESETS, SLEEPS, WHO, alone, machine, soon

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not os.access(QEMU, os.X_OK), reason="there is no QEMU on this host"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="microVMs are of x86-64"),
]

# Where a container runtime's own files would be found, and everybody's.
_HOST = ("/etc/passwd", "/proc/1", "/usr/bin", "/dev/null", "/sys/kernel", "/run", "/var/lib", "/root", "/tmp")


@contextmanager
def running(what: Machine, template: Template | None = None, *, memory: int = -1) -> Iterator[Qemu]:
    qemu = Qemu(QEMU)
    qemu.start(what, -1, WHO, soon(), template, memory=memory)
    try:
        yield qemu
    finally:
        qemu.stop()


def events_of(qemu: Qemu) -> list[Event]:
    """All there are, of one that ends."""
    found: list[Event] = []
    poll = select.poll()
    for fd in qemu.fds:
        poll.register(fd, select.POLLIN)
    while not found or found[-1].name not in ("exited", "failed"):
        assert poll.poll(20_000), f"nothing but {found} has happened"
        found += qemu.events()
    return found


def count(memory: int) -> int:
    return int(struct.unpack("<I", os.pread(memory, 4, COUNTER))[0])


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def image(path: Path, size: int = 1 << 20) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.ftruncate(fd, size)
    return fd


# -- what it can see and do


def test_qemu_sees_no_file_of_the_host_and_nobody_else(tmp_path: Path) -> None:
    def test() -> None:
        with running(machine(tmp_path, SLEEPS)) as qemu:
            root = Path(f"/proc/{qemu.pid}/root")
            assert [name for name in _HOST if Path(f"{root}{name}").exists()] == []
            # Its only mount is an empty one: what is in it are links that lead nowhere any more.
            assert len(Path(f"/proc/{qemu.pid}/mountinfo").read_text().splitlines()) == 1
            found = [entry for entry in root.iterdir() if not entry.is_symlink()]
            assert [entry.name for entry in found] == ["files"]
            assert list(found[0].iterdir()) == []
            for kind in ("mnt", "net", "ipc", "uts", "pid", "cgroup"):
                assert os.readlink(f"/proc/{qemu.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
            assert status(qemu.pid)["NSpid"].split() == [str(qemu.pid), "1"]

    alone(test)


def test_qemu_is_nobody_and_can_become_nobody_else(tmp_path: Path) -> None:
    def test() -> None:
        with running(machine(tmp_path, SLEEPS)) as qemu:
            seen = status(qemu.pid)
            assert set(seen["Uid"].split()) == {str(WHO.uid)} and set(seen["Gid"].split()) == {str(WHO.gid)}
            assert seen["Groups"] == ""
            for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(seen[kind], 16) == 0, kind
            # Its own filter, and ours.
            assert (seen["NoNewPrivs"], seen["Seccomp"], seen["Seccomp_filters"]) == ("1", "2", "2")
            for task in Path(f"/proc/{qemu.pid}/task").iterdir():
                assert "Seccomp_filters:\t2" in (task / "status").read_text()

    alone(test)


def test_qemu_has_no_descriptor_but_what_it_works_with(tmp_path: Path) -> None:
    def test() -> None:
        secret = os.open("/etc/shadow" if Path("/etc/shadow").exists() else "/etc/passwd", os.O_RDONLY)
        os.set_inheritable(secret, True)
        with running(machine(tmp_path, SLEEPS)) as qemu:
            names = {os.readlink(entry).partition(":")[0] for entry in Path(f"/proc/{qemu.pid}/fd").iterdir()}
            # The last two are /dev/null and /dev/net/tun, as they are called where there is no /dev.
            assert names <= {"socket", "pipe", "anon_inode", "/null", "/net/tun"}

    alone(test)


def test_qemu_can_let_no_file_grow(tmp_path: Path) -> None:
    def limit(pid: int, name: str = "file size") -> str:
        return Path(f"/proc/{pid}/limits").read_text().split(f"Max {name}")[1].split()[0]

    def test() -> None:
        with running(machine(tmp_path, SLEEPS)) as qemu:
            assert limit(qemu.pid) == "0"
            # Nor more threads than one of its kind has, whatever it is made to do.
            assert limit(qemu.pid, "processes") == "1024"
        with running(machine(tmp_path, SLEEPS, disk_max=1 << 20)) as qemu:
            assert limit(qemu.pid) == str(1 << 20)
            qemu.add_disk(4, image(tmp_path / "disk", 1 << 20), readonly=False, deadline=soon())
            with pytest.raises(InvalidInput, match="cannot be written to"):
                qemu.add_disk(0, image(tmp_path / "disk", 1 << 20), readonly=False, deadline=soon())
            with pytest.raises(FailedPrecondition, match="at most"):
                qemu.add_disk(5, image(tmp_path / "other", 2 << 20), readonly=False, deadline=soon())
            with pytest.raises(FailedPrecondition, match="not opened"):
                qemu.add_disk(5, os.open(tmp_path / "disk", os.O_RDONLY), readonly=False, deadline=soon())

    alone(test)


def test_qemu_is_in_its_cgroup_before_it_is_executed(tmp_path: Path) -> None:
    group = Path("/sys/fs/cgroup/pids")
    if not group.is_dir():
        pytest.skip("there is no pids cgroup in this place")
    group /= f"forgeone-test-{os.getpid()}"
    group.mkdir()

    def test() -> None:
        qemu = Qemu(QEMU)
        who = Confinement(uid=WHO.uid, gid=WHO.gid, cgroups=(str(group),), oom_score_adj=500)
        qemu.start(machine(tmp_path, SLEEPS), -1, who, soon())
        try:
            assert (group / "cgroup.procs").read_text().split() == [str(qemu.pid)]
            assert Path(f"/proc/{qemu.pid}/oom_score_adj").read_text().strip() == "500"
        finally:
            qemu.stop()

    try:
        alone(test)
    finally:
        group.rmdir()


# -- its life


def test_a_machine_that_resets_itself_has_ended(tmp_path: Path) -> None:
    def test() -> None:
        with running(machine(tmp_path, RESETS)) as qemu:
            assert [event.name for event in events_of(qemu)] == ["reset", "exited"]
            assert qemu.fds == () and qemu.events() == []

    alone(test)


def test_of_a_qemu_that_is_killed_the_signal_is_told(tmp_path: Path) -> None:
    def test() -> None:
        with running(machine(tmp_path, SLEEPS)) as qemu:
            os.kill(qemu.pid, signal.SIGKILL)
            assert events_of(qemu)[-1] == Event("exited", "ended by signal 9")
            with pytest.raises(InternalError):
                qemu.pause(soon())

    alone(test)


def test_qemu_dies_with_its_parent(tmp_path: Path) -> None:
    what = machine(tmp_path, SLEEPS)

    def test() -> None:
        told, tell = os.pipe()
        keeper = os.fork()
        if keeper == 0:
            try:
                qemu = Qemu(QEMU)
                qemu.start(what, -1, WHO, soon())
                os.write(tell, struct.pack("i", qemu.pid))
                signal.pause()
            finally:
                os._exit(1)
        os.close(tell)
        pid = struct.unpack("i", os.read(told, 4))[0]
        held = os.pidfd_open(pid)
        os.kill(keeper, signal.SIGKILL)
        os.waitpid(keeper, 0)
        poll = select.poll()
        poll.register(held, select.POLLIN)
        assert poll.poll(10_000), "QEMU lives on"

    alone(test)


def test_a_machine_that_cannot_be_started_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    what = machine(tmp_path, SLEEPS)

    def test() -> None:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(Unavailable):
            Qemu("/usr/bin/no-such-qemu").start(what, -1, WHO, soon())
        Path(what.kernel).chmod(0o600)
        with pytest.raises(InternalError, match=r"ended with code 1; .*kernel"):
            Qemu(QEMU).start(what, -1, WHO, soon())
        Path(what.kernel).chmod(0o444)
        with pytest.raises(InternalError, match=r"cgroup\.procs"):
            Qemu(QEMU).start(what, -1, Confinement(uid=1, gid=1, cgroups=(str(tmp_path / "none"),)), soon())
        with pytest.raises(DeadlineExceeded):
            Qemu(QEMU).start(what, -1, WHO, Deadline.after(0.005))
        assert len(os.listdir("/proc/self/fd")) == before

    alone(test)


def test_the_parent_keeps_its_own_namespaces(tmp_path: Path) -> None:
    def test() -> None:
        kinds = ("mnt", "pid", "pid_for_children", "net", "ipc", "uts")
        before = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
        with running(machine(tmp_path, SLEEPS)):
            assert [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds] == before
            assert Path("/etc/passwd").exists()

    alone(test)


def test_each_port_is_a_connection(tmp_path: Path) -> None:
    def test() -> None:
        with running(machine(tmp_path, SLEEPS)) as qemu:
            channels = qemu.channels()
            assert set(channels) == {"forgeone.control", "forgeone.share"}
            assert qemu.channels() == {}
            for channel in channels.values():
                assert isinstance(channel, socket.socket) and channel.getblocking()
                channel.close()

    alone(test)


# -- disks


def test_disks_come_and_go_while_the_machine_runs(tmp_path: Path) -> None:
    def test() -> None:
        with running(machine(tmp_path, SLEEPS)) as qemu:
            disk = image(tmp_path / "disk")
            before = len(os.listdir("/proc/self/fd"))
            idle = len(os.listdir(f"/proc/{qemu.pid}/fd"))
            for _ in range(3):
                for lun in (0, 1, 255):
                    qemu.add_disk(lun, disk, readonly=True, deadline=soon())
                with pytest.raises(InternalError, match="there is a disk"):
                    qemu.add_disk(0, disk, readonly=True, deadline=soon())
                for lun in (0, 1, 255):
                    qemu.remove_disk(lun, soon())
                    qemu.remove_disk(lun, soon())
            assert len(os.listdir("/proc/self/fd")) == before
            assert len(os.listdir(f"/proc/{qemu.pid}/fd")) == idle

    alone(test)


def test_qemu_can_only_read_a_disk_that_is_only_read(tmp_path: Path) -> None:
    def test() -> None:
        with running(machine(tmp_path, SLEEPS)) as qemu:
            qemu.add_disk(3, image(tmp_path / "disk"), readonly=True, deadline=soon())
            for entry in Path(f"/proc/{qemu.pid}/fd").iterdir():
                if os.readlink(entry).endswith("/disk"):
                    flags = Path(f"/proc/{qemu.pid}/fdinfo/{entry.name}").read_text().split("flags:")[1].split()[0]
                    assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY

    alone(test)


def test_disks_that_cannot_be_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    def test() -> None:
        with running(machine(tmp_path, SLEEPS)) as qemu:
            idle = len(os.listdir(f"/proc/{qemu.pid}/fd"))
            disk = image(tmp_path / "disk")
            with pytest.raises(InvalidInput):
                qemu.add_disk(256, disk, readonly=True, deadline=soon())
            with pytest.raises(FailedPrecondition, match="reclaimed"):
                qemu.add_disk(5, disk, readonly=False, deadline=soon())
            with pytest.raises(FailedPrecondition, match="no file"):
                qemu.add_disk(1, os.open("/", os.O_RDONLY), readonly=True, deadline=soon())
            assert len(os.listdir(f"/proc/{qemu.pid}/fd")) == idle

    alone(test)


# -- pause, snapshot, clone


def saved(what: Machine) -> Template:
    def build(memory: int, state: int) -> None:
        with running(what, memory=memory) as qemu:
            wait_until(lambda: count(memory) > 1000)
            qemu.pause(soon())
            before = count(memory)
            qemu.snapshot(state, soon())
            assert count(memory) == before

    return save(what, build)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def guest_word(pid: int, memory: int) -> int:
    """What a clone has at its counter: of its private mapping of the template's memory."""
    inode = os.fstat(memory).st_ino
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        place, _, _, _, number, *_ = line.split()
        if int(number) == inode:
            with open(f"/proc/{pid}/mem", "rb") as mem:
                mem.seek(int(place.partition("-")[0], 16) + COUNTER)
                return int(struct.unpack("<I", mem.read(4))[0])
    raise AssertionError("the template's memory is not mapped")


def test_a_paused_machine_stands_still(tmp_path: Path) -> None:
    def test() -> None:
        memory = sealed.make("memory", MEMORY)
        with running(machine(tmp_path, COUNTS), memory=memory) as qemu:
            wait_until(lambda: count(memory) > 1000)
            qemu.pause(soon())
            before = count(memory)
            time.sleep(0.05)
            assert count(memory) == before
            qemu.resume(soon())
            wait_until(lambda: count(memory) > before)

    alone(test)


def test_clones_begin_where_their_template_was_saved_and_never_change_it(tmp_path: Path) -> None:
    def test() -> None:
        what = machine(tmp_path, COUNTS)
        template = saved(what)
        begin = count(template.memory)
        # Of its kernel and initrd a clone needs nothing.
        Path(what.kernel).unlink()
        Path(what.initrd).unlink()
        with running(what, template) as first, running(what, template) as second:
            for qemu in (first, second):
                wait_until(lambda qemu=qemu: guest_word(qemu.pid, template.memory) > begin + 1000)
                qemu.pause(soon())
            assert guest_word(first.pid, template.memory) != guest_word(second.pid, template.memory)
            assert count(template.memory) == begin
            assert [event for one in (first, second) for event in one.events()] == []

    alone(test)


def test_nobody_can_change_a_template(tmp_path: Path) -> None:
    def test() -> None:
        template = saved(machine(tmp_path, COUNTS))
        for fd in (template.memory, template.state):
            for change in (lambda fd=fd: os.pwrite(fd, b"x", 0), lambda fd=fd: os.ftruncate(fd, 1)):
                with pytest.raises(PermissionError):
                    change()

    alone(test)


def test_a_machine_does_not_begin_from_another_ones_template(tmp_path: Path) -> None:
    def test() -> None:
        template = saved(machine(tmp_path, COUNTS))
        broken = sealed.make("state", 0)
        os.write(broken, os.pread(template.state, 1 << 20, 0)[:5000])
        with pytest.raises(InternalError):
            Qemu(QEMU).start(machine(tmp_path, COUNTS), -1, WHO, soon(), Template(memory=template.memory, state=broken))

    alone(test)


# -- a monitor that is not what it should be


_GREETING = '{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":22}}}}'


@pytest.mark.parametrize(
    ("does", "error", "says"),
    [
        ("echo 'no such machine' >&2; exit 3", InternalError, "ended with code 3; no such machine"),
        ("exec /usr/bin/yes >&3", InternalError, "not itself"),
        (f"exec /usr/bin/tr -d '\\n' < {QEMU} >&3", InternalError, "longer than"),
        ("exec /usr/bin/sleep 60", DeadlineExceeded, "start"),
        (f"echo '{_GREETING}' >&3; exit 9", InternalError, "ended with code 9"),
        ("exec /usr/bin/no-such-program", InternalError, "127"),
    ],
)
def test_a_monitor_that_is_none_is_ended(tmp_path: Path, does: str, error: type[Exception], says: str) -> None:
    tmp_path.chmod(0o755)
    fake = tmp_path / "bin" / "qemu"
    fake.parent.mkdir(mode=0o755)
    fake.write_text(f"#!/bin/sh\n{does}\n")
    fake.chmod(0o755)

    def test() -> None:
        deadline = Deadline.after(0.5 if error is DeadlineExceeded else 20)
        with pytest.raises(error, match=says):
            Qemu(str(fake)).start(machine(tmp_path, SLEEPS), -1, WHO, deadline)

    alone(test)
