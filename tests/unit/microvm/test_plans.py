"""What a guest is told of a container, and what a machine cannot have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import (
    ContainerPlan,
    ContainerSpec,
    Device,
    Edits,
    Mount,
    NamespaceMode,
    NamespaceOptions,
    Namespaces,
    NodeEdit,
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
from engines.microvm import plans, refusals, sizing, volumes
from engines.microvm.users import COUNT, Users
from engines.microvm.volumes import Shared, Source
from engines.microvm.wire import fields, messages
from engines.microvm.wire.messages import Setting
from engines.microvm.wire.protocol import MountKind, PidMode
from forgeone_shim.errors import FailedPrecondition, ForgeError, InvalidInput
from forgeone_shim.kernel.capabilities import DEFAULT, KNOWN

MIB = 1 << 20
FILE, DIRECTORY, SOCKET, BLOCK = 0o100644, 0o40755, 0o140755, 0o60600
SPEC = ContainerSpec(name="main")


def plan(spec: ContainerSpec = SPEC, **changes: object) -> ContainerPlan:
    """A container, with ``changes`` of its plan."""
    found = ContainerPlan(
        container_id="c" * 64,
        sandbox_id="s" * 64,
        bundle="/bundle",
        rootfs="/bundle/rootfs",
        exits="/exits",
        log_path="",
        hostname="pod",
        cgroup="/pods/c",
        process=Process(args=("sleep", "1"), env=("A=1",), cwd="", user=User(uid=7, gid=8, additional_gids=(9,))),
        namespaces=Namespaces(network="/ns/net", ipc="/ns/ipc", uts="/ns/uts", pid=""),
        pod_mounts=(Mount("/etc/hosts", "/pod/hosts"), Mount("/dev/shm", "/pod/shm")),
        spec=spec,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def spec(**changes: object) -> ContainerSpec:
    """A container's specification."""
    return replace(SPEC, **changes)  # type: ignore[arg-type]


def secured(**changes: object) -> ContainerSpec:
    """A container's specification with a security context."""
    return spec(security=Security(**changes))  # type: ignore[arg-type]


def created(asked: ContainerPlan) -> messages.Create:
    """What the guest is told, as it travels."""
    sources = dict.fromkeys((mount.source for mount in (*asked.pod_mounts, *asked.spec.mounts)), Source(FILE))
    places = volumes.plan(asked, asked.spec.mounts, sources)
    paths = {place.shared: f"/{number}" for number, place in enumerate(places) if place.shared is not None}
    first, root = plans.program(asked, b""), plans.rootfs(asked, (3,), 64 * MIB)
    return fields.decode(messages.Create, fields.encode(plans.create(asked, first, root, places, paths)))


# Sizes


@pytest.mark.parametrize(
    ("limit", "memory"),
    [(0, 384), (31, 128), (32, 192), (128, 256), (409, 512), (410, 768), (4000, 4352), (20 << 10, 82 << 8)],
)
def test_machines_come_in_classes_of_memory(limit: int, memory: int) -> None:
    asked = Resources(memory_limit=limit * MIB)
    found = sizing.size(asked, default=256 * MIB, overhead=96 * MIB, host_limit=1 << 40, vcpus_max=0, processors=4)
    assert found.memory == memory * MIB


def test_a_pod_of_which_some_containers_have_a_limit_has_memory_for_the_others_too() -> None:
    asked = Resources(memory_limit=64 * MIB)
    found = sizing.size(asked, default=256 * MIB, overhead=96 * MIB, host_limit=0, vcpus_max=0, processors=4)
    assert found.memory == 448 * MIB


@pytest.mark.parametrize("limit", [64, 200, 600, 1000, 4000, 20 << 10])
def test_a_pod_with_the_recommended_overhead_has_all_of_its_limit(limit: int) -> None:
    found = sizing.size(
        Resources(memory_limit=limit * MIB),
        default=256 * MIB,
        overhead=96 * MIB,
        host_limit=(limit + 240) * MIB,
        vcpus_max=0,
        processors=4,
    )
    assert (limit + 96) * MIB <= found.memory <= (limit + 160) * MIB


def test_a_machine_fits_into_what_its_pod_may_have() -> None:
    asked = Resources(memory_limit=256 * MIB)
    found = sizing.size(asked, default=256 * MIB, overhead=96 * MIB, host_limit=400 * MIB, vcpus_max=0, processors=4)
    assert found.memory == 320 * MIB
    with pytest.raises(FailedPrecondition, match="may have 150 MiB, and a machine needs 208 MiB"):
        sizing.size(asked, default=256 * MIB, overhead=96 * MIB, host_limit=150 * MIB, vcpus_max=0, processors=4)


