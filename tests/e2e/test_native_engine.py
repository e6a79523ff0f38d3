"""The native engine against this kernel: real containers of a busybox root, and nothing left of them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engines.base import (
    ContainerPlan,
    ContainerSpec,
    Device,
    ExecResult,
    Handle,
    LiveState,
    Mount,
    Namespaces,
    Process,
    Profile,
    ProfileType,
    Propagation,
    Resources,
    SandboxPlan,
    SandboxSpec,
    Security,
    User,
)
from engines.native import NativeEngine, build
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, ForgeError, InvalidInput, NotFound
from forgeone_shim.kernel import cgroups, mounts, procs
from forgeone_shim.kernel.mounts import mount_tmpfs, unmount

pytestmark = pytest.mark.root

BUSYBOX = Path("/bin/busybox")
DEFAULT_PROFILE = Profile(ProfileType.RUNTIME_DEFAULT)
LIMIT = 16 << 20


@dataclass
class Lab:
    """An engine of its own with a root file system; remembers what it made."""

    engine: NativeEngine
    root: Path
    state: Path
    parent: str
    handles: list[Handle] = field(default_factory=list)
    sandboxes: list[SandboxPlan] = field(default_factory=list)

    def plan(self, *command: str, **changes: Any) -> ContainerPlan:
        """A container's plan; keywords that ContainerPlan has replace it there, all others go into its spec."""
        id_ = uuid.uuid4().hex
        bundle = self.state / "c" / id_
        bundle.mkdir(parents=True)
        own = {item.name for item in dataclasses.fields(ContainerPlan)}
        base = ContainerPlan(
            container_id=id_,
            sandbox_id="s",
            bundle=str(bundle),
            rootfs=str(self.root),
            exits=str(self.state / "exits"),
            log_path=str(self.state / f"{id_}.log"),
            hostname="pod",
            cgroup=self.engine._host.cgroups.container(self.parent, id_),
            process=Process(args=command, env=(), cwd="/", user=User()),
            namespaces=Namespaces(network=None, ipc="", uts="", pid=""),
            pod_mounts=(),
            spec=ContainerSpec(name="c", **{key: value for key, value in changes.items() if key not in own}),
        )
        return dataclasses.replace(base, **{key: value for key, value in changes.items() if key in own})

    def handle(self, plan: ContainerPlan) -> Handle:
        found = Handle(
            container_id=plan.container_id,
            sandbox_id=plan.sandbox_id,
            bundle=plan.bundle,
            exits=plan.exits,
            cgroup=plan.cgroup,
        )
        self.handles.append(found)
        return found

    def start(self, *command: str, **changes: Any) -> Handle:
        plan = self.plan(*command, **changes)
        handle = self.handle(plan)
        self.engine.create(plan, NEVER)
        self.engine.start(handle, NEVER)
        return handle

    def shell(self, handle: Handle, line: str, timeout: float | None = 20) -> ExecResult:
        return self.engine.exec_sync(handle, ("/bin/sh", "-c", line), timeout, LIMIT)

    def says(self, line: str, **changes: Any) -> str:
        """What a container that runs ``line`` writes."""
        plan = self.plan("/bin/sh", "-c", line, **changes)
        handle = self.handle(plan)
        self.engine.create(plan, NEVER)
        self.engine.start(handle, NEVER)
        self.exit_code(handle)
        text = Path(plan.log_path).read_text()
        return "\n".join(entry.split(" ", 3)[3] for entry in text.splitlines())

    def exit_code(self, handle: Handle) -> int:
        path = Path(handle.exits, handle.container_id)
        wait_until(path.exists)
        return int(path.read_text())

    def sandbox(self, *, shares_pid: bool, cgroup: str = "") -> SandboxPlan:
        id_ = uuid.uuid4().hex
        directory = self.state / "s" / id_
        directory.mkdir(parents=True)
        plan = SandboxPlan(
            sandbox_id=id_,
            directory=str(directory),
            hostname="pod",
            cgroup=cgroup or f"{self.parent}/pod-{id_}",
            namespaces=Namespaces(network=None, ipc=None, uts=None, pid=None),
            shares_pid=shares_pid,
            spec=SandboxSpec(name="p", uid="u", namespace="n"),
        )
        self.sandboxes.append(plan)
        return plan


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.005)


