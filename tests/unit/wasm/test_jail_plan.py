"""From a container's plan to its jail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from engines.base import (
    ContainerPlan,
    IdMapping,
    Mount,
    NamespaceMode,
    NamespaceOptions,
    Namespaces,
    Process,
    Profile,
    ProfileType,
    Propagation,
    Resources,
    Security,
    SELinuxLabels,
    User,
)
from engines.wasm.jail import Gathered, JailPlan, plan_jail
from engines.wasm.jail.plan import Extent, Filter
from forgeone_shim.binds import MountPoint
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.kernel import trees
from forgeone_shim.kernel.capabilities import KNOWN
from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode
from forgeone_shim.kernel.host import Host
from tests.unit.wasm.planning import plan

V1 = CgroupHost(
    mode=Mode.V1, driver=Driver.CGROUPFS, v1={"memory": "/cg/memory", "cpu": "/cg/cpu", "cpuacct": "/cg/cpu"}
)
V2 = CgroupHost(mode=Mode.V2, driver=Driver.SYSTEMD, unified="/cg")
FILTERS = (Filter(b"12345678"),)
MAPS = (IdMapping(65536, 0, 1000),)
IN_USERNS = NamespaceOptions(user=NamespaceMode.POD, uid_mappings=MAPS, gid_mappings=MAPS)
USERNS = Namespaces(network="/n", ipc="/i", uts="/u", pid="", user="/user")


def made(container: ContainerPlan, host: CgroupHost = V1, **facts: Any) -> JailPlan:
    mounts = facts.pop("mounts", ())
    found = Gathered(mounts=mounts, points=facts.pop("points", {}), filters=FILTERS, landlock=7)
    return plan_jail(container, Host(cgroups=host, capabilities=frozenset(KNOWN), **facts), found)


def secured(**security: Any) -> ContainerPlan:
    return plan("x", security=Security(**security))


def who(user: User, **changes: Any) -> ContainerPlan:
    return plan(process=Process(args=("x",), env=(), cwd="/", user=user), **changes)


def test_it_travels() -> None:
    jail = made(plan("x"), mounts=(Mount("/data", "/srv"),))
    assert msgspec.json.decode(msgspec.json.encode(jail), type=JailPlan) == jail


def test_a_process_writes_itself_into_each_hierarchy_once() -> None:
    assert made(plan("x", cgroup="/pod/c")).cgroups == ("/cg/memory/pod/c", "/cg/cpu/pod/c")
    assert made(plan("x", cgroup="pod.slice:forgeone:c"), V2).cgroups == ("/cg/pod.slice/forgeone-c.scope/container",)


def test_the_user_is_taken_over() -> None:
    jail = made(who(User(7, 8, (9, 10))))
    assert (jail.uid, jail.gid, jail.groups) == (7, 8, (9, 10))
    assert jail.filters == FILTERS and jail.landlock == 7


def test_a_score_goes_as_low_as_the_host_lets_it() -> None:
    asked = plan("x", resources=Resources(oom_score_adj=-900))
    assert made(asked).oom_score_adj == -900
    found = Gathered(points={}, filters=FILTERS)
    weak = Host(cgroups=V1, capabilities=frozenset(), oom_score_adj=-5)
    assert plan_jail(asked, weak, found).oom_score_adj == -5


def test_mounts_are_in_order_and_the_caller_s_win() -> None:
    pods = (Mount("/etc/hosts", "/pod/hosts"), Mount("/dev/shm", "/pod/shm"))
    asked = (Mount("/a/b/c", "/three"), Mount("/etc//hosts", "/mine"), Mount("/a/../a", "/one"))
    jail = made(plan("x", pod_mounts=pods), mounts=asked)
    assert [(bind.destination, bind.source) for bind in jail.binds] == [
        ("/a", "/one"),
        ("/dev/shm", "/pod/shm"),
        ("/etc/hosts", "/mine"),
        ("/a/b/c", "/three"),
    ]
    assert jail.dev


def test_a_caller_s_own_dev_is_the_only_one() -> None:
    assert not made(plan("x"), mounts=(Mount("/dev/", "/srv"),)).dev


@pytest.mark.parametrize(
    ("mount", "wanted"),
    [
        (Mount("/d", "/s"), (0, 0, 0)),
        (Mount("/d", "/s", readonly=True), (trees.RDONLY, 0, 0)),
        (Mount("/d", "/s", readonly=True, recursive_read_only=True), (0, 0, trees.RDONLY)),
        (Mount("/d", "/s", options=("noatime", "noexec", "nodev")), (trees.NOATIME, trees.ATIME, 0)),
        (Mount("/d", "/s", options=("relatime",)), (0, trees.ATIME, 0)),
        (Mount("/d", "/s", readonly=True, options=("nodiratime",)), (trees.RDONLY | trees.NODIRATIME, 0, 0)),
    ],
)
def test_a_mount_has_the_attributes_asked_for(mount: Mount, wanted: tuple[int, int, int]) -> None:
    (bind,) = made(plan("x"), mounts=(mount,)).binds
    assert (bind.attributes, bind.clear, bind.below) == wanted


def test_propagation_needs_a_mount_that_passes_something_on() -> None:
    mount = Mount("/d", "/s", propagation=Propagation.HOST_TO_CONTAINER)
    shared = {"/s": MountPoint("/", frozenset({"shared"}))}
    (bind,) = made(plan("x"), mounts=(mount,), points=shared).binds
    assert bind.propagation == "rslave"
    with pytest.raises(FailedPrecondition, match="shared"):
        made(plan("x"), mounts=(mount,), points={"/s": MountPoint("/", frozenset())})


def test_a_mount_mapped_as_the_pod_is_has_the_pod_s_namespace() -> None:
    mine = (IdMapping(70000, 0, 5),)
    mounts = (
        Mount("/a", "/s", uid_mappings=MAPS, gid_mappings=MAPS),
        Mount("/b", "/s", uid_mappings=mine, gid_mappings=MAPS),
    )
    pod = plan("x", namespaces=USERNS, security=Security(namespaces=IN_USERNS))
    first, second = made(pod, mounts=mounts).binds
    assert (first.owners, first.uids) == ("/user", ())
    assert (second.owners, second.uids, second.gids) == ("", (Extent(0, 70000, 5),), (Extent(0, 65536, 1000),))


def test_in_a_user_namespace_what_is_made_belongs_to_its_root() -> None:
    jail = made(who(User(5, 6), namespaces=USERNS, security=Security(namespaces=IN_USERNS)))
    assert (jail.user, jail.root, jail.uid) == ("/user", (65536, 65536), 5)


@pytest.mark.parametrize("user", [User(1000), User(0, 1000), User(0, 0, (5, 70000))])
def test_an_id_that_the_pod_does_not_have_is_refused(user: User) -> None:
    with pytest.raises(InvalidInput, match="not mapped"):
        made(who(user, namespaces=USERNS, security=Security(namespaces=IN_USERNS)))


def test_a_user_namespace_of_the_container_s_own_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="user namespace"):
        made(plan("x", namespaces=replace(USERNS, user="")))


def test_paths_of_a_proc_that_is_not_there_need_no_mask() -> None:
    asked = secured(masked_paths=("/proc/kcore", "/secret"), readonly_paths=("/sys/fs",))
    jail = made(asked)
    assert (jail.masked, jail.read_only_paths) == (("/secret",), ())
    for brings in ("/proc", "/proc/", "/", "/sys/kernel"):
        jail = made(asked, mounts=(Mount(brings, "/s"),))
        assert (jail.masked, jail.read_only_paths) == (("/proc/kcore", "/secret"), ("/sys/fs",)), brings


@pytest.mark.parametrize("field", ["masked_paths", "readonly_paths"])
def test_a_relative_path_hides_nothing(field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        made(secured(**{field: ("proc",)}))


@pytest.mark.parametrize(("given", "taken"), [("", "/"), ("/a/b", "/a/b")])
def test_the_working_directory(given: str, taken: str) -> None:
    assert made(plan("x", cwd=given)).cwd == taken


def test_a_relative_working_directory_is_refused() -> None:
    with pytest.raises(InvalidInput, match="working_dir"):
        made(plan("x", cwd="a"))


def test_labels() -> None:
    labelled = made(plan("x", selinux=SELinuxLabels(process="u:r:t:s0", mount="u:o:f:s0")))
    assert (labelled.selinux, labelled.mount_label) == ("u:r:t:s0", "u:o:f:s0")
    asked = secured(apparmor=Profile(ProfileType.LOCALHOST, "localhost/mine"))
    assert made(asked, apparmor=True).apparmor == "mine"
    assert made(secured(apparmor=Profile(ProfileType.RUNTIME_DEFAULT))).apparmor == ""
    with pytest.raises(FailedPrecondition, match="no AppArmor"):
        made(asked)


@pytest.mark.parametrize("name", ["", "a\nb", "a\0"])
def test_what_is_no_apparmor_profile_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="apparmor"):
        made(secured(apparmor=Profile(ProfileType.LOCALHOST, name)), apparmor=True)
