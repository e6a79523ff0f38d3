"""Translation: what is asked for arrives unchanged, what cannot be is refused by the path of its field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.api import runtime_pb2 as pb
from cri.translate import common, container, enums, fields, mount, sandbox
from engines.base import (
    ContainerSpec,
    Device,
    DNSConfig,
    GroupsPolicy,
    IdMapping,
    Mount,
    NamespaceMode,
    NamespaceOptions,
    PortMapping,
    PortProtocol,
    Profile,
    ProfileType,
    Propagation,
    Resources,
    SandboxSpec,
    Security,
    SELinux,
)
from forgeone_shim.errors import InvalidInput
from forgeone_shim.lifecycle.machine import State
from forgeone_shim.runtime.process import signal_number
from tests.unit.cri.conftest import container_config, pod_config

Change = Callable[[pb.PodSandboxConfig], None]


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(InvalidInput) as raised:
        call()
    return raised.value.field


# -- sandboxes


def test_the_least_a_pod_needs() -> None:
    assert sandbox.spec(pod_config()) == SandboxSpec(name="web", uid="uid-web", namespace="default")


def test_everything_a_pod_can_ask_for() -> None:
    context = pb.LinuxSandboxSecurityContext(
        namespace_options=pb.NamespaceOption(
            network=pb.NODE,
            pid=pb.CONTAINER,
            ipc=pb.NODE,
            userns_options=pb.UserNamespace(
                mode=pb.POD, uids=[pb.IDMapping(host_id=65536, length=65536)], gids=[pb.IDMapping(length=1)]
            ),
        ),
        selinux_options=pb.SELinuxOption(user="u", role="r", type="t", level="s0"),
        run_as_user=pb.Int64Value(value=0),
        run_as_group=pb.Int64Value(value=5),
        readonly_rootfs=True,
        supplemental_groups=[1, 2],
        supplemental_groups_policy=pb.Strict,
        privileged=True,
        seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="/p.json"),
        apparmor=pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined),
    )
    config = pod_config(
        hostname="web-0",
        log_directory="/var/log/pods//x/",
        dns_config=pb.DNSConfig(servers=["10.0.0.2", "fe80::1%eth0"], searches=["a.b"], options=["ndots:5"]),
        port_mappings=[
            pb.PortMapping(container_port=80, host_port=8080, host_ip="127.0.0.1"),
            pb.PortMapping(container_port=53, host_port=53, protocol=pb.UDP),
            pb.PortMapping(container_port=9000),
        ],
        labels={"a": "b"},
        annotations={"c": "d"},
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent="/kubepods/pod1",
            security_context=context,
            sysctls={"net.ipv4.ip_local_port_range": "1024 65535"},
            overhead=pb.LinuxContainerResources(cpu_quota=100),
            resources=pb.LinuxContainerResources(memory_limit_in_bytes=5),
        ),
    )
    config.metadata.attempt = 2
    assert sandbox.spec(config, "forgeone-native") == SandboxSpec(
        name="web",
        uid="uid-web",
        namespace="default",
        attempt=2,
        hostname="web-0",
        log_directory="/var/log/pods/x",
        dns=DNSConfig(("10.0.0.2", "fe80::1%eth0"), ("a.b",), ("ndots:5",)),
        port_mappings=(PortMapping(80, 8080, host_ip="127.0.0.1"), PortMapping(53, 53, PortProtocol.UDP)),
        labels={"a": "b"},
        annotations={"c": "d"},
        cgroup_parent="/kubepods/pod1",
        sysctls={"net.ipv4.ip_local_port_range": "1024 65535"},
        security=Security(
            namespaces=NamespaceOptions(
                network=NamespaceMode.NODE,
                pid=NamespaceMode.CONTAINER,
                ipc=NamespaceMode.NODE,
                user=NamespaceMode.POD,
                uid_mappings=(IdMapping(65536, 0, 65536),),
                gid_mappings=(IdMapping(0, 0, 1),),
            ),
            privileged=True,
            selinux=SELinux("u", "r", "t", "s0"),
            run_as_user=0,
            run_as_group=5,
            supplemental_groups=(1, 2),
            supplemental_groups_policy=GroupsPolicy.STRICT,
            readonly_rootfs=True,
            seccomp=Profile(ProfileType.LOCALHOST, "/p.json"),
            apparmor=Profile(ProfileType.UNCONFINED),
        ),
        overhead=Resources(cpu_quota=100),
        resources=Resources(memory_limit=5),
        runtime_handler="forgeone-native",
    )


def _set(path: str, value: object) -> Change:
    """A change of one field, by its path; a list is extended, a message copied."""

    def change(config: pb.PodSandboxConfig) -> None:
        *parents, last = path.split(".")
        target: object = config
        for parent in parents:
            target = getattr(target, parent)
        present = getattr(target, last)
        if isinstance(value, list):
            present.extend(value)
        elif isinstance(value, dict):
            present.update(value)
        elif hasattr(present, "CopyFrom"):
            present.CopyFrom(value)
        else:
            setattr(target, last, value)

    return change


ROOT_CONTEXT = "linux.security_context"
BAD_PODS: list[tuple[str, object, str]] = [
    ("metadata.name", "", "metadata.name"),
    ("metadata.uid", "", "metadata.uid"),
    ("metadata.namespace", "", "metadata.namespace"),
    ("metadata.name", "a/b", "metadata.name"),
    ("metadata.name", "a\nb", "metadata.name"),
    ("hostname", "a b", "hostname"),
    ("hostname", "a\n127.0.0.1 evil", "hostname"),
    ("hostname", "x" * 65, "hostname"),
    ("hostname", "-x", "hostname"),
    ("log_directory", "logs", "log_directory"),
    ("log_directory", "/var/log/../../etc", "log_directory"),
    ("log_directory", "/a\0b", "log_directory"),
    ("dns_config.servers", ["dns.example"], "dns_config.servers[0]"),
    ("dns_config.searches", ["ok", "a b"], "dns_config.searches[1]"),
    ("dns_config.options", ["x\nnameserver 6.6.6.6"], "dns_config.options[0]"),
    ("dns_config.searches", [""], "dns_config.searches[0]"),
    ("port_mappings", [pb.PortMapping(container_port=0, host_port=1)], "port_mappings[0].container_port"),
    ("port_mappings", [pb.PortMapping(container_port=-1, host_port=1)], "port_mappings[0].container_port"),
    ("port_mappings", [pb.PortMapping(container_port=1, host_port=65536)], "port_mappings[0].host_port"),
    ("port_mappings", [pb.PortMapping(container_port=1, host_port=-1)], "port_mappings[0].host_port"),
    (
        "port_mappings",
        [pb.PortMapping(container_port=1, host_port=1, protocol=9)],  # type: ignore[arg-type]
        "port_mappings[0].protocol",
    ),
    ("port_mappings", [pb.PortMapping(container_port=1, host_port=1, host_ip="x")], "port_mappings[0].host_ip"),
    ("windows", pb.WindowsPodSandboxConfig(), "windows"),
    ("linux.cgroup_parent", "/a\nb", "linux.cgroup_parent"),
    ("linux.sysctls", {"net.core.somaxconn": "1\0"}, "linux.sysctls['net.core.somaxconn']"),
    ("linux.resources.cpu_shares", -1, "linux.resources.cpu_shares"),
    ("linux.overhead.memory_limit_in_bytes", -2, "linux.overhead.memory_limit_in_bytes"),
    (f"{ROOT_CONTEXT}.namespace_options.network", pb.CONTAINER, f"{ROOT_CONTEXT}.namespace_options.network"),
    (f"{ROOT_CONTEXT}.namespace_options.ipc", pb.TARGET, f"{ROOT_CONTEXT}.namespace_options.ipc"),
    (f"{ROOT_CONTEXT}.namespace_options.pid", pb.TARGET, f"{ROOT_CONTEXT}.namespace_options.pid"),
    (f"{ROOT_CONTEXT}.namespace_options.pid", 7, f"{ROOT_CONTEXT}.namespace_options.pid"),
    (
        f"{ROOT_CONTEXT}.namespace_options.userns_options",
        pb.UserNamespace(mode=pb.CONTAINER),
        f"{ROOT_CONTEXT}.namespace_options.userns_options.mode",
    ),
    (
        f"{ROOT_CONTEXT}.namespace_options.userns_options",
        pb.UserNamespace(mode=pb.NODE, uids=[pb.IDMapping(length=1)]),
        f"{ROOT_CONTEXT}.namespace_options.userns_options",
    ),
    (
        f"{ROOT_CONTEXT}.namespace_options.userns_options",
        pb.UserNamespace(mode=pb.POD, gids=[pb.IDMapping(host_id=2**32 - 1, length=2)]),
        f"{ROOT_CONTEXT}.namespace_options.userns_options.gids[0]",
    ),
    (
        f"{ROOT_CONTEXT}.namespace_options.userns_options",
        pb.UserNamespace(mode=pb.POD, uids=[pb.IDMapping(host_id=5)]),
        f"{ROOT_CONTEXT}.namespace_options.userns_options.uids[0]",
    ),
    (f"{ROOT_CONTEXT}.run_as_user", pb.Int64Value(value=-1), f"{ROOT_CONTEXT}.run_as_user"),
    (f"{ROOT_CONTEXT}.run_as_user", pb.Int64Value(value=2**32 - 1), f"{ROOT_CONTEXT}.run_as_user"),
    (f"{ROOT_CONTEXT}.run_as_group", pb.Int64Value(value=1), f"{ROOT_CONTEXT}.run_as_group"),
    (f"{ROOT_CONTEXT}.supplemental_groups", [1, -5], f"{ROOT_CONTEXT}.supplemental_groups[1]"),
    (f"{ROOT_CONTEXT}.supplemental_groups_policy", 3, f"{ROOT_CONTEXT}.supplemental_groups_policy"),
    (
        f"{ROOT_CONTEXT}.seccomp",
        pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost),
        f"{ROOT_CONTEXT}.seccomp.localhost_ref",
    ),
    (
        f"{ROOT_CONTEXT}.seccomp",
        pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="../x"),
        f"{ROOT_CONTEXT}.seccomp.localhost_ref",
    ),
    (f"{ROOT_CONTEXT}.seccomp_profile_path", "nonsense", f"{ROOT_CONTEXT}.seccomp_profile_path"),
    (f"{ROOT_CONTEXT}.seccomp_profile_path", "localhost/x/y", f"{ROOT_CONTEXT}.seccomp_profile_path"),
]


@pytest.mark.parametrize(("path", "value", "named"), BAD_PODS)
def test_a_pod_that_cannot_be_is_refused_by_field(path: str, value: object, named: str) -> None:
    config = pod_config()
    _set(path, value)(config)
    assert refused(lambda: sandbox.spec(config)) == f"config.{named}"


def test_a_pod_without_metadata_is_refused() -> None:
    assert refused(lambda: sandbox.spec(pb.PodSandboxConfig())) == "config.metadata"


def test_a_pod_stays_in_the_nodes_user_namespace_unless_it_asks() -> None:
    config = pod_config()
    assert sandbox.spec(config).security.namespaces.user is NamespaceMode.NODE
    config.linux.security_context.namespace_options.userns_options.mode = pb.NODE
    assert sandbox.spec(config).security.namespaces.user is NamespaceMode.NODE


LEGACY = [
    ("", None),
    ("unconfined", Profile(ProfileType.UNCONFINED)),
    ("runtime/default", Profile(ProfileType.RUNTIME_DEFAULT)),
    ("docker/default", Profile(ProfileType.RUNTIME_DEFAULT)),
    ("localhost//etc/p.json", Profile(ProfileType.LOCALHOST, "/etc/p.json")),
]


@pytest.mark.parametrize(("text", "profile"), LEGACY)
def test_deprecated_profile_fields_still_count(text: str, profile: Profile | None) -> None:
    pod = pod_config()
    pod.linux.security_context.seccomp_profile_path = text
    assert sandbox.spec(pod).security.seccomp == profile
    config = container_config()
    config.linux.security_context.seccomp_profile_path = text
    config.linux.security_context.apparmor_profile = text
    security = container.spec(config).security
    assert (security.seccomp, security.apparmor) == (profile, profile)


def test_a_profile_outweighs_its_deprecated_field() -> None:
    config = container_config()
    context = config.linux.security_context
    context.seccomp_profile_path = context.apparmor_profile = "unconfined"
    context.seccomp.profile_type = pb.SecurityProfile.RuntimeDefault
    context.apparmor.profile_type = pb.SecurityProfile.Localhost
    context.apparmor.localhost_ref = "localhost/mine"
    security = container.spec(config).security
    assert security.seccomp == Profile(ProfileType.RUNTIME_DEFAULT)
    assert security.apparmor == Profile(ProfileType.LOCALHOST, "mine")


# -- containers


def test_the_least_a_container_needs() -> None:
    assert container.spec(container_config()) == ContainerSpec(name="app", image="busybox")


def test_everything_a_container_can_ask_for() -> None:
    context = pb.LinuxContainerSecurityContext(
        capabilities=pb.Capability(
            add_capabilities=["net_admin", "CAP_SYS_TIME"],
            drop_capabilities=["ALL"],
            add_ambient_capabilities=["NET_BIND_SERVICE"],
        ),
        namespace_options=pb.NamespaceOption(pid=pb.TARGET, target_id="abc"),
        run_as_username="www",
        run_as_group=pb.Int64Value(value=0),
        no_new_privs=True,
        masked_paths=["/proc/kcore"],
        readonly_paths=["/proc/sys/"],
    )
    config = container_config(
        command=["sh"],
        args=["-c", "true"],
        working_dir="/srv/",
        envs=[pb.KeyValue(key="A", value="ä=b".encode()), pb.KeyValue(key="A", value=b"")],
        mounts=[pb.Mount(container_path="/v", readonly=True, image=pb.ImageSpec(image="data"), image_sub_path="a/b")],
        devices=[pb.Device(container_path="/dev/x", host_path="/dev/y", permissions="rw")],
        CDI_devices=[pb.CDIDevice(name="vendor.com/gpu=0")],
        log_path="app//0.log",
        stdin=True,
        stdin_once=True,
        tty=True,
        linux=pb.LinuxContainerConfig(
            security_context=context, resources=pb.LinuxContainerResources(cpu_quota=-1, oom_score_adj=-998)
        ),
        stop_signal=pb.SIGNAL_SIGUSR1,
    )
    config.image.annotations["k"] = "v"
    config.image.runtime_handler = "forgeone-wasm"
    assert container.spec(config) == ContainerSpec(
        name="app",
        image="busybox",
        image_annotations={"k": "v"},
        image_runtime_handler="forgeone-wasm",
        command=("sh",),
        args=("-c", "true"),
        working_dir="/srv",
        envs=(("A", "ä=b"), ("A", "")),
        mounts=(Mount("/v", "", readonly=True, image="data", image_sub_path="a/b"),),
        devices=(Device("/dev/x", "/dev/y", "rw"),),
        cdi_devices=("vendor.com/gpu=0",),
        log_path="app/0.log",
        stdin=True,
        stdin_once=True,
        tty=True,
        resources=Resources(cpu_quota=-1, oom_score_adj=-998),
        security=Security(
            namespaces=NamespaceOptions(pid=NamespaceMode.TARGET, target_id="abc"),
            add_capabilities=("CAP_NET_ADMIN", "CAP_SYS_TIME"),
            drop_capabilities=("ALL",),
            add_ambient_capabilities=("CAP_NET_BIND_SERVICE",),
            run_as_username="www",
            run_as_group=0,
            no_new_privs=True,
            masked_paths=("/proc/kcore",),
            readonly_paths=("/proc/sys",),
        ),
        stop_signal="SIGUSR1",
    )


def _mount(**fields: object) -> list[pb.Mount]:
    return [pb.Mount(**{"container_path": "/c", "host_path": "/h", **fields})]  # type: ignore[arg-type]


LIMITS = "linux.resources"
BAD_CONTAINERS: list[tuple[str, object, str]] = [
    ("metadata.name", "", "metadata.name"),
    ("image.image", "", "image.image"),
    ("windows", pb.WindowsContainerConfig(), "windows"),
    ("command", ["a", "b\0"], "command[1]"),
    ("args", ["\0"], "args[0]"),
    ("working_dir", "srv", "working_dir"),
    ("envs", [pb.KeyValue(key="", value=b"x")], "envs[0].key"),
    ("envs", [pb.KeyValue(key="A=B", value=b"x")], "envs[0].key"),
    ("envs", [pb.KeyValue(key="A", value=b"\0")], "envs[0].value"),
    ("envs", [pb.KeyValue(key="A", value=b"\xff")], "envs[0].value"),
    ("mounts", _mount(container_path="data"), "mounts[0].container_path"),
    ("mounts", _mount(container_path=""), "mounts[0].container_path"),
    ("mounts", _mount(container_path="/"), "mounts[0].container_path"),
    ("mounts", _mount(container_path="/a/../../b"), "mounts[0].container_path"),
    ("mounts", _mount(host_path="srv"), "mounts[0].host_path"),
    ("mounts", _mount(host_path=""), "mounts[0].host_path"),
    ("mounts", _mount(host_path="/a/../etc"), "mounts[0].host_path"),
    ("mounts", _mount(propagation=5), "mounts[0].propagation"),
    ("mounts", _mount(recursive_read_only=True), "mounts[0].recursive_read_only"),
    (
        "mounts",
        _mount(recursive_read_only=True, readonly=True, propagation=pb.PROPAGATION_HOST_TO_CONTAINER),
        "mounts[0].recursive_read_only",
    ),
    ("mounts", _mount(image=pb.ImageSpec(image="x")), "mounts[0].host_path"),
    ("mounts", _mount(image=pb.ImageSpec(), host_path=""), "mounts[0].image.image"),
    ("mounts", _mount(image_sub_path="x"), "mounts[0].image_sub_path"),
    ("mounts", _mount(image=pb.ImageSpec(image="x"), host_path=""), "mounts[0].readonly"),
    (
        "mounts",
        _mount(image=pb.ImageSpec(image="x"), host_path="", readonly=True, image_sub_path="../x"),
        "mounts[0].image_sub_path",
    ),
    ("mounts", _mount(mount_options=["noexec,suid"]), "mounts[0].mount_options[0]"),
    ("mounts", _mount(uidMappings=[pb.IDMapping()]), "mounts[0].uidMappings[0]"),
    ("devices", [pb.Device(container_path="x", host_path="/y", permissions="r")], "devices[0].container_path"),
    ("devices", [pb.Device(container_path="/x", host_path="y", permissions="r")], "devices[0].host_path"),
    ("devices", [pb.Device(container_path="/x", host_path="/y", permissions="rx")], "devices[0].permissions"),
    ("devices", [pb.Device(container_path="/x", host_path="/y", permissions="rr")], "devices[0].permissions"),
    ("devices", [pb.Device(container_path="/x", host_path="/y")], "devices[0].permissions"),
    ("CDI_devices", [pb.CDIDevice(name="gpu0")], "CDI_devices[0].name"),
    ("log_path", "/etc/passwd", "log_path"),
    ("log_path", "../x.log", "log_path"),
    ("log_path", "a/../../x.log", "log_path"),
    ("log_path", ".", "log_path"),
    ("log_path", "a\nb", "log_path"),
    ("stop_signal", 66, "stop_signal"),
    (f"{LIMITS}.cpu_period", -1, f"{LIMITS}.cpu_period"),
    (f"{LIMITS}.cpu_quota", -2, f"{LIMITS}.cpu_quota"),
    (f"{LIMITS}.memory_swap_limit_in_bytes", -2, f"{LIMITS}.memory_swap_limit_in_bytes"),
    (f"{LIMITS}.oom_score_adj", 1001, f"{LIMITS}.oom_score_adj"),
    (f"{LIMITS}.cpuset_cpus", "0-3\n", f"{LIMITS}.cpuset_cpus"),
    (f"{LIMITS}.cpuset_mems", "all", f"{LIMITS}.cpuset_mems"),
    (f"{LIMITS}.hugepage_limits", [pb.HugepageLimit(page_size="../x")], f"{LIMITS}.hugepage_limits[0].page_size"),
    (f"{LIMITS}.unified", {"../memory.max": "1"}, f"{LIMITS}.unified"),
    (f"{LIMITS}.unified", {"memory.max": "1\0"}, f"{LIMITS}.unified['memory.max']"),
    (
        f"{ROOT_CONTEXT}.capabilities.add_capabilities",
        ["NET_ADMIN", "1 2"],
        f"{ROOT_CONTEXT}.capabilities.add_capabilities[1]",
    ),
    (f"{ROOT_CONTEXT}.namespace_options.pid", pb.TARGET, f"{ROOT_CONTEXT}.namespace_options.target_id"),
    (f"{ROOT_CONTEXT}.run_as_group", pb.Int64Value(value=1), f"{ROOT_CONTEXT}.run_as_group"),
    (f"{ROOT_CONTEXT}.run_as_username", "a\nb", f"{ROOT_CONTEXT}.run_as_username"),
    (f"{ROOT_CONTEXT}.masked_paths", ["proc"], f"{ROOT_CONTEXT}.masked_paths[0]"),
    (f"{ROOT_CONTEXT}.readonly_paths", ["/proc/../etc"], f"{ROOT_CONTEXT}.readonly_paths[0]"),
    (f"{ROOT_CONTEXT}.apparmor_profile", "localhost/", f"{ROOT_CONTEXT}.apparmor_profile"),
]


@pytest.mark.parametrize(("path", "value", "named"), BAD_CONTAINERS)
def test_a_container_that_cannot_be_is_refused_by_field(path: str, value: object, named: str) -> None:
    config = container_config()
    _set(path, value)(config)  # type: ignore[arg-type]
    assert refused(lambda: container.spec(config)) == f"config.{named}"


def test_a_container_without_metadata_or_image_is_refused() -> None:
    assert refused(lambda: container.spec(pb.ContainerConfig())) == "config.metadata"
    config = container_config()
    config.ClearField("image")
    assert refused(lambda: container.spec(config)) == "config.image"


def test_a_user_by_number_and_by_name_at_once_is_refused() -> None:
    config = container_config()
    config.linux.security_context.run_as_user.value = 1
    config.linux.security_context.run_as_username = "www"
    assert refused(lambda: container.spec(config)) == "config.linux.security_context.run_as_username"


# -- there and back


@given(st.integers(min_value=0, max_value=len(pb.Signal.values()) - 1))
def test_every_signal_has_a_name_the_runtime_knows_and_comes_back(number: int) -> None:
    name = enums.SIGNALS[pb.Signal.ValueType(number)]
    assert enums.signal_of(name) == number
    if name:
        assert 1 <= signal_number(name, field="x") <= 64


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("TERM", pb.SIGNAL_SIGTERM),
        ("sigterm", pb.SIGNAL_SIGTERM),
        ("SIGRTMAX-2", pb.SIGNAL_SIGRTMAXMINUS2),
        ("RTMIN+3", pb.SIGNAL_SIGRTMINPLUS3),
        ("", pb.SIGNAL_RUNTIME_DEFAULT),
        ("15", pb.SIGNAL_SIGTERM),
        ("37", pb.SIGNAL_SIGRTMINPLUS3),
        ("RTMIN+20", pb.SIGNAL_SIGRTMAXMINUS10),
        ("6", pb.SIGNAL_SIGABRT),
        ("65", pb.SIGNAL_RUNTIME_DEFAULT),
        ("nonsense", pb.SIGNAL_RUNTIME_DEFAULT),
    ],
)
def test_an_images_stop_signal_in_cris_words(name: str, number: int) -> None:
    assert enums.signal_of(name) == number


def test_cris_states_of_every_state() -> None:
    assert {state: pb.ContainerState.Name(enums.CONTAINER_STATES[state]) for state in State} == {
        State.CREATED: "CONTAINER_CREATED",
        State.BOOTED: "CONTAINER_CREATED",
        State.RUNNING: "CONTAINER_RUNNING",
        State.PAUSED: "CONTAINER_RUNNING",
        State.STOPPING: "CONTAINER_RUNNING",
        State.TERMINATED: "CONTAINER_EXITED",
        State.REMOVED: "CONTAINER_EXITED",
    }


limits = st.builds(
    Resources,
    cpu_period=st.integers(0, 10**6),
    cpu_quota=st.integers(-1, 10**6),
    cpu_shares=st.integers(0, 2**18),
    cpuset_cpus=st.sampled_from(["", "0", "0-3,7"]),
    memory_limit=st.integers(-1, 2**62),
    memory_swap_limit=st.integers(-1, 2**62),
    oom_score_adj=st.integers(-1000, 1000),
    hugepages=st.lists(st.tuples(st.sampled_from(["2MB", "1GB"]), st.integers(0, 2**63))).map(tuple),
    unified=st.dictionaries(st.sampled_from(["memory.high", "io.max"]), st.text("abc 019", max_size=9)),
)


@given(limits)
def test_limits_there_and_back(one: Resources) -> None:
    assert common.resources("x", common.resources_message(one)) == one


ids = st.builds(IdMapping, st.integers(0, 2**31), st.integers(0, 2**31), st.integers(1, 2**31)).map(lambda m: (m,))
paths = st.from_regex(r"(/[a-z]{1,5}){1,4}", fullmatch=True)
host_mounts = st.builds(
    Mount,
    destination=paths,
    source=paths,
    readonly=st.booleans(),
    propagation=st.sampled_from(Propagation),
    selinux_relabel=st.booleans(),
    uid_mappings=st.just(()) | ids,
    gid_mappings=st.just(()) | ids,
    options=st.lists(st.sampled_from(["noexec", "size=1m"])).map(tuple),
)


@given(host_mounts)
def test_mounts_there_and_back(one: Mount) -> None:
    if one.readonly and one.propagation is Propagation.PRIVATE:
        one = replace(one, recursive_read_only=True)
    assert mount.mount("x", mount.mount_message(one)) == one


def test_the_image_of_a_mount_is_told_by_its_id() -> None:
    message = mount.mount_message(Mount("/v", "", readonly=True, image="data", image_ref="sha256:1"))
    assert (message.image.image, message.image.image_ref, message.host_path) == ("data", "sha256:1", "")


shared = st.sampled_from([NamespaceMode.POD, NamespaceMode.NODE])
namespace_options = st.builds(
    NamespaceOptions,
    network=shared,
    ipc=shared,
    pid=st.sampled_from([NamespaceMode.POD, NamespaceMode.CONTAINER, NamespaceMode.NODE]),
)


@given(namespace_options, ids)
def test_namespaces_there_and_back(one: NamespaceOptions, extents: tuple[IdMapping, ...]) -> None:
    mapped = replace(one, user=NamespaceMode.POD, uid_mappings=extents, gid_mappings=extents)
    for options in (one, mapped):
        message = common.namespace_message(options)
        assert common.namespace_options("x", message, enums.SANDBOX_PID_MODES) == options


# -- nothing hostile gets through


@given(st.text())
def test_a_path_that_is_let_through_is_absolute_and_normal(text: str) -> None:
    try:
        path = fields.absolute("x", text)
    except InvalidInput:
        return
    assert path.startswith("/")
    assert not path.startswith("//")
    assert ".." not in path.split("/")
    assert "\0" not in path
    assert fields.absolute("x", path) == path


@given(st.text() | st.lists(st.sampled_from(["..", ".", "", "a"])).map("/".join))
def test_a_log_path_that_is_let_through_stays_inside(text: str) -> None:
    try:
        path = fields.inside("x", text)
    except InvalidInput:
        return
    parts = path.split("/")
    assert not path.startswith("/")
    assert ".." not in parts
    assert "." not in parts
    assert path


@given(st.binary(max_size=200))
def test_any_bytes_are_a_spec_or_an_invalid_input(wire: bytes) -> None:
    from google.protobuf.message import DecodeError

    for message, translate in ((pb.PodSandboxConfig(), sandbox.spec), (pb.ContainerConfig(), container.spec)):
        try:
            message.MergeFromString(wire)
        except DecodeError:
            continue
        try:
            translate(message)  # type: ignore[operator]
        except InvalidInput as error:
            assert error.field.startswith("config.")