def named(word: str) -> set[int]:
    """Processes, zombies apart, that name ``word`` on their command line."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if word.encode() in (entry / "cmdline").read_bytes():
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


def cgroup_directories(parent: str) -> list[str]:
    return [path for path in cgroups.detect("cgroupfs").paths(parent) if Path(path).exists()]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """The lab, and the proof that nothing of it is left: processes, cgroups, mounts, state."""
    if not BUSYBOX.exists():
        pytest.skip("busybox-static is not installed")
    # Short, on a tmpfs, and not shared with a second run.
    state = Path(tempfile.mkdtemp(prefix="fo-", dir="/dev/shm"))
    root = tmp_path / "root"
    for directory in ("bin", "etc", "tmp", "proc", "sys", "dev", "root"):
        (root / directory).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for applet in os.popen(f"{BUSYBOX} --list").read().split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "tmp").chmod(0o1777)
    (state / "exits").mkdir()
    engine = build({"native": {"cgroup_driver": "cgroupfs"}, "state": str(state)})
    assert isinstance(engine, NativeEngine)
    lab = Lab(engine, root, state, f"/{state.name}")
    try:
        yield lab
        for handle in lab.handles:
            engine.delete(handle)
            engine.delete(handle)
            assert engine.look(handle).state is LiveState.MISSING
        for plan in lab.sandboxes:
            engine.remove_sandbox(plan)
            engine.remove_sandbox(plan)
        assert list((state / "crun").iterdir()) == [] if (state / "crun").exists() else True
        assert named(str(state)) == set()
        assert mounts.mounts_below(state) == []
        assert mounts.mounts_below(root) == []
        for path in cgroup_directories(lab.parent):
            assert [entry.name for entry in Path(path).iterdir() if entry.is_dir()] == []
    finally:
        for handle in lab.handles:
            engine.delete(handle)
        for path in cgroup_directories(lab.parent):
            cgroups.remove_tree(path)
        for mount in mounts.mounts_below(state):
            mounts.unmount(mount)
        shutil.rmtree(state)


# Life


def test_a_container_lives_from_created_to_stopped_and_its_lines_and_code_are_kept(lab: Lab) -> None:
    plan = lab.plan("/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    handle = lab.handle(plan)
    pid = lab.engine.create(plan, NEVER)
    assert lab.engine.look(handle).state is LiveState.CREATED
    assert lab.engine.look(handle).pid == pid
    assert Path(plan.log_path).read_text() == ""
    lab.engine.start(handle, NEVER)
    assert lab.exit_code(handle) == 7
    assert lab.engine.look(handle).state is LiveState.STOPPED
    lines = sorted(line.split(" ", 1)[1] for line in Path(plan.log_path).read_text().splitlines())
    assert lines == ["stderr F err", "stdout F out"]


def test_a_container_cannot_be_started_twice_nor_after_its_end(lab: Lab) -> None:
    handle = lab.start("/bin/sleep", "60")
    with pytest.raises(FailedPrecondition, match="running, not created"):
        lab.engine.start(handle, NEVER)
    lab.engine.kill(handle, signal.SIGKILL)
    lab.exit_code(handle)
    with pytest.raises(FailedPrecondition, match="stopped"):
        lab.engine.start(handle, NEVER)
    lab.engine.delete(handle)
    with pytest.raises(NotFound):
        lab.engine.start(handle, NEVER)


def test_a_signal_reaches_the_first_process(lab: Lab) -> None:
    handle = lab.start("/bin/sh", "-c", "trap 'exit 9' TERM; touch /tmp/ready; while :; do sleep 0.05; done")
    wait_until((lab.root / "tmp" / "ready").exists)
    lab.engine.kill(handle, signal.SIGTERM)
    assert lab.exit_code(handle) == 9
    lab.engine.kill(handle, signal.SIGTERM)


def test_a_killed_container_has_the_signal_s_code(lab: Lab) -> None:
    handle = lab.start("/bin/sleep", "60")
    lab.engine.kill(handle, signal.SIGKILL, everything=True)
    assert lab.exit_code(handle) == 137


def test_a_created_container_that_never_ran_can_be_deleted(lab: Lab) -> None:
    plan = lab.plan("/bin/sleep", "60")
    handle = lab.handle(plan)
    lab.engine.create(plan, NEVER)
    lab.engine.delete(handle)
    assert lab.engine.look(handle).state is LiveState.MISSING


def test_a_new_engine_finds_the_containers_of_the_old(lab: Lab) -> None:
    handle = lab.start("/bin/sleep", "60")
    other = build({"native": {"cgroup_driver": "cgroupfs"}, "state": str(lab.state)})
    assert other.look(handle).state is LiveState.RUNNING
    assert other.exec_sync(handle, ("/bin/true",), 10, LIMIT).exit_code == 0
    other.delete(handle)
    assert lab.engine.look(handle).state is LiveState.MISSING


def test_an_end_while_nobody_watches_leaves_its_exit_file(lab: Lab) -> None:
    handle = lab.start("/bin/sh", "-c", "exit 5")
    assert lab.exit_code(handle) == 5


def test_a_container_whose_supervisor_was_killed_can_still_be_deleted(lab: Lab) -> None:
    handle = lab.start("/bin/sleep", "60")
    os.kill(int(Path(handle.bundle, "conmon.pid").read_text()), signal.SIGKILL)
    lab.engine.delete(handle)


# Failures


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("nonexistent", "executable file `nonexistent` not found"),
        ("/etc", "open executable"),
    ],
)
def test_a_command_that_cannot_run_is_the_caller_s_mistake_and_leaves_nothing(
    lab: Lab, command: str, words: str
) -> None:
    plan = lab.plan(command)
    handle = lab.handle(plan)
    with pytest.raises(InvalidInput, match=words):
        lab.engine.create(plan, NEVER)
    assert os.listdir(plan.bundle) == []
    assert os.listdir(plan.exits) == []
    assert lab.engine.look(handle).state is LiveState.MISSING
    assert named(plan.container_id) == set()


def test_a_log_that_cannot_be_opened_is_said_so(lab: Lab) -> None:
    plan = lab.plan("/bin/true", log_path="/nonexistent/folder/0.log")
    lab.handle(plan)
    with pytest.raises(ForgeError, match="log file"):
        lab.engine.create(plan, NEVER)


def test_a_create_that_takes_too_long_is_undone(lab: Lab) -> None:
    slow = lab.state / "slow"
    slow.write_text('#!/bin/sh\ncase "$*" in *create*) sleep 30;; esac\nexec crun "$@"\n')
    slow.chmod(0o755)
    engine = build({"native": {"cgroup_driver": "cgroupfs", "crun": str(slow)}, "state": str(lab.state)})
    plan = lab.plan("/bin/sleep", "60")
    lab.handle(plan)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        engine.create(plan, Deadline.after(0.5))
    assert time.monotonic() - started < 10
    assert os.listdir(plan.bundle) == []
    wait_until(lambda: named(plan.container_id) == set())


def test_a_deadline_that_has_passed_creates_nothing(lab: Lab) -> None:
    plan = lab.plan("/bin/true")
    with pytest.raises(DeadlineExceeded):
        lab.engine.create(plan, Deadline.after(0))
    assert os.listdir(plan.bundle) == []


# Exec


def test_exec_keeps_streams_and_code_apart(lab: Lab) -> None:
    handle = lab.start("/bin/sleep", "60")
    assert lab.shell(handle, "echo out; echo err >&2; exit 4") == ExecResult(4, b"out\n", b"err\n")


def test_exec_of_what_is_not_there_is_an_error_not_a_code(lab: Lab) -> None:
    handle = lab.start("/bin/sleep", "60")
    with pytest.raises(InvalidInput, match="not found"):
        lab.engine.exec_sync(handle, ("nonexistent",), None, LIMIT)
    (lab.root / "bin" / "broken").write_text("junk")
    (lab.root / "bin" / "broken").chmod(0o755)
    with pytest.raises(InvalidInput, match="Exec format"):
        lab.engine.exec_sync(handle, ("broken",), None, LIMIT)


def test_exec_past_its_timeout_is_killed_in_the_container(lab: Lab) -> None:
    handle = lab.start("/bin/sleep", "60")
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        lab.engine.exec_sync(handle, ("/bin/sleep", "61"), 0.3, LIMIT)
    assert 0.3 <= time.monotonic() - started < 3
    assert b"sleep 61" not in lab.shell(handle, "ps").stdout


def test_exec_does_not_wait_for_a_child_left_behind(lab: Lab) -> None:
    handle = lab.start("/bin/sleep", "60")
    started = time.monotonic()
    assert lab.shell(handle, "sleep 20 & echo started").stdout == b"started\n"
    assert time.monotonic() - started < 5


def test_exec_output_is_capped_and_the_command_not_held_up(lab: Lab) -> None:
    handle = lab.start("/bin/sleep", "60")
    found = lab.engine.exec_sync(handle, ("/bin/sh", "-c", "head -c 3000000 /dev/zero; echo end >&2"), 20, 1000)
    assert (len(found.stdout), found.stderr, found.truncated, found.exit_code) == (1000, b"end\n", True, 0)


def test_exec_has_the_container_s_user_environment_directory_and_confinement(lab: Lab) -> None:
    who = Process(args=("/bin/sleep", "60"), env=("COLOUR=blue",), cwd="/tmp", user=User(1000, 1001, (7,), "/home/u"))
    handle = lab.start(process=who, security=Security(no_new_privs=True, seccomp=DEFAULT_PROFILE))
    found = lab.shell(handle, "id; pwd; echo $COLOUR $HOME; grep -E '^(NoNew|Seccomp:|CapEff)' /proc/self/status")
    text = found.stdout.decode()
    assert "uid=1000 gid=1001 groups=7" in text
    assert "\n/tmp\nblue /home/u\n" in text
    assert "NoNewPrivs:\t1" in text
    assert "Seccomp:\t2" in text
    assert "CapEff:\t0000000000000000" in text


def test_exec_leaks_no_descriptor_into_the_container(lab: Lab) -> None:
    handle = lab.start("/bin/sleep", "60")
    assert lab.shell(handle, "cd /proc/self/fd; echo *").stdout.split() == [b"0", b"1", b"2", b"3"]


def test_exec_in_an_ended_container_says_what_it_is(lab: Lab) -> None:
    handle = lab.start("/bin/true")
    lab.exit_code(handle)
    with pytest.raises(FailedPrecondition, match="stopped, not running"):
        lab.shell(handle, "true")
    lab.engine.delete(handle)


def test_many_execs_at_once_do_not_mix(lab: Lab) -> None:
    handle = lab.start("/bin/sleep", "60")
    found: dict[int, bytes] = {}

    def one(number: int) -> None:
        found[number] = lab.shell(handle, f"echo {number}").stdout

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"{number}\n".encode() for number in range(16)}


# Log


def test_a_rotated_log_is_opened_anew_before_the_call_returns(lab: Lab) -> None:
    handle = lab.start("/bin/sh", "-c", "n=0; while :; do echo line $n; n=$((n+1)); sleep 0.02; done")
    log = lab.state / f"{handle.container_id}.log"
    wait_until(lambda: log.stat().st_size > 0)
    log.rename(f"{log}.1")
    lab.engine.reopen_log(handle)
    assert log.exists()
    wait_until(lambda: log.stat().st_size > 0)
    numbers = [
        int(line.split()[-1]) for part in (Path(f"{log}.1"), log) for line in part.read_text().splitlines() if line
    ]
    assert numbers == list(range(len(numbers)))


def test_the_log_of_an_ended_container_cannot_be_reopened(lab: Lab) -> None:
    handle = lab.start("/bin/true")
    lab.exit_code(handle)
    wait_until(lambda: named(handle.container_id) == set())
    with pytest.raises(FailedPrecondition):
        lab.engine.reopen_log(handle)


# Memory


def test_a_container_the_kernel_killed_for_memory_is_told_from_others(lab: Lab) -> None:
    greedy = lab.start("/bin/sh", "-c", "x=a; while :; do x=$x$x; done", resources=Resources(memory_limit=16 << 20))
    assert lab.exit_code(greedy) == 137
    assert lab.engine.was_oom_killed(greedy)
    modest = lab.start("/bin/sleep", "60")
    lab.engine.kill(modest, signal.SIGKILL)
    lab.exit_code(modest)
    assert not lab.engine.was_oom_killed(modest)


def test_limits_are_set_in_the_container_s_cgroup(lab: Lab) -> None:
    asked = Resources(memory_limit=64 << 20, cpu_quota=50000, cpu_period=100000, cpu_shares=512)
    handle = lab.start("/bin/sleep", "60", resources=asked)
    groups = lab.engine._host.cgroups
    memory, cpu = groups.directory("memory", handle.cgroup), groups.directory("cpu", handle.cgroup)
    assert memory is not None
    assert cpu is not None
    v2 = groups.mode is cgroups.Mode.V2
    assert Path(memory, "memory.max" if v2 else "memory.limit_in_bytes").read_text().strip() == str(64 << 20)
    if v2:
        assert Path(cpu, "cpu.max").read_text().split() == ["50000", "100000"]
    else:
        assert Path(cpu, "cpu.cfs_quota_us").read_text().strip() == "50000"
        assert Path(cpu, "cpu.shares").read_text().strip() == "512"


# Isolation


def test_the_default_filter_refuses_what_the_container_could_else_do(lab: Lab) -> None:
    line = "unshare -U true 2>&1; grep Seccomp: /proc/self/status"
    text = lab.says(line, security=Security(seccomp=DEFAULT_PROFILE))
    assert "Operation not permitted" in text
    assert "Seccomp:\t2" in text
    assert "Seccomp:\t0" in lab.says(line)


def test_a_local_profile_is_enforced(lab: Lab, tmp_path: Path) -> None:
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    (profiles / "no-chmod.json").write_text(
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmod","fchmodat"],"action":"SCMP_ACT_ERRNO"}]}'
    )
    settings = {"cgroup_driver": "cgroupfs", "seccomp_profile_root": str(profiles)}
    engine = build({"native": settings, "state": str(lab.state)})
    assert isinstance(engine, NativeEngine)
    lab.engine = engine
    reference = f"localhost/{profiles}/no-chmod.json"
    text = lab.says("chmod 777 /tmp 2>&1", security=Security(seccomp=Profile(ProfileType.LOCALHOST, reference)))
    assert "Operation not permitted" in text


def test_masked_paths_are_empty_and_readonly_paths_cannot_be_written(lab: Lab) -> None:
    (lab.root / "etc" / "secret").write_text("secret")
    security = Security(masked_paths=("/proc/version", "/etc/secret"), readonly_paths=("/tmp",))
    text = lab.says("cat /proc/version /etc/secret; touch /tmp/x 2>&1; echo end", security=security)
    assert "secret" not in text
    assert "Read-only file system" in text
    assert "Linux" not in text


def test_a_readonly_root_cannot_be_written(lab: Lab) -> None:
    assert "Read-only" in lab.says("touch /x 2>&1", security=Security(readonly_rootfs=True))


def test_a_privileged_container_has_the_host_s_devices_and_may_write_sys(lab: Lab) -> None:
    text = lab.says("mount | grep ' /sys '; ls /dev; grep CapEff /proc/self/status", security=Security(privileged=True))
    assert "(rw" in text.splitlines()[0]
    expected = {entry.name for entry in Path("/dev").iterdir() if stat.S_ISBLK(entry.lstat().st_mode)}
    assert expected <= set(text.split())


def test_capabilities_are_what_was_asked(lab: Lab) -> None:
    text = lab.says(
        "grep CapEff /proc/self/status", security=Security(drop_capabilities=("ALL",), add_capabilities=("NET_ADMIN",))
    )
    assert int(text.split()[-1], 16) == 1 << 12


def test_a_device_asked_for_can_be_used_and_no_other(lab: Lab) -> None:
    fuse = Path("/dev/loop-control")
    if not fuse.exists():
        pytest.skip("no spare device here")
    text = lab.says("ls -l /dev/mine", devices=(Device("/dev/mine", str(fuse), "r"),))
    assert text.startswith("c")
    major, minor = os.major(fuse.stat().st_rdev), os.minor(fuse.stat().st_rdev)
    text = lab.says(f"mknod /tmp/other c {major} {minor}; cat /tmp/other 2>&1")
    assert "Operation not permitted" in text


def test_mounts_are_where_they_were_asked_and_missing_sources_are_made(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "f").write_text("hello")
    asked = (Mount("/data", str(tmp_path / "data"), readonly=True), Mount("/new", str(tmp_path / "made")))
    text = lab.says("cat /data/f; touch /data/g 2>&1; touch /new/x", mounts=asked)
    assert "hello" in text
    assert "Read-only" in text
    assert (tmp_path / "made" / "x").exists()


def test_a_recursive_read_only_mount_is_so_with_all_below_it(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "data/inner").mkdir(parents=True)
    mount_tmpfs(tmp_path / "data/inner", 1 << 20)
    source = str(tmp_path / "data")
    asked = (
        Mount("/all", source, readonly=True, recursive_read_only=True),
        Mount("/one", source, readonly=True),
        Mount("/bare", source, options=("noexec", "nosuid", "nodev")),
    )
    try:
        assert lab.engine.features().recursive_read_only_mounts
        assert lab.engine.features().mount_options
        line = "touch /all/x /all/inner/x; touch /one/x; touch /one/inner/one; cp /bin/true /bare/true; /bare/true"
        text = lab.says(f"({line}; grep /bare /proc/mounts) 2>&1", mounts=asked)
        assert all(f"{name}: Read-only file system" in text for name in ("/all/x", "/all/inner/x", "/one/x"))
        assert "/bare/true: Permission denied" in text
        assert "rw,nosuid,nodev,noexec" in text
        assert [path.name for path in (tmp_path / "data/inner").iterdir()] == ["one"]
        (tmp_path / "data/inner/host").touch()
    finally:
        unmount(tmp_path / "data/inner")


def test_a_mount_made_on_the_host_reaches_the_container_only_when_asked(lab: Lab, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "shared", str(shared)], check=True)
    # Where systemd has made all mounts shared, this one is too.
    subprocess.run(["mount", "--make-private", str(shared)], check=True)
    try:
        with pytest.raises(FailedPrecondition, match="not a shared or slave mount"):
            lab.start("/bin/true", mounts=(Mount("/m", str(shared), propagation=Propagation.HOST_TO_CONTAINER),))
        subprocess.run(["mount", "--make-shared", str(shared)], check=True)
        (shared / "inner").mkdir()
        asked = tuple(
            Mount(f"/{value.name.lower()}", str(shared), propagation=value)
            for value in (Propagation.PRIVATE, Propagation.HOST_TO_CONTAINER)
        )
        handle = lab.start("/bin/sleep", "60", mounts=asked)
        subprocess.run(["mount", "-t", "tmpfs", "inner", str(shared / "inner")], check=True)
        text = lab.shell(handle, "mount").stdout.decode()
        assert " /host_to_container/inner " in text
        assert " /private/inner " not in text
        lab.engine.delete(handle)
    finally:
        subprocess.run(["umount", "-R", str(shared)], check=True)


def test_a_terminal_is_a_terminal(lab: Lab) -> None:
    handle = lab.start("/bin/sh", "-c", "tty; echo $TERM; sleep 60", tty=True)
    log = lab.state / f"{handle.container_id}.log"
    wait_until(lambda: "xterm" in log.read_text())
    assert "/dev/" in log.read_text()
    assert stat.S_ISSOCK(Path(handle.bundle, "attach").stat().st_mode)


# Sandboxes


def test_a_shared_pid_namespace_has_an_init_that_is_nobody(lab: Lab) -> None:
    sandbox = lab.sandbox(shares_pid=True)
    path = lab.engine.prepare_sandbox(sandbox, NEVER)
    assert lab.engine.prepare_sandbox(sandbox, NEVER) == path
    assert lab.engine.sandbox_alive(sandbox)
    shared = Namespaces(network=None, ipc="", uts="", pid=path)
    handle = lab.start("/bin/sleep", "60", namespaces=shared)
    other = lab.start("/bin/sleep", "61", namespaces=shared)
    text = lab.shell(handle, "ps; cat /proc/1/status").stdout.decode()
    assert "sleep 61" in text
    assert "Uid:\t65535" in text
    assert "CapBnd:\t0000000000000000" in text
    assert "NoNewPrivs:\t1" in text
    assert "Seccomp:\t2" in text
    lab.engine.kill(other, signal.SIGKILL, everything=True)
    lab.exit_code(other)
    assert lab.engine.look(handle).state is LiveState.RUNNING


def test_everything_is_killed_where_the_first_process_is_not_pid_one(lab: Lab) -> None:
    sandbox = lab.sandbox(shares_pid=True)
    shared = Namespaces(network=None, ipc="", uts="", pid=lab.engine.prepare_sandbox(sandbox, NEVER))
    handle = lab.start("/bin/sh", "-c", "sleep 600 & sleep 601 & touch /tmp/up; wait", namespaces=shared)
    wait_until((lab.root / "tmp" / "up").exists)
    found = cgroups.processes(lab.engine._host.cgroups, handle.cgroup)
    assert len(found) == 3
    lab.engine.kill(handle, signal.SIGKILL, everything=True)
    wait_until(lambda: all((seen := procs.stat(pid)) is None or seen.dead for pid in found))


def test_a_sandbox_whose_init_died_is_not_alive(lab: Lab) -> None:
    sandbox = lab.sandbox(shares_pid=True)
    lab.engine.prepare_sandbox(sandbox, NEVER)
    held = lab.engine._containers.first_process(f"init-{sandbox.sandbox_id}")
    assert held is not None
    with held:
        held.send(signal.SIGKILL)
        assert held.wait(10)
    assert not lab.engine.sandbox_alive(sandbox)
    lab.engine.prepare_sandbox(sandbox, NEVER)
    assert lab.engine.sandbox_alive(sandbox)


def test_a_sandbox_without_shared_pids_costs_no_process(lab: Lab) -> None:
    sandbox = lab.sandbox(shares_pid=False)
    assert lab.engine.prepare_sandbox(sandbox, NEVER) == ""
    assert lab.engine.sandbox_alive(sandbox)
    assert named(sandbox.sandbox_id) == set()


def test_a_pod_cgroup_of_the_caller_s_is_left_and_one_of_ours_removed(lab: Lab) -> None:
    groups = lab.engine._host.cgroups
    theirs = f"{lab.parent}/theirs"
    cgroups.make(groups, theirs)
    for parent, stays in ((theirs, True), (f"{lab.parent}/ours", False)):
        sandbox = lab.sandbox(shares_pid=False, cgroup=parent)
        lab.engine.prepare_sandbox(sandbox, NEVER)
        handle = lab.start("/bin/true", cgroup=f"{parent}/{uuid.uuid4().hex}")
        lab.exit_code(handle)
        lab.engine.delete(handle)
        lab.engine.remove_sandbox(sandbox)
        assert cgroups.exists(groups, parent) is stays
    cgroups.remove(groups, theirs)
