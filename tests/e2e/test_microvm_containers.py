"""What a container in a machine sees and may do, by the real agent under the distribution's kernel."""

from __future__ import annotations

import contextlib
import errno
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from engines.microvm.wire.messages import (
    Created,
    Device,
    Exec,
    Freeze,
    Interface,
    Mount,
    Neighbour,
    Rlimit,
    Route,
    Setting,
    Setup,
    Signal,
    StatsRequest,
    Update,
)
from engines.microvm.wire.protocol import STDERR, STDOUT, Kind, MountKind, PidMode
from tests.e2e import guest_lab, microvm_pods
from tests.e2e.guest_lab import ALL_CAPS, DEFAULT_CAPS, PLAIN, RDONLY, Asked, Guest, file, program, sh
from tests.unit.microvm.agents import Failure, Output

pytestmark = pytest.mark.root

_LAYER_LUN, _EVIL_LUN = 3, 2
# What a kernel is asked about by a filter: getppid(2) of x86-64.
_GETPPID = 110


def _evil(directory: Path) -> Path:
    """A root whose symlinks ask for what is not in it."""
    guest_lab.root(directory)
    for name, target in (
        ("abs", "/run/stage/../../etc"),
        ("up", "../../../../../../run"),
        ("magic", "/proc/1/root/tmp"),
        ("loop", "loop"),
        ("dangling", "/made/by/link"),
    ):
        (directory / name).symlink_to(target)
    (directory / "volume" / "sub").mkdir(parents=True)
    (directory / "volume" / "sub" / "file").write_text("of the image\n")
    (directory / "volume" / "link").symlink_to("/etc/../../volume/sub")
    for name, mode in (("plain", 0o644), ("private", 0o700)):
        (directory / "bin" / name).write_text("#!/bin/sh\necho private\n")
        (directory / "bin" / name).chmod(mode)
    return directory


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    if why := microvm_pods.missing():
        pytest.skip(why)
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4")
    made = tmp_path_factory.mktemp("guest")
    plain = guest_lab.packed(guest_lab.root(made / "root"), made / "plain.erofs")
    evil = guest_lab.packed(_evil(made / "evil"), made / "evil.erofs")
    layer = made / "layer.ext4"
    with layer.open("wb") as disk:
        disk.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(layer)], check=True, capture_output=True)
    one = Guest(made, [(plain, True), (evil, True), (layer, False)])
    try:
        one.setup_pod(_setup())
        yield one
    finally:
        one.close()


def _setup() -> Setup:
    return Setup(
        time=time.time_ns(),
        entropy=bytes(64),
        hostname="pod-a",
        machine_id="0123456789abcdef0123456789abcdef",
        interfaces=(
            Interface(
                name="eth7",
                mac=b"\x02\x11\x22\x33\x44\x55",
                mtu=1400,
                addresses=("10.9.0.5/24", "fd00::5/64"),
                # The gateway is on the link by a route that comes after it.
                routes=(
                    Route(destination="0.0.0.0/0", gateway="169.254.1.1"),
                    Route(destination="169.254.1.1/32", scope=253),
                    Route(destination="::/0", gateway="fd00::1", priority=77),
                ),
                neighbours=(Neighbour(address="169.254.1.1", mac=b"\xee" * 6),),
            ),
        ),
        sysctls=(
            Setting(name="net.core.somaxconn", value="777"),
            Setting(name="net/ipv4/conf/eth7/rp_filter", value="2"),
        ),
        shm_size=1 << 20,
        shared_pid=True,
    )


def _refused(guest: Guest, first: msgspec.Struct, asked: Asked = PLAIN, name: str = "once") -> tuple[int, str, str]:
    with pytest.raises(Failure) as caught:
        guest.begin(name, first, asked)  # type: ignore[arg-type]
    what = caught.value.what
    return what.errno, what.field, what.message


# -- what a container sees