@pytest.mark.parametrize(
    ("quota", "most", "vcpus"), [(0, 0, 1), (50_000, 0, 1), (150_000, 0, 2), (900_000, 0, 4), (900_000, 3, 3)]
)
def test_a_machine_has_the_processors_that_its_pod_may_use(quota: int, most: int, vcpus: int) -> None:
    asked = Resources(cpu_quota=quota, cpu_period=100_000)
    found = sizing.size(asked, default=256 * MIB, overhead=0, host_limit=0, vcpus_max=most, processors=4)
    assert found.vcpus == vcpus


# Containers


def test_a_program_is_the_user_with_the_capabilities_that_every_runtime_gives() -> None:
    found = created(plan()).program
    assert (found.args, found.cwd, found.uid, found.gid, found.groups) == (("sleep", "1"), "/", 7, 8, (9,))
    assert {"A=1", "HOSTNAME=pod", "HOME=/"} < set(found.env)
    assert {KNOWN[bit] for bit in range(len(KNOWN)) if found.caps.bounding >> bit & 1} == DEFAULT
    assert found.caps.ambient == 0


def test_a_privileged_container_has_all_that_its_machine_has_and_nothing_of_the_host() -> None:
    found = created(plan(secured(privileged=True, masked_paths=("/proc/kcore",))))
    assert found.program.caps.effective == (1 << len(KNOWN)) - 1
    assert found.masked == ()
    writable = {mount.destination for mount in found.mounts if mount.kind is MountKind.KERNEL and not mount.flags & 1}
    assert writable == {"/proc", "/sys", "/sys/fs/cgroup"}
    assert [device.name for device in found.devices] == ["/dev/fuse", "/dev/net/tun", "/dev/kmsg"]
    mounts = (Mount("/dev/net", "/data"),)
    found = created(plan(spec(security=Security(privileged=True), mounts=mounts)))
    assert [device.name for device in found.devices] == ["/dev/fuse", "/dev/kmsg"]
    found = created(plan(spec(security=Security(privileged=True), mounts=(Mount("/dev", "/dev"),))))
    assert found.devices == ()


def test_what_a_command_executes_is_as_the_first_program_but_for_its_words() -> None:
    first = plans.program(plan(), b"")
    found = plans.executed(first, ("sh",), tty=True, stdin=True)
    assert (found.args, found.tty, found.stdin, found.caps, found.uid) == (("sh",), True, True, first.caps, 7)
    assert "TERM=xterm" in found.env
    with pytest.raises(InvalidInput, match="cmd"):
        plans.executed(first, (), tty=False, stdin=False)


@pytest.mark.parametrize(
    ("options", "mode", "target"),
    [
        (NamespaceOptions(pid=NamespaceMode.CONTAINER), PidMode.OWN, ""),
        (NamespaceOptions(pid=NamespaceMode.POD), PidMode.POD, ""),
        (NamespaceOptions(pid=NamespaceMode.TARGET, target_id="other"), PidMode.TARGET, "other"),
    ],
)
def test_processes_are_shared_as_asked(options: NamespaceOptions, mode: PidMode, target: str) -> None:
    found = created(plan(secured(namespaces=options)))
    assert (found.pid_mode, found.target) == (mode, target)


def test_limits_become_files_of_the_guests_cgroup() -> None:
    asked = Resources(
        cpu_period=50_000,
        cpu_quota=25_000,
        cpu_shares=1024,
        memory_limit=64 * MIB,
        pids_limit=100,
        hugepages=(("2MB", 0),),
        unified={"memory.high": "1000000"},
    )
    assert set(plans.cgroup(asked)) == {
        Setting(name="cpu.max", value="25000 50000"),
        Setting(name="cpu.weight", value="39"),
        Setting(name="memory.max", value=str(64 * MIB)),
        Setting(name="pids.max", value="100"),
        Setting(name="memory.high", value="1000000"),
    }
    assert plans.cgroup(Resources()) == ()
    assert plans.cgroup(Resources(cpu_quota=-1, memory_limit=-1)) == (
        Setting(name="cpu.max", value="max 100000"),
        Setting(name="memory.max", value="max"),
    )


# Volumes


def test_mounts_are_shared_with_the_host_but_for_memory() -> None:
    empty = "/var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir"
    mounts = (
        Mount("/config", "/host/config", readonly=True, options=("noexec",)),
        Mount("/scratch", f"{empty}/disk"),
        Mount("/cache", f"{empty}/memory"),
    )
    sources = {
        "/pod/hosts": Source(FILE),
        "/pod/shm": Source(DIRECTORY),
        "/host/config": Source(DIRECTORY),
        f"{empty}/disk": Source(0o42777),
        f"{empty}/memory": Source(0o42777, memory=MIB, group=2000),
    }
    found = {place.mount.destination: place for place in volumes.plan(plan(), mounts, sources)}
    assert found["/dev/shm"].mount.kind is MountKind.SHM
    assert found["/config"].shared == Shared("/host/config", readonly=True)
    assert found["/config"].mount.flags == 1 | 8
    assert found["/scratch"].shared == Shared(f"{empty}/disk", readonly=False, common=True)
    cache = found["/cache"].mount
    assert (cache.kind, cache.source, cache.options, cache.mode) == (
        MountKind.POD,
        "memory",
        f"size={MIB},gid=2000",
        0o2777,
    )


