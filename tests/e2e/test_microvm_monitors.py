"""Firecracker and Cloud Hypervisor, as far as can be shown without them: a double that holds to their interfaces.

It is executed as they would be, so that its user, its files, its sockets and its network are real.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from engines.microvm.vmm.base import Accel, Event, Machine, Template
from engines.microvm.vmm.cloud_hypervisor import CloudHypervisor
from engines.microvm.vmm.firecracker import DISKS, Firecracker
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, ForgeError, InternalError, InvalidInput
from forgeone_shim.kernel.namespaces import in_thread
from forgeone_shim.kernel.syscalls import number, syscall
from tests.e2e import vmm_lab as lab

pytestmark = pytest.mark.root
DOUBLE = Path(__file__).with_name("monitor_double.py")

Monitor = Firecracker | CloudHypervisor
CLONE_NEWNET = 0x40000000


def soon() -> Deadline:
    return Deadline.after(20)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a stranger can read."""
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(path.stat().st_mode | 0o055)
    (tmp_path / "bin").mkdir()
    for name in ("firecracker", "cloud-hypervisor"):
        (tmp_path / "bin" / name).write_text(DOUBLE.read_text())
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


@pytest.fixture(params=["firecracker", "cloud-hypervisor"])
def monitor(request: pytest.FixtureRequest, directory: Path) -> Monitor:
    kind = Firecracker if request.param == "firecracker" else CloudHypervisor
    return kind(str(directory / "bin" / request.param))


@pytest.fixture
def machine(directory: Path) -> Machine:
    return replace(lab.machine(directory, lab.SLEEPS), accel=Accel.KVM, vcpus=3)


@pytest.fixture
def image(directory: Path) -> Iterator[int]:
    """A disk's image that is root's alone."""
    (directory / "image").write_bytes(b"an image of root" + bytes(4096))
    (directory / "image").chmod(0o400)
    fd = os.open(directory / "image", os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@contextmanager
def tap() -> Iterator[tuple[int, int]]:
    """An interface in a namespace of its own: the descriptor, which nobody else has, and the namespace's number."""

    def make() -> tuple[int, int]:
        syscall(number("unshare"), CLONE_NEWNET)
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"pod0", 0x5002))
        return fd, os.stat("/proc/thread-self/ns/net").st_ino

    fd, network = in_thread(make)
    yield fd, network
    os.close(fd)


def told(monitor: Monitor) -> dict[str, object]:
    """What the double has seen."""
    found: dict[str, object] = monitor._hosted.rest.get("/double", soon())
    return found


def last(monitor: Monitor) -> list[object]:
    seen = told(monitor)["seen"]
    assert isinstance(seen, list)
    found: list[object] = seen[-1]
    return found


def events(monitor: Monitor, wanted: Callable[[list[Event]], bool]) -> list[Event]:
    found: list[Event] = []
    poll = select.poll()
    for fd in monitor.fds:
        poll.register(fd, select.POLLIN)
    while not wanted(found):
        assert poll.poll(10_000), found
        found += monitor.events()
    return found