def test_mounts_are_those_of_any_container(guest: Guest) -> None:
    _, out, err = guest.run(
        sh("cat /proc/self/mounts; ls /sys/firmware; head -c1 /proc/kcore | wc -c; echo x > /run/x")
    )
    assert err == ""
    lines = [line.split() for line in out.splitlines()]
    mounts = {words[1]: (words[2], set(words[3].split(","))) for words in lines if len(words) == 6}
    assert lines[-1] == ["0"], "what is masked is empty"
    assert mounts["/"][0] == "overlay"
    for place, kind, options in (
        ("/proc", "proc", {"rw", "nosuid", "nodev", "noexec"}),
        ("/sys", "sysfs", {"ro", "nosuid", "nodev", "noexec"}),
        ("/sys/fs/cgroup", "cgroup2", {"ro", "nosuid", "nodev", "noexec"}),
        ("/dev", "tmpfs", {"rw", "nosuid", "mode=755", "size=65536k"}),
        ("/dev/pts", "devpts", {"rw", "nosuid", "noexec", "gid=5", "mode=620", "ptmxmode=666"}),
        ("/dev/mqueue", "mqueue", {"rw", "nosuid", "nodev", "noexec"}),
        ("/dev/shm", "tmpfs", {"rw", "nosuid", "nodev", "noexec", "size=1024k"}),
        ("/proc/sys", "proc", {"ro"}),
        ("/proc/sysrq-trigger", "proc", {"ro"}),
    ):
        assert mounts[place][0] == kind, place
        assert options <= mounts[place][1], place
    assert not {"/proc/not-there", "/run/stage", "/run/share", "/old"} & set(mounts)