def test_of_a_read_only_mount_what_is_mounted_below_it_is_not_unless_it_is_to_be_all_of_it() -> None:
    nested = Source(DIRECTORY, nested=True)

    def shared(mount: Mount, source: Source = nested) -> tuple[Shared | None, int]:
        [place] = volumes.plan(plan(pod_mounts=()), (mount,), {mount.source: source})
        return place.shared, place.mount.flags

    one = Mount("/v", "/v", readonly=True)
    assert shared(one) == (Shared("/v", readonly=False, top_readonly=True), 0)
    assert shared(one, Source(DIRECTORY)) == (Shared("/v", readonly=True), 1)
    assert shared(replace(one, recursive_read_only=True)) == (Shared("/v", readonly=True), 1)
    live = replace(one, propagation=Propagation.HOST_TO_CONTAINER)
    assert shared(live) == (Shared("/v", readonly=True, live=True), 1)


@pytest.mark.parametrize(
    ("mount", "source", "reason"),
    [
        (Mount("/s", "/run/x.sock"), Source(SOCKET), "a socket of the host's"),
        (Mount("/d", "/dev/sda"), Source(BLOCK), "a block device of the host's"),
        (Mount("/m", "/m", propagation=Propagation.BIDIRECTIONAL), Source(DIRECTORY), "cannot be seen by the host"),
        (Mount("/p", "/p"), Source(DIRECTORY, part_of="cache"), "a part of the emptyDir 'cache'"),
    ],
)
def test_what_a_machine_cannot_reach_is_refused(mount: Mount, source: Source, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        volumes.plan(plan(pod_mounts=()), (mount,), {mount.source: source})


# Refusals


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (plan(secured(namespaces=NamespaceOptions(pid=NamespaceMode.NODE))), "namespace_options.pid"),
        (plan(secured(namespaces=NamespaceOptions(ipc=NamespaceMode.NODE))), "namespace_options.ipc"),
        (plan(spec(devices=(Device("/dev/kvm", "/dev/kvm"),))), "/dev/kvm is the host's"),
        (plan(edits=Edits(nodes=(NodeEdit(path="/dev/x", host_path="/dev/x"),))), "CDI_devices"),
        (plan(secured(apparmor=Profile(ProfileType.LOCALHOST, "x"))), "apparmor"),
        (plan(spec(resources=Resources(hugepages=(("2MB", 1),)))), "hugepage_limits"),
        (plan(rdt_class="gold"), "RDT class"),
        (plan(watched=True), "not counted"),
    ],
)
def test_what_is_the_hosts_is_refused_with_the_reason(asked: ContainerPlan, reason: str) -> None:
    with pytest.raises(ForgeError, match=reason):
        refusals.container(asked)


def test_a_pod_that_shares_its_hosts_namespaces_is_refused() -> None:
    options = NamespaceOptions(network=NamespaceMode.NODE)
    asked = SandboxPlan(
        sandbox_id="s",
        directory="/s",
        hostname="",
        cgroup="/pods",
        namespaces=Namespaces(network=None, ipc="", uts=None, pid=""),
        shares_pid=False,
        spec=SandboxSpec(name="a", uid="b", namespace="c", security=Security(namespaces=options)),
    )
    with pytest.raises(InvalidInput, match=r"namespace_options\.network"):
        refusals.pod(asked.spec)


# Users


def test_each_machine_has_a_user_of_its_own_until_it_is_given_back(tmp_path: Path) -> None:
    users = Users(tmp_path / "users", tmp_path / "pods")
    for name in ("a", "b"):
        (tmp_path / "pods" / name).mkdir(parents=True)
    first, second = users.take("a"), users.take("b")
    assert first != second and max(first, second) < COUNT
    assert users.take("a") == first
    users.give_back("a")
    assert not (tmp_path / "users" / str(first)).is_symlink()
    assert users.take("b") == second
    users.give_back("none")


def test_the_user_of_a_pod_that_never_was_is_free(tmp_path: Path) -> None:
    users = Users(tmp_path / "users", tmp_path / "pods")
    number = users.take("a")
    (tmp_path / "users" / str(number)).unlink()
    (tmp_path / "users" / str(number)).symlink_to("gone")
    assert users.take("a") == number