@lab.like_a_keeper
def test_a_machine_starts_confined_and_its_agent_connects_its_ports(monitor: Monitor, machine: Machine) -> None:
    with tap() as (fd, network):
        monitor.start(machine, fd, lab.WHO, soon())
    channels = monitor.channels()
    assert {name: one.recv(100) for name, one in channels.items()} == {
        "forgeone.control": b"port 1024",
        "forgeone.share": b"port 1025",
    }
    for one in channels.values():
        one.close()
    assert monitor.channels() == {}
    said = told(monitor)
    assert said["ids"] == [lab.WHO.uid, lab.WHO.gid]
    assert said["files"]["initrd"] == "none"  # type: ignore[index]
    assert set(said["place"]) <= {"api", "empty", "vsock"}  # type: ignore[call-overload]
    # Nothing that it was loaded from is there any more.
    with monitor._hosted.process.inside():
        assert os.listdir("/files") == []
    assert (said["network"] == network) == isinstance(monitor, Firecracker)
    status = Path(f"/proc/{monitor.pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


@lab.like_a_keeper
def test_what_is_asked_for_is_the_machine(monitor: Monitor, machine: Machine) -> None:
    monitor.start(machine, -1, lab.WHO, soon())
    seen = {path: body for _, path, body, _ in told(monitor)["seen"]}  # type: ignore[attr-defined]
    if isinstance(monitor, Firecracker):
        assert seen["/machine-config"] == {"vcpu_count": 4, "mem_size_mib": 64, "smt": False}
        assert seen["/boot-source"]["boot_args"] == "quiet"
        assert "/network-interfaces/net0" not in seen
    else:
        assert seen["/vm.create"]["cpus"] == {"boot_vcpus": 3, "max_vcpus": 3}
        assert seen["/vm.create"]["memory"] == {"size": lab.MEMORY}
        assert seen["/vm.create"]["payload"]["cmdline"] == "quiet"


@lab.like_a_keeper
def test_disks_come_and_go_though_their_images_are_roots_alone(monitor: Monitor, machine: Machine, image: int) -> None:
    monitor.start(machine, -1, lab.WHO, soon())
    for _ in range(2):
        monitor.add_disk(5, image, readonly=True, deadline=soon())
        files = told(monitor)["files"]
        assert "an image of root" in {text for name, text in files.items() if name.startswith("disk5")}  # type: ignore[attr-defined]
        with pytest.raises(InternalError, match="there is a disk 5"):
            monitor.add_disk(5, image, readonly=True, deadline=soon())
        monitor.remove_disk(5, soon())
        monitor.remove_disk(5, soon())
        assert not any(name.startswith("disk5") for name in told(monitor)["place"])  # type: ignore[attr-defined]
    with pytest.raises(FailedPrecondition, match="no disk to write to"):
        monitor.add_disk(1, image, readonly=False, deadline=soon())
    with pytest.raises(InvalidInput, match="lun"):
        monitor.add_disk(monitor.luns, image, readonly=True, deadline=soon())
    for lun in range(DISKS):
        monitor.add_disk(lun, image, readonly=True, deadline=soon())


@lab.like_a_keeper
def test_a_refusal_is_told_and_undone(monitor: Monitor, machine: Machine, image: int) -> None:
    monitor.start(machine, -1, lab.WHO, soon())
    monitor.pause(soon())
    if isinstance(monitor, CloudHypervisor):
        with pytest.raises(InternalError, match=r"refuses PUT /vm.add-disk \(400\): Error from API; The requested"):
            monitor.add_disk(1, image, readonly=True, deadline=soon())
        with pytest.raises(InternalError, match=r"refuses PUT /vm\.pause"):
            monitor.pause(soon())
    else:
        with pytest.raises(InternalError, match=r"refuses PUT /entropy \(400\): The requested operation"):
            monitor._hosted.rest.put("/entropy", {}, soon())
    assert not any(name.startswith("disk1") for name in told(monitor)["place"])  # type: ignore[attr-defined]


@lab.like_a_keeper
def test_a_monitor_that_was_taken_over_leads_nobody_to_the_hosts_files(
    monitor: Monitor, machine: Machine, image: int, directory: Path
) -> None:
    monitor.start(machine, -1, lab.WHO, soon())
    place = monitor._hosted.place
    here = f"/proc/self/fd/{place.tree}"
    victim = directory / "victim"
    victim.write_text("of the host")
    for name in ("api", "other", "disk3", "disk3-1"):
        Path(here, name).unlink(missing_ok=True)
        Path(here, name).symlink_to(victim)
    monitor._hosted.rest.close()
    with pytest.raises(InternalError, match="Too many levels of symbolic links"):
        monitor.pause(soon())
    with pytest.raises(InternalError, match="other"):
        place.listen("other")
    with pytest.raises(InternalError, match="disk3"):
        monitor.add_disk(3, image, readonly=True, deadline=soon())
    assert (victim.read_text(), victim.stat().st_uid) == ("of the host", 0)


@lab.like_a_keeper
def test_it_stands_still_and_goes_on(monitor: Monitor, machine: Machine) -> None:
    monitor.start(machine, -1, lab.WHO, soon())
    monitor.pause(soon())
    assert told(monitor)["state"] == "paused"
    monitor.resume(soon())
    assert told(monitor)["state"] == "running"


@lab.like_a_keeper
def test_its_end_and_what_it_said_are_told(monitor: Monitor, machine: Machine) -> None:
    monitor.start(machine, -1, lab.WHO, soon())
    assert monitor.events() == []
    if isinstance(monitor, CloudHypervisor):
        monitor._hosted.rest.put("/double", "rebooting", soon())
        monitor._hosted.rest.put("/double", "shutdown", soon())
        assert [one.name for one in events(monitor, lambda found: len(found) == 2)] == ["reset", "shutdown"]
    with pytest.raises(InternalError, match="does not answer PUT /double"):
        monitor._hosted.rest.put("/double", "exit", soon())
    (ended,) = events(monitor, lambda found: bool(found) and found[-1].name == "exited")
    assert ended.message == "ended with code 7; the double was told to end"
    assert (monitor.fds, monitor.events()) == ((), [])


@lab.like_a_keeper
def test_what_cannot_be_is_refused_and_leaves_nothing(monitor: Monitor, machine: Machine, directory: Path) -> None:
    def refused(kind: type[ForgeError], message: str, made: Monitor, asked: Machine, **more: object) -> None:
        with pytest.raises(kind, match=message):
            made.start(asked, -1, lab.WHO, soon(), **more)  # type: ignore[arg-type]
        assert made.pid == 0 or not Path(f"/proc/{made.pid}").exists()

    refused(FailedPrecondition, "needs KVM", monitor, replace(machine, accel=Accel.TCG))
    refused(FailedPrecondition, "do not begin from templates", monitor, machine, template=Template(memory=0, state=0))
    refused(ForgeError, "No such file", monitor, replace(machine, initrd=str(directory / "nothing")))
    broken = type(monitor)(monitor._program)
    Path(monitor._program).write_text("#!/usr/bin/python3 -I\nraise SystemExit('no')\n")
    refused(InternalError, "ended as soon as it was started|does not answer", broken, machine)