def test_its_devices_links_and_names_are_those_of_any_container(guest: Guest) -> None:
    script = (
        "cd /dev; for n in null zero full random urandom tty; do stat -c '%n %F %a %u:%g %t:%T' $n; done;"
        " for n in fd stdin stdout stderr core ptmx; do readlink $n; done; ls; hostname;"
        " cat /proc/sys/kernel/random/boot_id /proc/self/cgroup; umask; ls /proc/self/fd | wc -l"
    )
    _, out, _ = guest.run(sh(script))
    assert out.splitlines() == [
        *(f"{name} character special file 666 0:0 {numbers}" for name, numbers in _NODES),
        *("/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "/proc/kcore", "pts/ptmx"),
        *("core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout"),
        *("tty", "urandom", "zero", "pod-a", "01234567-89ab-4def-8123-456789abcdef", "0::/", "0022"),
        # 0 to 2, and the directory that is being read.
        "4",
    ]


_NODES = (("null", "1:3"), ("zero", "1:5"), ("full", "1:7"), ("random", "1:8"), ("urandom", "1:9"), ("tty", "5:0"))


def test_the_network_is_the_pods(guest: Guest) -> None:
    script = (
        "ip -o a; ip r; ip -6 r; cat /proc/net/arp /proc/sys/net/core/somaxconn"
        " /proc/sys/net/ipv4/conf/eth7/rp_filter /sys/class/net/eth7/address /sys/class/net/eth7/mtu"
        " /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range"
    )
    _, out, _ = guest.run(sh(script))
    for word in (
        *("inet 127.0.0.1/8", "inet 10.9.0.5/24", "inet6 fd00::5/64", "default via 169.254.1.1 dev eth7"),
        *("169.254.1.1 dev eth7 scope link", "default via fd00::1 dev eth7", "metric 77", "ee:ee:ee:ee:ee:ee"),
        *("\n777\n", "\n2\n", "\n02:11:22:33:44:55\n", "\n1400\n"),
        # The kernel's own, as the pod does not ask for what most do.
        *("\n1024\n", "\n1\t0\n"),
    ):
        assert word in out, word
    assert not any("fd00::5" in line and "tentative" in line for line in out.splitlines())


def test_a_root_that_is_read_only_has_places_for_its_mounts(guest: Guest) -> None:
    asked = Asked(readonly=True, mounts=(file("/deep/file"),))
    code, out, err = guest.run(program("sh", "-c", "cat /deep/file; pwd; echo x > /file", cwd="/not/there"), asked)
    assert (code, out) == (1, "content\n/not/there\n")
    assert "Read-only file system" in err


# -- mounts


@pytest.mark.parametrize(
    ("destination", "place"),
    [
        ("/abs/x", "/etc/x"),
        ("/up/x", "/run/x"),
        ("/magic/x", "/tmp/x"),
        ("/dangling", "/made/by/link"),
        ("/dangling/x", "/made/by/link/x"),
        ("/volume/../../../x", "/x"),
        ("/proc/self/root/x", "/x"),
        ("relative/x", "/relative/x"),
    ],
)
def test_no_symlink_leads_a_mount_out_of_the_root(guest: Guest, destination: str, place: str) -> None:
    script = f"cat {place}; grep -c ' {place} .* - tmpfs stage ' /proc/self/mountinfo"
    code, out, _ = guest.run(sh(script), Asked(lun=_EVIL_LUN, mounts=(file(destination),)))
    assert (code, out) == (0, "content\n1\n")


@pytest.mark.parametrize(
    ("mount", "number"),
    [
        (file("/loop/x"), errno.ELOOP),
        (file("/"), errno.EINVAL),
        (file("/volume/../.."), errno.EINVAL),
        (file("/bin/plain/x"), errno.ENOTDIR),
        (file("/bin"), errno.EINVAL),
        (file("/x", flags=1 << 28), errno.EINVAL),
        (guest_lab.kernel("/x", "ext4"), errno.EINVAL),
        (Mount(kind=MountKind.KERNEL, destination="/x", source="tmpfs", options="nonsense=1"), errno.EINVAL),
        (Mount(kind=MountKind.SHARE, destination="/x", source="/"), errno.EINVAL),
        (Mount(kind=MountKind.SHARE, destination="/x", source="/1/../../etc"), errno.EINVAL),
        (Mount(kind=MountKind.POD, destination="/x", source="../../etc"), errno.EINVAL),
        (Mount(kind=MountKind.IMAGE, destination="/x", source="/none", lun=_EVIL_LUN), errno.ENOENT),
        (Mount(kind=MountKind.IMAGE, destination="/x"), errno.EINVAL),
    ],
)
def test_a_mount_that_cannot_be_is_an_error_that_names_it(guest: Guest, mount: Mount, number: int) -> None:
    found, field, message = _refused(guest, sh("true"), Asked(lun=_EVIL_LUN, mounts=(mount,)))
    assert found == number, message
    assert field.startswith("mounts")
    assert mount.destination in message or mount.source in message


def test_directories_of_the_pods_outlive_containers(guest: Guest) -> None:
    one = Mount(kind=MountKind.POD, destination="/one", source="scratch", options="size=1048576,gid=7", mode=0o2770)
    other = Mount(kind=MountKind.POD, destination="/other", source="scratch", flags=RDONLY)
    script = "echo kept > /one/file; stat -c '%a %u:%g' /one; dd if=/dev/zero of=/one/big bs=1M count=2 2>&1 | head -1"
    _, out, _ = guest.run(sh(script), Asked(mounts=(one,)))
    assert out == "2770 0:7\ndd: error writing '/one/big': No space left on device\n"
    code, out, err = guest.run(
        sh("cat /other/file; stat -c %g /other/file; echo x > /other/file"), Asked(mounts=(other,))
    )
    assert (code, out) == (1, "kept\n7\n")
    assert "Read-only file system" in err


def test_files_and_images_are_mounted_as_asked(guest: Guest) -> None:
    mounts = (
        file("/etc/one", flags=RDONLY),
        file("/new/two", b"", mode=0o600),
        Mount(kind=MountKind.IMAGE, destination="/image", source="/volume/link", lun=_EVIL_LUN, flags=guest_lab.NOEXEC),
    )
    script = (
        "cat /etc/one /image/file; stat -c '%a %s' /etc/one /new/two; echo more >> /new/two; cat /new/two;"
        " echo x >> /etc/one; touch /image/x; grep ' /image ' /proc/self/mounts"
    )
    _, out, err = guest.run(sh(script), Asked(mounts=mounts))
    assert out.startswith("content\nof the image\n644 8\n600 0\nmore\n")
    assert "ro,nosuid,nodev,noexec" in out.splitlines()[-1]
    assert err.count("Read-only file system") == 2


def test_a_dev_of_the_callers_is_left_as_it_is(guest: Guest) -> None:
    one = Mount(kind=MountKind.POD, destination="/dev", source="devices")
    assert guest.run(sh("ls -A /dev"), Asked(mounts=(one,))) == (0, "", "")


# -- devices


def test_disks_of_others_can_be_named_but_not_opened(guest: Guest) -> None:
    code, out, err = guest.run(sh("mknod /tmp/disk b 8 0 && echo made; head -c1 /tmp/disk"))
    assert (code, out) == (1, "made\n")
    assert "Operation not permitted" in err
    asked = Asked(privileged=True)
    code, _, err = guest.run(program("sh", "-c", "mknod /tmp/disk b 8 0; head -c1 /tmp/disk", mask=ALL_CAPS), asked)
    assert code == 1
    assert "Operation not permitted" in err


def test_devices_that_were_asked_for_are_there(guest: Guest) -> None:
    devices = (
        Device(name="/dev/disk/one", mode=0o640, uid=3, gid=4, kind=ord("b"), major=8, minor=0),
        Device(name="/run/pipe", mode=0o606, uid=0, gid=0, kind=ord("p"), major=0, minor=0),
        Device(name="/dev/null", mode=0o600, uid=0, gid=0, kind=ord("c"), major=1, minor=3),
    )
    script = "stat -c '%F %a %u:%g' /dev/disk/one /run/pipe /dev/null; head -c4096 /dev/disk/one | wc -c"
    _, out, _ = guest.run(sh(script), Asked(devices=devices))
    assert out.splitlines() == ["block special file 640 3:4", "fifo 606 0:0", "character special file 666 0:0", "4096"]
    elsewhere = Device(name="/bin/sh", mode=0o640, uid=3, gid=4, kind=ord("b"), major=8, minor=0)
    number, field, message = _refused(guest, sh("true"), Asked(devices=(elsewhere,)))
    assert (number, field) == (errno.EEXIST, "devices"), message


# -- programs


@pytest.mark.parametrize(
    ("args", "uid", "number", "message"),
    [
        (("nothing",), 0, errno.ENOENT, 'exec: "nothing": executable file not found in $PATH'),
        (("/bin/nothing",), 0, errno.ENOENT, 'exec: "/bin/nothing": stat /bin/nothing: no such file or directory'),
        (("plain",), 0, errno.EACCES, 'exec: "plain": permission denied'),
        (("/bin/plain",), 0, errno.EACCES, 'exec: "/bin/plain": permission denied'),
        (("private",), 1000, errno.EACCES, 'exec: "private": permission denied'),
        (("/bin",), 0, errno.EISDIR, 'exec: "/bin": is a directory'),
    ],
)
def test_a_program_that_is_not_there_is_known_when_it_is_created(
    guest: Guest, args: tuple[str, ...], uid: int, number: int, message: str
) -> None:
    assert _refused(guest, program(*args, uid=uid), Asked(lun=_EVIL_LUN)) == (number, "command", message)


def test_a_directory_that_cannot_be_is_known_when_it_is_created(guest: Guest) -> None:
    number, field, _ = _refused(guest, program("true", cwd="/bin/sh"))
    assert (number, field) == (errno.ENOTDIR, "working_dir")


def test_what_its_program_may_do_is_what_was_asked(guest: Guest) -> None:
    wanted = msgspec.structs.replace(
        sh("id; umask; ulimit -n; cat /proc/self/oom_score_adj; grep -E 'Cap|NoNew|Seccomp:' /proc/self/status"),
        uid=1000,
        gid=1001,
        groups=(5, 7),
        umask=0o77,
        no_new_privs=True,
        oom_score_adj=-997,
        rlimits=(Rlimit(resource=7, soft=100, hard=200),),
        seccomp=_denies(_GETPPID),
    )
    _, out, err = guest.run(wanted)
    assert err == ""
    assert out.split() == [
        *("uid=1000", "gid=1001", "groups=5,7", "0077", "100", "-997"),
        *("CapInh:", "0" * 16, "CapPrm:", "0" * 16, "CapEff:", "0" * 16, "CapBnd:", f"{DEFAULT_CAPS:016x}"),
        *("CapAmb:", "0" * 16, "NoNewPrivs:", "1", "Seccomp:", "2"),
    ]


def _denies(call: int) -> bytes:
    """A filter: the call is refused with EACCES."""
    steps = ((0x20, 0, 0, 0), (0x15, 0, 1, call), (6, 0, 0, 0x50000 | errno.EACCES), (6, 0, 0, 0x7FFF0000))
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def test_capabilities_of_a_user_are_kept_and_ambient(guest: Guest) -> None:
    bind = 1 << 10
    held = guest_lab.caps(bind)
    held = msgspec.structs.replace(held, bounding=DEFAULT_CAPS, inheritable=bind, ambient=bind)
    first = msgspec.structs.replace(sh("grep -E 'Cap(Prm|Eff|Amb)' /proc/self/status"), uid=1000, caps=held)
    _, out, _ = guest.run(first)
    assert out.split()[1::2] == [f"{bind:016x}"] * 3


def test_a_terminal_is_the_containers_own(guest: Guest) -> None:
    number = guest.begin("terminal", program("sh", "-c", "tty; echo hi > /dev/console; sleep 60", tty=True))
    guest.said(number, b"hi\r\n")
    assert guest.outputs[number].streams[STDOUT] == b"/dev/pts/0\r\nhi\r\n"
    other = program("sh", "-c", "tty; stat -c %u /dev/pts/1", tty=True, uid=1000)
    assert guest.run_in("terminal", other) == (0, "/dev/pts/1\r\n1000\r\n", "")
    guest.end_of("terminal")


# -- namespaces


def test_processes_of_an_exec_are_in_the_container(guest: Guest) -> None:
    guest.begin("shell", program("sleep", "60"))
    script = (
        "readlink /proc/1/exe; cat /proc/self/cgroup; for n in cgroup ipc mnt net pid uts; do"
        " test $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) || echo other $n; done;"
        " ls /proc/self/fd | wc -l"
    )
    assert guest.run_in("shell", sh(script)) == (0, "/bin/busybox\n0::/\n4\n", "")
    with pytest.raises(Failure, match="not found in"):
        guest.run_in("shell", program("nothing"))
    with pytest.raises(Failure, match="/nowhere"):
        guest.run_in("shell", program("true", cwd="/nowhere"))
    guest.end_of("shell")


def test_pid_namespaces_are_as_asked(guest: Guest) -> None:
    first = guest.begin("first", program("sleep", "61"), Asked(pid_mode=PidMode.POD))
    guest.begin("second", program("sleep", "62"), Asked(pid_mode=PidMode.POD))
    guest.begin("alone", program("sleep", "63"))
    listing = "cat /proc/[0-9]*/comm | grep -c sleep"
    assert guest.run_in("first", sh(listing))[1] == "2\n"
    assert guest.run_in("alone", sh(listing))[1] == "1\n"
    assert guest.run(sh(listing), Asked(pid_mode=PidMode.TARGET, target="alone"))[1] == "1\n"
    # Its first process holds nothing of the machine's, and cannot be ended.
    code, out, _ = guest.run_in(
        "first",
        program("sh", "-c", "kill -9 1; ls /proc/1/root/ /proc/1/fd; grep CapBnd /proc/1/status", mask=ALL_CAPS),
    )
    assert (code, out.split()[-2:]) == (0, ["CapBnd:", "0" * 16])
    assert "init" not in out
    guest.ask(Kind.SIGNAL, Signal(container="first", signo=9))
    assert guest.wait(first)[0] == 137
    assert guest.run_in("second", sh(listing))[1] == "1\n", "what the other has left is gone, the pod's go on"
    for name in ("first", "second", "alone"):
        guest.end_of(name)
    number, field, _ = _refused(guest, sh("true"), Asked(pid_mode=PidMode.TARGET, target="alone"))
    assert (number, field) == (errno.ESRCH, "linux.security_context.namespace_options")


def test_an_ipc_namespace_of_its_own_is_another(guest: Guest) -> None:
    shared = guest.run(program("readlink", "/proc/self/ns/ipc"))[1]
    assert guest.run(program("readlink", "/proc/self/ns/ipc"))[1] == shared
    assert guest.run(program("readlink", "/proc/self/ns/ipc"), Asked(ipc_own=True))[1] != shared


# -- limits, and what is done with them


def test_limits_hold_and_cannot_be_lifted_from_inside(guest: Guest) -> None:
    limits = {"memory.max": "33554432", "cpu.max": "50000 100000", "pids.max": "20"}
    script = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max; echo max > memory.max; cat memory.max"
    _, out, err = guest.run(program("sh", "-c", script, mask=ALL_CAPS), Asked(privileged=True, cgroup=limits))
    assert out == "33554432\n50000 100000\n20\n33554432\n"
    assert "ermission" in err or "not permitted" in err
    for name, value in (("cgroup.procs", "1"), ("../x", "1"), ("memory.max", "abc"), ("memory.none", "1")):
        _, field, _ = _refused(guest, sh("true"), Asked(cgroup={name: value}))
        assert field == f"linux.resources[{name}]"


def test_a_kill_for_memory_is_told(guest: Guest) -> None:
    number = guest.begin("hungry", sh("head -c 64000000 /dev/zero | tail"), Asked(cgroup={"memory.max": "16777216"}))
    guest.wait(number)
    assert guest.outputs[number].exited is not None
    assert guest.outputs[number].exited.oom
    assert b"oom_kill 1" in next(one.content for one in guest.stats("hungry").files if one.name == "memory.events")
    guest.end_of("hungry")
    number, field, message = _refused(guest, sh("true"), Asked(cgroup={"memory.max": "65536"}))
    assert (number, field) == (errno.ENOMEM, "linux.resources[memory.max]"), message


def test_an_update_is_whole_or_nothing(guest: Guest) -> None:
    guest.begin("limited", program("sleep", "60"), Asked(cgroup={"pids.max": "30"}))

    def update(**values: str) -> None:
        settings = tuple(Setting(name=name.replace("_", "."), value=value) for name, value in values.items())
        guest.ask(Kind.UPDATE, Update(container="limited", cgroup=settings))

    def held() -> str:
        return guest.run_in("limited", sh("cd /sys/fs/cgroup; cat memory.max cpu.weight pids.max"))[1]

    with pytest.raises(Failure) as caught:
        update(memory_max="67108864", cpu_weight="50", pids_max="nonsense")
    assert caught.value.what.field == "linux.resources[pids.max]"
    assert held() == "max\n100\n30\n"
    with pytest.raises(Failure) as caught:
        update(cpu_weight="50", memory_max="4096")
    assert caught.value.what.errno == errno.EBUSY, "the kernel would kill for it"
    update(memory_max="67108864", cpu_weight="50", pids_max="max")
    assert held() == "67108864\n50\nmax\n"
    guest.end_of("limited")


def test_what_a_container_uses_is_counted(guest: Guest) -> None:
    number = guest.begin("counted", sh("head -c 3000000 /dev/zero > /big; mkdir /one /two; echo on; sleep 60"))
    guest.said(number, b"on\n")
    found = guest.stats("counted")
    assert found.state == "running"
    assert found.processes == 1
    assert 3_000_000 <= found.layer_bytes < 3_100_000
    assert found.layer_inodes == 3
    files = {one.name: one.content for one in found.files}
    assert b"usage_usec" in files["cpu.stat"]
    assert int(files["memory.current"]) > 3_000_000
    assert {"memory.stat", "memory.max", "memory.peak", "io.stat", "pids.current", "cpu.pressure"} <= set(files)
    guest.end_of("counted")


def test_a_paused_container_stands_still(guest: Guest) -> None:
    number = guest.begin("paused", sh("trap 'echo told; exit 3' USR1; echo on; while :; do sleep 0.05; done"))
    guest.said(number, b"on\n")
    guest.ask(Kind.FREEZE, Freeze(container="paused", on=True))
    assert guest.stats("paused").state == "paused"
    with pytest.raises(Failure, match="paused"):
        guest.run_in("paused", program("true"))
    guest.ask(Kind.SIGNAL, Signal(container="paused", signo=10))
    guest.ask(Kind.FREEZE, Freeze(container="paused", on=False))
    assert guest.wait(number)[:2] == (3, b"on\ntold\n")
    assert guest.stats("paused").state == "stopped"
    guest.end_of("paused")


def test_groups_of_a_containers_own_are_no_hindrance(guest: Guest) -> None:
    script = (
        "cd /sys/fs/cgroup; mkdir -p own/deep; echo 1 > own/cgroup.procs; echo +memory > cgroup.subtree_control;"
        " p=own; while mkdir $p/d 2>/dev/null; do p=$p/d; done; echo on; sleep 60"
    )
    number = guest.begin("nested", program("sh", "-c", script, mask=ALL_CAPS), Asked(privileged=True))
    guest.said(number, b"on\n")
    assert guest.run_in("nested", sh("cat /proc/self/cgroup")) == (0, "0::/own\n", "")
    assert guest.stats("nested").processes == 1
    guest.end_of("nested")
    guest.begin("nested", sh("true"))
    guest.end_of("nested")


def test_a_container_that_stops_what_is_executed_in_it_stops_nobody_else(guest: Guest) -> None:
    # What it stops is still the agent, as one with every capability sees; but not the agent's to write to.
    script = (
        "echo on; while :; do kill -STOP -1; for p in /proc/[0-9]*/exe; do"
        " test $(readlink $p) = /bin/busybox || { readlink $p; echo >$p && echo written; }; done; done"
    )
    number = guest.begin("evil", program("sh", "-c", script, mask=ALL_CAPS))
    guest.said(number, b"on\n")
    guest.begin("good", program("sleep", "60"))
    stopped: list[int] = []
    # One or another is too fast for it.
    while b"/init\n/init\n" not in guest.outputs[number].streams[STDOUT]:
        assert len(stopped) < 30
        process = number + 1000 + len(stopped)
        guest.outputs[process] = Output()
        stopped.append(guest.asked(Kind.EXEC, Exec(container="evil", program=program("true"), process=process)))
        end = time.monotonic() + 0.5
        while (left := end - time.monotonic()) > 0:
            guest.step(left)
    begin = time.monotonic()
    assert guest.run_in("good", sh("echo well"))[:2] == (0, "well\n")
    assert time.monotonic() - begin < 5
    assert b"written" not in guest.outputs[number].streams[STDOUT]
    assert b"Read-only file system" in guest.outputs[number].streams[STDERR]
    guest.end_of("evil")
    for ident in stopped:
        with contextlib.suppress(Failure):
            guest.answer(ident, Created)
    guest.end_of("good")


# -- its end


def test_every_process_gets_a_signal_to_all(guest: Guest) -> None:
    number = guest.begin("group", sh("trap 'echo told; exit 3' TERM; sleep 60 & sleep 61 & echo on; wait"))
    guest.said(number, b"on\n")
    guest.ask(Kind.SIGNAL, Signal(container="group", signo=15, all=True))
    assert guest.wait(number)[:2] == (3, b"on\ntold\n")
    guest.end_of("group")


def test_deleting_ends_everything_at_once(guest: Guest) -> None:
    number = guest.begin("many", sh("for i in 1 2 3 4 5 6 7 8; do (sleep 60 & sleep 60 & wait) & done; echo on; wait"))
    guest.said(number, b"on\n")
    inside = guest.begin("held", sh("true"), start=False)
    assert guest.stats("held").state == "created"
    for name, process in (("many", number), ("held", inside)):
        guest.end_of(name)
        assert guest.wait(process)[0] == 137
        with pytest.raises(Failure, match="there is no container"):
            guest.end_of(name)


def test_a_disk_is_free_when_its_container_is_deleted(guest: Guest) -> None:
    layered = replace(PLAIN, upper_lun=_LAYER_LUN)
    number = guest.begin("layered", sh("echo x > /file; echo on; sleep 60 & sleep 60"), layered)
    guest.said(number, b"on\n")
    # swapon(2) wants a disk for itself before it looks at what is on it.
    where = f"cat /sys/bus/scsi/devices/*:0:0:{_LAYER_LUN}/block/*/dev"
    major, minor = map(int, guest.run(sh(where))[1].split(":"))
    device = Device(name="/dev/layer", mode=0o600, uid=0, gid=0, kind=ord("b"), major=major, minor=minor)
    asked = Asked(privileged=True, devices=(device,))
    take = program("swapon", "/dev/layer", mask=ALL_CAPS)
    assert guest.stats("layered").layer_bytes < 1 << 20, "what a new file system takes is not the container's"
    assert "busy" in guest.run(take, asked)[2]
    guest.run_in("layered", sh("sleep 60 & echo x > /other"))
    guest.end_of("layered")
    assert "Invalid argument" in guest.run(take, asked)[2]


def test_what_a_container_has_written_is_gone_with_its_last_process(guest: Guest) -> None:
    def held() -> int:
        found = guest.ask(Kind.STATS, StatsRequest(containers=()))
        memory = next(one.content for one in found.files if one.name == "meminfo")  # type: ignore[attr-defined]
        return int(memory.split(b"Shmem:")[1].split()[0]) << 10

    before = held()
    number = guest.begin("writer", sh("head -c 20000000 /dev/zero > /big; echo on; head -c1; exit 4"))
    guest.said(number, b"on\n")
    assert held() > before + 19_000_000 or guest.outputs[number].exited is not None
    assert guest.wait(number)[0] == 4
    assert guest.stats("writer").state == "stopped"
    assert held() < before + 1_000_000
    guest.end_of("writer")


def test_ids_are_taken_once_and_name_no_other_directory(guest: Guest) -> None:
    guest.begin("taken", program("sleep", "60"))
    assert _refused(guest, sh("true"), name="taken")[:2] == (errno.EEXIST, "container")
    for name in ("..", "a/b", "cgroup.procs", " "):
        assert _refused(guest, sh("true"), name=name)[:2] == (errno.EINVAL, "container")
    guest.end_of("taken")
