"""Id mappings as crun is told of them."""

from __future__ import annotations

import os

import msgspec
import pytest

from engines.base import ContainerSpec, IdMapping, Mount, NamespaceMode, NamespaceOptions, Namespaces, Security, User
from engines.native import checks, conmon, idmaps, spec
from forgeone_shim import binds
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.kernel.host import Host
from forgeone_shim.kernel.procs import Pidfd
from tests.unit.native.conftest import PlanMaker, make_host

MAPPED = (IdMapping(host_id=65536, container_id=0, length=65536),)
OPTIONS = NamespaceOptions(
    pid=NamespaceMode.CONTAINER, user=NamespaceMode.POD, uid_mappings=MAPPED, gid_mappings=MAPPED
)
PATHS = Namespaces(network="/n/net", ipc="/n/ipc", uts="/n/uts", pid="", user="/n/user")
HOSTS = Namespaces(network="/n/net", ipc="/n/ipc", uts="/n/uts", pid="")
REAL = {"containerID": 0, "hostID": 65536, "size": 65536}
NOTHING = {"containerID": 0, "hostID": 0, "size": 0}


def _config(plan: PlanMaker, host: Host, paths: Namespaces = PATHS, **security: object) -> spec.Json:
    made = plan(namespaces=paths, security=Security(namespaces=OPTIONS, **security))  # type: ignore[arg-type]
    found = spec.Gathered(mount_points={})
    return spec.config(made, host, found, lambda _: None)


def test_the_pods_namespace_is_joined_before_all_others(plan: PlanMaker, host: Host) -> None:
    listed = _config(plan, host)["linux"]["namespaces"]
    assert listed[0] == {"type": "user", "path": "/n/user"}


def test_crun_gives_none_of_its_streams_to_the_pods_root_which_may_be_the_hosts_null_device(
    plan: PlanMaker, host: Host
) -> None:
    linux = _config(plan, host)["linux"]
    assert linux["uidMappings"] == linux["gidMappings"] == [NOTHING, REAL]


def test_a_plain_pod_has_no_mappings(plan: PlanMaker, host: Host) -> None:
    made = plan()
    linux = spec.config(made, host, spec.Gathered(mount_points={}), lambda _: None)["linux"]
    assert not {"uidMappings", "gidMappings"} & set(linux)


def test_a_mount_with_the_pods_mappings_does_not_look_like_it_to_crun(plan: PlanMaker, host: Host) -> None:
    """It would take the namespace of a process that may not be in the pod's yet."""
    mount = Mount("/data", "/srv", uid_mappings=MAPPED, gid_mappings=MAPPED)
    assert idmaps.of_mount(mount) == {"uidMappings": [REAL], "gidMappings": [REAL]}
    assert _config(plan, host)["linux"]["uidMappings"] != [REAL]
    assert idmaps.of_mount(Mount("/data", "/srv")) == {}


def test_a_mount_needs_both_mappings() -> None:
    with pytest.raises(InvalidInput, match="gidMappings"):
        binds.resolve((Mount("/data", "/", uid_mappings=MAPPED),))
    with pytest.raises(InvalidInput, match="uidMappings"):
        binds.resolve((Mount("/data", "/", gid_mappings=MAPPED),))


def test_what_is_mounted_below_a_mapped_source_comes_along_unmapped() -> None:
    mount = Mount("/data/", "/srv", readonly=True, uid_mappings=MAPPED, gid_mappings=MAPPED)
    plain = Mount("/other", "/srv")
    points = ["/", "/srv", "/srv/b/c", "/srv/a", "/srv/a", "/srv/a/deeper", "/srvx", "/srv/b/cd"]
    found = list(binds.with_submounts((mount, plain), points))
    assert found == [
        mount,
        Mount("/data/a", "/srv/a"),
        Mount("/data/b/c", "/srv/b/c"),
        Mount("/data/b/cd", "/srv/b/cd"),
        plain,
    ]


def test_recursive_read_only_holds_for_what_comes_along() -> None:
    mount = Mount("/d", "/srv", readonly=True, recursive_read_only=True, uid_mappings=MAPPED, gid_mappings=MAPPED)
    assert list(binds.with_submounts((mount,), ["/srv/a"]))[1] == Mount(
        "/d/a", "/srv/a", readonly=True, recursive_read_only=True
    )


def test_a_pod_on_the_hosts_network_sees_the_hosts_sysfs_read_only(plan: PlanMaker, host: Host) -> None:
    paths = Namespaces(network=None, ipc="/n/ipc", uts=None, pid="", user="/n/user")
    listed = {entry["destination"]: entry for entry in _config(plan, host, paths)["mounts"]}
    assert listed["/sys"]["type"] == "bind"
    assert {"rbind", "rro", "nosuid", "nodev", "noexec"} <= set(listed["/sys"]["options"])
    assert {e["destination"]: e for e in _config(plan, host)["mounts"]}["/sys"]["type"] == "sysfs"


def test_a_privileged_container_gets_none_of_the_hosts_devices(plan: PlanMaker, host: Host) -> None:
    made = plan(namespaces=PATHS, security=Security(namespaces=OPTIONS, privileged=True))
    assert spec.gather(made, host, "").devices == ()
    rules = _config(plan, host, privileged=True)["linux"]["resources"]["devices"]
    assert rules == [{"allow": False, "access": "rwm"}]


def test_who_a_process_is_on_the_host() -> None:
    assert idmaps.owner(User(1000, 5, (6,)), PATHS, OPTIONS) == (66536, 65541)
    assert idmaps.owner(User(100000), HOSTS, NamespaceOptions()) is None
    for who in (User(65536), User(1, 70000), User(1, 1, (1, 70000))):
        with pytest.raises(InvalidInput, match="not mapped"):
            idmaps.owner(who, PATHS, OPTIONS)


def test_a_command_in_the_container_belongs_to_the_same_user(plan: PlanMaker, host: Host) -> None:
    made = plan(namespaces=PATHS, security=Security(namespaces=OPTIONS))
    config = spec.config(made, host, spec.Gathered(mount_points={}), lambda _: None)
    assert idmaps.exec_owner(msgspec.json.encode(config)) == (65536, 65536)
    plain = spec.config(plan(), host, spec.Gathered(mount_points={}), lambda _: None)
    assert idmaps.exec_owner(msgspec.json.encode(plain)) is None
    mapped = (Mount("/d", "/srv", uid_mappings=MAPPED, gid_mappings=MAPPED),)
    found = spec.Gathered(mounts=mapped, mount_points={})
    volume = spec.config(plan(spec=ContainerSpec(name="c", mounts=mapped)), host, found, lambda _: None)
    assert idmaps.exec_owner(msgspec.json.encode(volume)) is None


def test_only_pipes_are_given_away() -> None:
    with Pidfd(os.getpid()) as held:
        # Its standard streams are whatever the tests run with: to whom they belong already, they may be given.
        idmaps.give_pipes(held, (-1, -1))


def test_a_file_system_that_cannot_be_mapped_is_named() -> None:
    error = conmon.create_error("c1", "error: mount_setattr `/srv/nfs`: Invalid argument")
    assert isinstance(error, FailedPrecondition)
    assert "/srv/nfs" in str(error)
    assert "Invalid argument" in str(error)


def test_a_host_without_user_namespaces_is_told_what_that_means() -> None:
    def told(host: Host) -> bool:
        found = checks.problems("/bin/true", "/bin/true", "/bin/true", host)
        return any("hostUsers" in problem.why and not problem.fatal for problem in found)

    assert told(make_host())
    assert not told(make_host(user_namespaces=True))
