"""What policies are told of a pod, a container and an image."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.base import (
    ContainerSpec,
    Device,
    Mount,
    NamespaceMode,
    NamespaceOptions,
    PortMapping,
    Profile,
    ProfileType,
    Resources,
    SandboxSpec,
    Security,
    User,
)
from engines.native.capabilities import sets
from forgeone_shim.attestation.evidence import Endorsement
from forgeone_shim.kernel.capabilities import DEFAULT, KNOWN
from forgeone_shim.registry.model import Image, ImageConfig
from forgeone_shim.runtime import facts
from forgeone_shim.runtime.facts import Host
from tests.unit.runtime.test_guard import CONTAINER

PLAIN = SandboxSpec(name="p", uid="u", namespace="n")
BASE = sorted(name.removeprefix("CAP_") for name in DEFAULT)
ALL = [name.removeprefix("CAP_") for name in KNOWN]
NODE = NamespaceMode.NODE


@pytest.mark.parametrize(
    ("security", "held"),
    [
        (Security(), BASE),
        (Security(drop_capabilities=("ALL",)), []),
        (Security(drop_capabilities=("all",), add_capabilities=("cap_kill",)), ["KILL"]),
        (Security(drop_capabilities=("KILL",)), [name for name in BASE if name != "KILL"]),
        (Security(add_capabilities=("SYS_TIME",)), sorted([*BASE, "SYS_TIME"])),
        (Security(add_ambient_capabilities=("CAP_SYS_TIME",)), sorted([*BASE, "SYS_TIME"])),
        (Security(add_capabilities=("ALL",)), sorted(ALL)),
        (Security(add_capabilities=("ALL",), drop_capabilities=("SYS_ADMIN",)), sorted({*ALL} - {"SYS_ADMIN"})),
        (Security(add_capabilities=("ALL",), drop_capabilities=("ALL",)), []),
        (Security(add_ambient_capabilities=("ALL",), drop_capabilities=("ALL",)), sorted(ALL)),
        (Security(privileged=True, drop_capabilities=("ALL",)), ALL),
    ],
)
def test_capabilities_are_all_that_its_processes_could_have(security: Security, held: list[str]) -> None:
    assert list(facts.held(security, DEFAULT)) == held


@pytest.mark.parametrize(
    ("limits", "thousandths"),
    [
        (Resources(), 0),
        (Resources(cpu_quota=-1, cpu_period=100_000), 0),
        (Resources(cpu_quota=150_000, cpu_period=100_000), 1500),
        (Resources(cpu_quota=50_000), 500),
        (Resources(cpu_quota=50_001), 501),
        (Resources(unified={"cpu.max": "50000 100000"}), 500),
        (Resources(unified={"cpu.max": "50000"}), 500),
        (Resources(unified={"cpu.max": "max 100000"}), 0),
        (Resources(unified={"cpu.max": "1 0"}), 0),
        (Resources(unified={"cpu.max": "9" * 5000}), 0),
        (Resources(unified={"cpu.max": "9" * 400 + " 1"}), 0),
    ],
)
def test_processor_time_is_told_in_thousandths(limits: Resources, thousandths: int) -> None:
    assert facts.cpu(limits) == thousandths


@pytest.mark.parametrize(
    ("text", "bytes_"), [("67108864", 67108864), (" 7\n", 7), ("max", 0), ("9" * 5000, 0), ("\u0663", 0), ("\u00b2", 0)]
)
def test_a_limit_by_the_name_of_its_file_is_a_number_or_none(text: str, bytes_: int) -> None:
    assert facts.update(Resources(unified={"memory.max": text})).memory == bytes_


def test_what_either_shares_of_the_host_counts() -> None:
    pod = SandboxSpec(
        name="p",
        uid="u",
        namespace="n",
        security=Security(namespaces=NamespaceOptions(network=NODE), privileged=True),
        port_mappings=(PortMapping(80, 8080), PortMapping(81, 0)),
    )
    told = facts.pod(pod, ("native", "wasm", "native"), Security(namespaces=NamespaceOptions(pid=NODE)))
    assert (told.host_network, told.host_pid, told.host_ipc, told.privileged) == (True, True, False, True)
    assert (told.host_ports, told.engines, told.user_namespace) == (("8080/tcp",), ("native", "wasm"), False)


def test_a_container_is_told_as_it_is_or_will_be(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    volume = "/k/pods/u/volumes/kubernetes.io~secret/s"
    record = replace(
        CONTAINER,
        spec=ContainerSpec(
            name="main",
            envs=(("TOKEN", "secret"),),
            mounts=(
                Mount("/a", str(tmp_path / "link"), readonly=True),
                Mount("/b", volume),
                Mount("/c", "", image="i"),
            ),
            resources=Resources(memory_limit=7, unified={"pids.max": "max"}),
            security=Security(seccomp=Profile(ProfileType.RUNTIME_DEFAULT)),
        ),
        user=User(uid=7, gid=8),
        argv=("run",),
    )
    told = facts.container(record, None, pod=PLAIN, host=Host(capabilities=DEFAULT, kubelet="/k"))
    assert (told.user, told.group, told.argv, told.memory, told.pids) == (7, 8, ("run",), 7, 0)
    assert (told.seccomp, told.apparmor) == ("runtime-default", "unconfined")
    # Rules may look for a variable; what is in it is nobody's business.
    assert told.env == ("TOKEN",)
    assert [(one.source, one.kind, one.readonly) for one in told.mounts] == [
        (str(tmp_path / "real"), "host-path", True),
        (volume, "secret", False),
        ("i", "image", True),
    ]
    wasm = facts.container(
        replace(record, engine="wasm"), None, pod=PLAIN, host=Host(capabilities=DEFAULT, kubelet="/k")
    )
    assert wasm.capabilities == ()


def test_devices_are_told_whoever_asked_for_them() -> None:
    pod = replace(PLAIN, annotations={"forgeone.dev/devices": "/dev/fuse, /dev/net/tun:/dev/tun:rw"})
    spec = ContainerSpec(
        name="main",
        devices=(Device("/dev/x", "/dev/y"),),
        cdi_devices=("vendor.com/gpu=0",),
        annotations={"cdi.k8s.io/plugin": "vendor.com/gpu=1"},
    )
    told = facts.container(replace(CONTAINER, spec=spec), None, pod=pod, host=Host())
    assert told.devices == ("/dev/y", "/dev/fuse", "/dev/net/tun", "vendor.com/gpu=0", "vendor.com/gpu=1")


@pytest.mark.parametrize(
    ("masked", "readonly", "engine", "unmasked"),
    [
        (("/proc/kcore",), ("/proc/sys",), "native", False),
        ((), ("/proc/sys",), "native", True),
        (("/proc/kcore",), (), "native", True),
        ((), (), "wasm", False),
    ],
)
def test_what_hides_nothing_of_the_kernels_files_is_told(
    masked: tuple[str, ...], readonly: tuple[str, ...], engine: str, unmasked: bool
) -> None:
    spec = ContainerSpec(name="main", security=Security(masked_paths=masked, readonly_paths=readonly))
    told = facts.container(replace(CONTAINER, engine=engine, spec=spec), None, pod=PLAIN, host=Host())
    assert told.unmasked is unmasked


def test_a_volume_that_is_a_device_is_a_volume() -> None:
    volume = "/k/pods/u/volumeDevices/kubernetes.io~csi/pvc-1"
    spec = ContainerSpec(name="main", devices=(Device("/dev/xvda", volume, "r"), Device("/dev/sda", "/dev/sda")))
    told = facts.container(replace(CONTAINER, spec=spec), None, pod=PLAIN, host=Host(kubelet="/k"))
    assert [(one.destination, one.source, one.kind, one.readonly) for one in told.mounts] == [
        ("/dev/xvda", volume, "csi", True)
    ]
    assert told.devices == (volume, "/dev/sda")


LOCAL, DEFAULTS, NONE = (
    Profile(kind) for kind in (ProfileType.LOCALHOST, ProfileType.RUNTIME_DEFAULT, ProfileType.UNCONFINED)
)


@pytest.mark.parametrize(
    ("security", "engine", "confined"),
    [
        (Security(), "native", ("unconfined", "runtime-default")),
        (Security(seccomp=DEFAULTS, apparmor=DEFAULTS), "native", ("runtime-default", "runtime-default")),
        (Security(seccomp=LOCAL, apparmor=LOCAL), "native", ("localhost", "localhost")),
        (Security(seccomp=NONE, apparmor=NONE), "native", ("unconfined", "unconfined")),
        (Security(privileged=True), "native", ("unconfined", "unconfined")),
        (Security(privileged=True, seccomp=DEFAULTS, apparmor=DEFAULTS), "native", ("unconfined", "unconfined")),
        (Security(privileged=True, seccomp=LOCAL, apparmor=LOCAL), "native", ("unconfined", "localhost")),
        (Security(), "wasm", ("runtime-default", "runtime-default")),
        (Security(seccomp=NONE, apparmor=NONE), "wasm", ("runtime-default", "unconfined")),
        (Security(seccomp=LOCAL), "wasm", ("localhost", "runtime-default")),
    ],
)
def test_how_it_is_confined_is_what_its_engine_makes_of_it(
    security: Security, engine: str, confined: tuple[str, str]
) -> None:
    record = replace(CONTAINER, engine=engine, spec=ContainerSpec(name="main", security=security))
    told = facts.container(record, None, pod=PLAIN, host=Host(apparmor=True))
    assert (told.seccomp, told.apparmor) == confined


def test_what_its_engine_has_made_of_it_counts_for_more_than_what_was_asked_for() -> None:
    genome: Any = SimpleNamespace(capabilities=("CAP_KILL",), seccomp="", apparmor="")
    record = replace(CONTAINER, genome=genome, spec=ContainerSpec(name="main", security=Security(seccomp=DEFAULTS)))
    told = facts.container(record, None, pod=PLAIN, host=Host(capabilities=DEFAULT, apparmor=True))
    assert (told.capabilities, told.seccomp, told.apparmor) == (("KILL",), "unconfined", "unconfined")


@pytest.mark.parametrize(
    ("security", "config", "user"),
    [
        (Security(run_as_user=7), ImageConfig(user="8"), 7),
        (Security(), ImageConfig(user="8:9"), 8),
        (Security(), ImageConfig(user="name"), 0),
        (Security(run_as_username="name"), ImageConfig(user="8"), 0),
    ],
)
def test_before_its_files_are_there_a_name_may_be_roots(security: Security, config: ImageConfig, user: int) -> None:
    record = replace(CONTAINER, spec=ContainerSpec(name="main", security=security))
    found = facts.container(record, Image(id="i", config=config), pod=PLAIN, host=Host())
    assert found.user == user


A, B = (f"sha256:{digit * 64}" for digit in "ab")


@pytest.mark.parametrize(
    ("name", "repository", "digest"),
    [
        ("app:1", "docker.io/library/app", A),
        (f"quay.io/org/app@{B}", "quay.io/org/app", B),
        # By its id it has the first of its names.
        ("sha256:" + "1" * 64, "docker.io/library/app", A),
        ("1" * 64, "docker.io/library/app", A),
        # A name that others have is not its name.
        ("trusted/app:1", "", "sha256:" + "c" * 64),
    ],
)
def test_an_image_has_the_repository_that_the_pod_calls_it_by(name: str, repository: str, digest: str) -> None:
    image = Image(
        id="sha256:" + "1" * 64,
        repo_tags=("docker.io/library/app:1",),
        repo_digests=(f"docker.io/library/app@{A}", f"quay.io/org/app@{B}"),
        manifest_digest="sha256:" + "c" * 64,
    )
    told = facts.image(image, name, Endorsement(("key",)))
    assert (told.repository, told.digest, told.verified_by, told.name) == (repository, digest, ("key",), name)


_ASKED = ((), ("ALL",), ("KILL",), ("CAP_SYS_TIME", "ALL"), ("sys_time",))


def test_capabilities_are_told_as_the_engine_gives_them() -> None:
    for add, drop, ambient, privileged in itertools.product(_ASKED, _ASKED, _ASKED, (False, True)):
        security = Security(
            add_capabilities=add, drop_capabilities=drop, add_ambient_capabilities=ambient, privileged=privileged
        )
        given = sets(security, frozenset(KNOWN))["bounding"]
        assert {*facts.held(security, DEFAULT)} == {name.removeprefix("CAP_") for name in given}
