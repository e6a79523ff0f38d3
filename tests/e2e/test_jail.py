"""What a process sees from inside its jail, and that nothing it tries leads out."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from engines.base import NamespaceOptions, Namespaces, Resources, SandboxPlan, SandboxSpec
from engines.wasm.jail import reaper
from engines.wasm.jail.owners import owners_namespace
from engines.wasm.jail.plan import Bind, Extent, Filter, JailPlan
from engines.wasm.jail.planning import directories
from forgeone_shim.deadline import NEVER
from forgeone_shim.errors import ForgeError
from forgeone_shim.kernel import cgroups, landlock, mounts, trees
from forgeone_shim.kernel import host as hosts
from forgeone_shim.kernel.bpf import Compiler
from forgeone_shim.limits import groups
from hack.lab.settings import patient
from tests.e2e.jails import OPEN, Refused, held, plan, run

pytestmark = pytest.mark.root

RDONLY = trees.RDONLY
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = tmp_path / "root"
    found.mkdir()
    for directory in (found, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    (found / "tmp").mkdir()
    (found / "tmp").chmod(0o1777)
    return found


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    found = tmp_path / "volume"
    found.mkdir()
    found.chmod(0o777)
    (found / "file").write_text("of the host")
    (found / "file").chmod(0o666)
    return found


def tried(call: Callable[..., object], *arguments: Any) -> str:
    """``done``, or the name of the error."""
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


# -- what it sees


def test_it_sees_its_own_files_and_no_others(root: Path) -> None:
    (root / "hello").write_text("x")
    made = plan(str(root), cwd="/made/for/it")
    names, devices, here = run(made, lambda: [sorted(os.listdir("/")), sorted(os.listdir("/dev")), os.getcwd()])
    assert names == ["dev", "hello", "made", "tmp"]
    assert devices == ["full", "null", "random", "shm", "urandom", "zero"]
    assert here == "/made/for/it"


def test_its_devices_are_devices(root: Path) -> None:
    def guest() -> Any:
        zero = os.read(os.open("/dev/zero", os.O_RDONLY), 3)
        Path("/dev/null").write_bytes(b"gone")
        full = tried(os.write, os.open("/dev/full", os.O_WRONLY), b"x")
        return [zero.hex(), len(os.read(os.open("/dev/urandom", os.O_RDONLY), 4)), full]

    assert run(plan(str(root)), guest) == ["000000", 4, "ENOSPC"]


def test_it_is_the_first_of_its_processes_and_has_namespaces_of_its_own(root: Path) -> None:
    with held(plan(str(root), network="", hostname="jailed"), lambda: [os.getpid(), os.uname().nodename]) as guest:
        for kind in ("mnt", "pid", "ipc", "uts", "net", "cgroup"):
            assert os.readlink(f"/proc/{guest.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
        assert os.readlink(f"/proc/{guest.pid}/ns/user") == os.readlink("/proc/self/ns/user")
        assert len(Path(f"/proc/{guest.pid}/mountinfo").read_text().splitlines()) == 2, "the root and /dev"
        assert guest.result() == [1, "jailed"]


def test_a_new_network_has_its_loopback_up(root: Path) -> None:
    def guest() -> Any:
        with socket.socket() as server, socket.socket() as client:
            server.bind(("127.0.0.1", 0))
            server.listen()
            client.connect(server.getsockname())
            return "connected"

    assert run(plan(str(root), network=""), guest) == "connected"


def test_it_joins_the_namespaces_of_a_pod(root: Path) -> None:
    with held(plan(str(root), network="", hostname="pod"), lambda: "") as pod:
        ns = f"/proc/{pod.pid}/ns"
        joined = plan(str(root), network=f"{ns}/net", ipc=f"{ns}/ipc", uts=f"{ns}/uts", pid=f"{ns}/pid", hostname="no")
        with held(joined, lambda: [os.getpid(), os.uname().nodename]) as guest:
            for kind in ("net", "ipc", "uts", "pid"):
                assert os.readlink(f"/proc/{guest.pid}/ns/{kind}") == os.readlink(f"{ns}/{kind}")
            assert guest.result() == [2, "pod"]


def test_the_host_s_processes_where_they_are_asked_for(root: Path) -> None:
    with held(plan(str(root), pid=None), os.getpid) as guest:
        assert guest.result() == guest.pid


def test_it_is_in_its_cgroup_and_its_score_is_set(root: Path) -> None:
    host = hosts.read("cgroupfs")
    cgroup = f"/forgeone-test-jail-{os.getpid()}"
    with ExitStack() as stack:
        stack.callback(groups.remove, host.cgroups, cgroup)
        with groups.made(host, cgroup, Resources(memory_limit=64 << 20), NEVER):
            made = plan(str(root), cgroups=directories(host, cgroup), oom_score_adj=321)
            with held(made, lambda: "") as guest:
                assert cgroups.processes(host.cgroups, cgroup) == [guest.pid]
                lines = Path(f"/proc/{guest.pid}/cgroup").read_text().splitlines()
                assert all(line.endswith(cgroup) for line in lines), lines
                assert Path(f"/proc/{guest.pid}/oom_score_adj").read_text() == "321\n"


# -- its files


def test_mounts_are_where_and_as_they_were_asked_for(root: Path, volume: Path) -> None:
    (volume / "sub").mkdir()
    binds = (
        Bind(source=str(volume), destination="/data"),
        Bind(source=str(volume), destination="/ro", attributes=RDONLY),
        Bind(source=str(volume / "file"), destination="/etc/one"),
        Bind(source=str(volume), destination="/data/sub/deep"),
        Bind(source=str(volume / "file"), destination="/dev/termination-log"),
    )

    def guest() -> Any:
        Path("/data/new").write_text("from inside")
        Path("/dev/termination-log").write_text("said at the end")
        return [
            Path("/etc/one").read_text(),
            tried(lambda: Path("/ro/other").write_text("x")),
            tried(os.open, "/ro/file", os.O_WRONLY),
            sorted(os.listdir("/data/sub/deep")),
        ]

    seen = run(plan(str(root), binds=binds), guest)
    assert seen == ["said at the end", "EROFS", "EROFS", ["file", "new", "sub"]]
    assert (volume / "new").read_text() == "from inside"
    assert (volume / "file").read_text() == "said at the end"


@pytest.mark.parametrize(("below", "wanted"), [(RDONLY, "EROFS"), (0, "done")])
def test_read_only_with_all_below_only_where_that_is_asked_for(
    root: Path, volume: Path, below: int, wanted: str
) -> None:
    (volume / "sub").mkdir()
    mounts.mount_tmpfs(volume / "sub", 1 << 20, 0o777)
    try:
        bind = Bind(source=str(volume), destination="/data", attributes=RDONLY, below=below)
        made = plan(str(root), binds=(bind,))
        assert run(made, lambda: tried(lambda: Path("/data/sub/x").write_text("x"))) == wanted
    finally:
        mounts.unmount(volume / "sub")


def test_a_mount_of_the_host_s_comes_into_a_volume_that_lets_it(root: Path, volume: Path) -> None:
    mounts.mount_tmpfs(volume, 1 << 20, 0o777)
    (volume / "later").mkdir()
    try:
        subprocess.run(["mount", "--make-shared", volume], check=True)
        binds = tuple(
            Bind(source=str(volume), destination=f"/{how}", propagation=how) for how in ("rslave", "rprivate")
        )
        made = plan(str(root), binds=binds)
        with held(made, lambda: [os.listdir("/rslave/later"), os.listdir("/rprivate/later")]) as guest:
            mounts.mount_tmpfs(volume / "later", 1 << 20)
            (volume / "later/new").touch()
            assert guest.result() == [["new"], []]
    finally:
        mounts.unmount(volume / "later")
        mounts.unmount(volume)


def test_times_of_access_are_kept_as_asked_for(root: Path, volume: Path) -> None:
    binds = (
        Bind(source=str(volume), destination="/not", attributes=trees.NOATIME, clear=trees.ATIME),
        Bind(source=str(volume), destination="/nor", attributes=trees.NODIRATIME),
    )
    with held(plan(str(root), binds=binds), lambda: "") as guest:
        lines = Path(f"/proc/{guest.pid}/mountinfo").read_text().splitlines()
        options = {line.split()[4]: line.split()[5].split(",") for line in lines}
        assert {"nosuid", "nodev", "noexec", "noatime"} <= set(options["/not"])
        assert {"nosuid", "nodev", "noexec", "nodiratime"} <= set(options["/nor"])


def test_a_read_only_root_is_one_though_places_were_made_in_it(root: Path, volume: Path) -> None:
    binds = (Bind(source=str(volume), destination="/not/there/yet"),)

    def guest() -> Any:
        Path("/not/there/yet/x").write_text("x")
        return [tried(lambda: Path("/tmp/x").write_text("x")), tried(lambda: Path("/dev/x").write_text("x"))]

    assert run(plan(str(root), binds=binds, readonly=True), guest) == ["EROFS", "EROFS"]


def test_nobody_changes_the_devices_of_the_host(root: Path) -> None:
    def guest() -> Any:
        return [tried(os.chmod, "/dev/null", 0), tried(os.remove, "/dev/null")]

    assert run(plan(str(root), uid=0, gid=0, filters=(OPEN,), landlock=0), guest) == ["EROFS", "EROFS"]


def test_a_mount_stays_inside_whatever_the_image_s_symlinks_say(root: Path, volume: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "abs").symlink_to(outside)
    (root / "up").symlink_to("../../../../../../../.." + str(outside))
    binds = (
        Bind(source=str(volume), destination="/abs/a"),
        Bind(source=str(volume), destination="/up/b"),
    )
    seen = run(plan(str(root), binds=binds), lambda: [sorted(os.listdir(f"{outside}/{name}")) for name in "ab"])
    assert seen == [["file"], ["file"]]
    assert list(outside.iterdir()) == []


def test_paths_are_masked_and_made_read_only(root: Path, volume: Path) -> None:
    (root / "secret").write_text("x")
    (root / "hidden").mkdir()
    (root / "hidden/x").touch()
    (root / "hidden").chmod(0o777)
    bind = Bind(source=str(volume), destination="/data")
    made = plan(str(root), binds=(bind,), masked=("/secret", "/hidden", "/not-there"), read_only_paths=("/data", "/no"))

    def guest() -> Any:
        return [
            tried(os.open, "/secret", os.O_RDONLY),
            tried(os.listdir, "/hidden"),
            tried(lambda: Path("/data/x").write_text("x")),
            Path("/data/file").read_text(),
        ]

    assert run(made, guest) == ["EACCES", "EACCES", "EROFS", "of the host"]


def test_a_mount_shows_the_owners_that_it_maps(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "mapped"
    source.mkdir()
    os.chown(source, 5000, 6000)
    bind = Bind(source=str(source), destination="/m", uids=(Extent(5000, 1000, 1),), gids=(Extent(6000, 1000, 1),))

    def guest() -> Any:
        Path("/m/new").write_text("x")
        return [os.stat("/m").st_uid, os.stat("/m").st_gid]

    assert run(plan(str(root), binds=(bind,)), guest) == [1000, 1000]
    assert (os.stat(source / "new").st_uid, os.stat(source / "new").st_gid) == (5000, 6000)


def test_in_a_user_namespace_it_is_who_the_pod_says(root: Path, volume: Path, tmp_path: Path) -> None:
    mapped = Bind(source="", destination="", uids=(Extent(0, 70000, 100),), gids=(Extent(0, 70000, 100),))
    os.chown(root, 70000, 70000)
    (volume / "mine").mkdir()
    with ExitStack() as stack:
        fd = owners_namespace(mapped, stack)
        pinned = tmp_path / "user"
        pinned.touch()
        mounts.bind(f"/proc/self/fd/{fd}", pinned)
        stack.callback(mounts.unmount, pinned)
        bind = Bind(source=str(volume / "mine"), destination="/own/mine", owners=str(pinned))
        made = plan(str(root), user=str(pinned), root=(70000, 70000), uid=0, gid=0, groups=(3,), binds=(bind,))

        def guest() -> Any:
            Path("/new").write_text("x")
            owner = os.stat("/own").st_uid, os.stat("/own/mine").st_uid, os.stat("/").st_uid
            return [os.getuid(), os.getgroups(), list(owner)]

        with held(made, guest) as one:
            assert os.readlink(f"/proc/{one.pid}/ns/user") == os.readlink(f"/proc/self/fd/{fd}")
            assert status(one.pid)["Uid"].split()[0] == "70000"
            with held(made, lambda: [os.getuid(), os.listdir("/own")], beside=one.pid) as other:
                assert other.result() == [0, ["mine"]]
            # A volume of the host's root's is nobody's in the pod: its owner is not mapped, and stays who it was.
            assert one.result()[:2] == [0, [3]]
    assert os.stat(root / "new").st_uid == 70000
    assert os.stat(root / "own").st_uid == 70000


# -- one more process


def test_another_process_joins_the_jail_and_is_locked_in_like_the_first(root: Path) -> None:
    made = plan(str(root), network="", hostname="both", cwd="/tmp")
    with held(made, lambda: "") as first:
        Path(f"/proc/{first.pid}/root/tmp/left").touch()

        def guest() -> Any:
            return [os.getpid(), os.listdir("/tmp"), os.getcwd(), os.uname().nodename, tried(os.fork)]

        with held(made, guest, beside=first.pid) as second:
            for kind in ("mnt", "pid", "ipc", "uts", "net", "cgroup"):
                assert os.readlink(f"/proc/{second.pid}/ns/{kind}") == os.readlink(f"/proc/{first.pid}/ns/{kind}"), kind
            ids = status(second.pid)
            assert (ids["CapEff"], ids["NoNewPrivs"], ids["Seccomp"]) == ("0" * 16, "1", "2")
            assert second.result() == [2, ["left"], "/tmp", "both", "EPERM"]


# -- no way out


def test_it_has_no_privileges_whoever_it_is(root: Path) -> None:
    for uid in (0, 1000):
        with held(plan(str(root), uid=uid, gid=uid, groups=(7, 8)), lambda: "") as guest:
            seen = status(guest.pid)
            for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert seen[kind] == "0" * 16, kind
            assert seen["NoNewPrivs"] == "1"
            assert seen["Seccomp"] == "2"
            assert seen["Uid"].split() == [str(uid)] * 4
            assert seen["Gid"].split() == [str(uid)] * 4
            assert seen["Groups"].split() == ["7", "8"]


def called(number: int, *arguments: int) -> str:
    """The outcome of a system call by its number (x86_64)."""
    if libc.syscall(number, *[ctypes.c_long(one) for one in arguments]) >= 0:
        return "done"
    return errno.errorcode[ctypes.get_errno()]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86_64's")
def test_system_calls_that_lead_out_are_refused(root: Path) -> None:
    calls = {
        "fork": (57,), "vfork": (58,), "execve": (59, 0, 0, 0), "ptrace": (101, 16, 1), "mount": (165, 0, 0, 0, 0, 0),
        "umount2": (166, 0, 0), "pivot_root": (155, 0, 0), "chroot": (161, 0), "unshare": (272, 0x10000000),
        "setns": (308, 0, 0), "bpf": (321, 0, 0, 0), "keyctl": (250, 0), "add_key": (248, 0), "kexec_load": (246, 0),
        "init_module": (175, 0), "process_vm_readv": (310, 1, 0, 0, 0, 0, 0), "open_by_handle_at": (304, 0, 0, 0),
        "mknodat": (259, -100, 0, 0o60644, 0x700), "setuid": (105, 0), "capset": (126, 0, 0), "kill": (62, 1, 0),
        "io_uring_setup": (425, 1, 0), "userfaultfd": (323, 0), "perf_event_open": (298, 0), "pidfd_open": (434, 1, 0),
        "open_tree": (428, -100, 0, 1), "fsopen": (430, 0, 0), "clone": (56, 17, 0, 0, 0, 0), "seccomp": (317, 0, 0, 0),
        "prctl": (157, 4, 1), "personality": (135, 0x0040000), "shmget": (29, 0, 4096, 0o1600),
    }  # fmt: skip
    seen = run(plan(str(root), uid=0, gid=0), lambda: {name: called(*call) for name, call in calls.items()})
    assert seen == dict.fromkeys(calls, "EPERM")


def test_sockets_are_those_of_tcp_and_udp(root: Path) -> None:
    def guest() -> Any:
        kinds = [(2, 1), (10, 2), (socket.AF_UNIX, 1), (socket.AF_NETLINK, 3), (socket.AF_PACKET, 3), (2, 3), (40, 1)]
        return [tried(socket.socket, *kind) for kind in kinds]

    assert run(plan(str(root), uid=0, gid=0), guest) == ["done", "done", *["EPERM"] * 5]


def test_no_memory_becomes_executable(root: Path) -> None:
    def guest() -> Any:
        page = mmap.mmap(-1, 4096)
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        changed = libc.mprotect(ctypes.addressof(ctypes.c_char.from_buffer(page)), 4096, 5)
        return [tried(lambda: mmap.mmap(-1, 4096, prot=7)), changed]

    assert run(plan(str(root)), guest) == ["EPERM", -1]


def test_a_library_in_the_image_is_not_loaded(root: Path) -> None:
    name = next(Path("/usr/lib").rglob("libz.so.1"), None) or next(Path("/usr/lib").rglob("libdl.so.2"))
    (root / "lib").mkdir()
    (root / "lib/libnss_evil.so.2").write_bytes(name.read_bytes())
    (root / "lib/libnss_evil.so.2").chmod(0o755)
    for filters, known in (((), landlock.version()), ((OPEN,), 0)):
        made = plan(str(root), filters=filters, landlock=known)
        assert run(made, lambda: tried_load("/lib/libnss_evil.so.2")) == "failed to map segment from shared object"


def tried_load(path: str) -> str:
    try:
        ctypes.CDLL(path)
    except OSError as error:
        return str(error).rpartition(": ")[2]
    return "loaded"


def test_without_the_filter_each_other_wall_stands(root: Path, volume: Path) -> None:
    """The mounts: no set-id bits, no devices, nothing executed, wherever the file is from."""
    for place in (root, volume):
        program = place / "program"
        program.write_bytes(Path("/bin/busybox").read_bytes() if Path("/bin/busybox").exists() else b"#!/x\n")
        program.chmod(0o4755)
        os.mknod(place / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 0))
        os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    made = plan(str(root), filters=(OPEN,), landlock=0, binds=(Bind(source=str(volume), destination="/v"),))

    def guest() -> Any:
        return [
            *(tried(os.execv, f"{at}/program", ["x"]) for at in ("", "/v")),
            *(tried(os.open, f"{at}/{name}", os.O_RDONLY) for at in ("", "/v") for name in ("disk", "null")),
            tried(os.mknod, "/tmp/disk", stat.S_IFBLK, os.makedev(7, 0)),
            tried(os.chroot, "/tmp"),
            tried(os.setuid, 0),
        ]

    assert run(made, guest) == [*["EACCES"] * 6, "EPERM", "EPERM", "EPERM"]


@pytest.mark.skipif(landlock.version() < 1, reason="the kernel has no Landlock")
def test_landlock_alone_keeps_from_executing_and_from_making_what_is_no_file(root: Path) -> None:
    program = root / "program"
    program.write_bytes(b"#!/x\n")
    program.chmod(0o755)
    made = plan(str(root), filters=(OPEN,), uid=0, gid=0)

    def guest() -> Any:
        Path("/tmp/d").mkdir()
        Path("/tmp/d/f").write_text("x")
        os.symlink("f", "/tmp/d/l")
        os.rename("/tmp/d/f", "/tmp/g")
        os.truncate("/tmp/g", 0)
        os.remove("/tmp/d/l")
        return [tried(os.mkfifo, "/tmp/fifo"), tried(os.execv, "/program", ["x"]), os.listdir("/tmp/d")]

    assert run(made, guest) == ["EACCES", "EACCES", []]


@pytest.mark.skipif(landlock.version() < 6, reason="the kernel's Landlock knows no scopes")
def test_in_shared_processes_it_signals_nobody_else(root: Path) -> None:
    with held(plan(str(root), uid=1000), lambda: "") as other:
        joined = plan(str(root), pid=f"/proc/{other.pid}/ns/pid", filters=(OPEN,))
        assert run(joined, lambda: tried(os.kill, 1, 9)) == "EPERM"
        assert not status(other.pid)["State"].startswith("Z")


def test_nobody_of_the_same_user_looks_into_it(root: Path) -> None:
    bind = Bind(source="/proc", destination="/host/proc")
    with held(plan(str(root), uid=0, gid=0), lambda: "") as other:
        pid = other.pid
        made = plan(str(root), uid=0, gid=0, pid=None, filters=(OPEN,), binds=(bind,))

        def guest() -> Any:
            return [tried(os.open, f"/host/proc/{pid}/{name}", os.O_RDONLY) for name in ("mem", "environ", "root")]

        assert run(made, guest) == ["EACCES"] * 3


@pytest.mark.parametrize("locked", [False, True])
def test_it_is_not_looked_into_while_it_is_made_either(root: Path, *, locked: bool) -> None:
    made = plan(str(root), filters=(OPEN,))
    with held(made, lambda: libc.prctl(3, 0, 0, 0, 0), locked=locked) as guest:
        joined = held(made, lambda: libc.prctl(3, 0, 0, 0, 0), beside=guest.pid, locked=locked)
        with joined as other:
            assert other.result() == 0
        assert guest.result() == 0


def test_a_local_profile_holds_beside_the_engine_s_own(root: Path, tmp_path: Path) -> None:
    from engines.base import Profile, ProfileType
    from engines.wasm.jail.planning import compile_filters

    path = tmp_path / "profile.json"
    rule = '{"names": ["mkdirat", "mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}'
    path.write_text(f'{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}')
    filters = compile_filters(Profile(ProfileType.LOCALHOST, str(path)), Compiler(), "")

    def guest() -> Any:
        made = libc.mkdirat(-100, b"/tmp/x", 0o755), errno.errorcode[ctypes.get_errno()]
        return [made[1], tried(os.fork)]

    assert run(plan(str(root), filters=filters), guest) == ["ENOSPC", "EPERM"]


def test_threads_are_made_and_signals_of_faults_are_handled(root: Path) -> None:
    def guest() -> Any:
        found: list[int] = []
        threads = [threading.Thread(target=found.append, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(found)

    assert run(plan(str(root)), guest) == [0, 1, 2, 3]


# -- what goes wrong


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cgroups": ("/sys/fs/cgroup/memory/not-there",)}, "cgroup.procs"),
        ({"network": "/not/there"}, "not-found: namespace '/not/there' not found"),
        ({"pid": "/not/there"}, "not-found: namespace"),
        ({"binds": (Bind(source="/not/there", destination="/x"),)}, "open_tree /not/there"),
        ({"binds": (Bind(source="/etc", destination="/plain"),)}, "cannot be mounted on a file"),
        ({"binds": (Bind(source="/etc/hostname", destination="/tmp"),)}, "cannot be mounted on a directory"),
        ({"binds": (Bind(source="/etc", destination="/plain/below"),)}, "mount on /plain/below"),
        ({"cwd": "/plain"}, "mkdir /plain|working_dir"),
        ({"cwd": "/locked"}, "invalid: working_dir: user 1000 cannot enter /locked: Permission denied"),
        ({"filters": (Filter(b"\0" * 8),)}, "filter system calls"),
        ({"rootfs": "/not/there"}, "open_tree /not/there"),
    ],
)
def test_what_cannot_be_is_told_by_name(root: Path, changes: dict[str, Any], words: str) -> None:
    (root / "plain").touch()
    (root / "locked").mkdir(mode=0o700)
    with pytest.raises(Refused, match=words):
        run(plan(changes.pop("rootfs", str(root)), **changes), lambda: "")


def test_a_process_of_several_threads_is_not_jailed(root: Path) -> None:
    from engines.wasm.jail import enter

    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        with pytest.raises(ForgeError, match="several threads"):
            enter(plan(str(root)))
    finally:
        release.set()
        thread.join()


# -- the init of a pod


@pytest.fixture
def init(tmp_path: Path) -> Iterator[tuple[int, JailPlan]]:
    host = hosts.read("cgroupfs")
    sandbox = SandboxPlan(
        sandbox_id="s1",
        directory=str(tmp_path),
        hostname="",
        cgroup=f"/forgeone-test-init-{os.getpid()}",
        namespaces=Namespaces(network=None, ipc=None, uts=None, pid=""),
        shares_pid=True,
        spec=SandboxSpec(name="pod", uid="u", namespace="n"),
    )
    assert sandbox.spec.security.namespaces == NamespaceOptions()
    made = reaper.plan_init(sandbox, host, Compiler())
    cgroup = reaper.init_cgroup(sandbox, host)
    read, write = os.pipe()
    with groups.made(host, cgroup, Resources(), NEVER):
        parent = os.fork()
        if parent == 0:
            try:
                os.write(write, str(reaper.start(made)).encode())
            finally:
                os._exit(0)
        os.waitpid(parent, 0)
        pid = int(os.read(read, 16))
    os.close(read)
    os.close(write)
    yield pid, made
    groups.remove(host.cgroups, cgroup)
    cgroups.remove(host.cgroups, sandbox.cgroup)


def test_an_init_reaps_and_is_ended_by_no_signal_of_the_pod_s(init: tuple[int, JailPlan], root: Path) -> None:
    pid, _ = init
    seen = status(pid)
    assert seen["NSpid"].split()[-1] == "1"
    assert (seen["CapBnd"], seen["Seccomp"], seen["Uid"].split()[0]) == ("0" * 16, "2", "65535")
    assert os.listdir(f"/proc/{pid}/root") == []
    assert sorted(os.listdir(f"/proc/{pid}/fd")) == []

    def orphan() -> Any:
        child = os.fork()
        if child == 0:
            # Its own child outlives it, and is the init's then.
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
        os.waitpid(child, 0)
        return child

    joined = plan(str(root), pid=f"/proc/{pid}/ns/pid", filters=(OPEN,), uid=65535)
    with held(joined, orphan) as guest:
        guest.result()
    children = Path(f"/proc/{pid}/task/{pid}/children")
    until = time.monotonic() + patient(10)
    while children.read_text() and time.monotonic() < until:
        time.sleep(0.01)
    assert children.read_text() == ""
    os.kill(pid, 15)
    assert not status(pid)["State"].startswith("Z")


def test_an_init_that_cannot_be_made_is_told_and_leaves_nobody() -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            reaper.start(plan("", dev=False, cgroups=("/not/there",)))
        except ForgeError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(parent, 0)
    assert b"/not/there" in os.read(read, 4096)
    os.close(read)
    os.close(write)
