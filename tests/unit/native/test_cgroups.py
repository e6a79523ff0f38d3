from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.errors import ForgeError, InvalidInput
from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel.cgroups import (
    CgroupHost,
    Driver,
    Mode,
    check_parent,
    parse_mounts,
    plain,
    relative,
    slice_name,
    slice_path,
)

V2 = "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    "29 1 0:25 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"
    "30 29 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    "31 29 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 29 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
    "33 29 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def host(mode: Mode = Mode.HYBRID, driver: Driver = Driver.CGROUPFS) -> CgroupHost:
    v1, unified = parse_mounts(V2 if mode is Mode.V2 else HYBRID)
    return CgroupHost(mode=mode, driver=driver, v1=v1, unified=unified, v2_controllers=frozenset({"memory"}))


def test_mounts_of_a_v2_host_are_read() -> None:
    assert parse_mounts(V2) == ({}, "/sys/fs/cgroup")


def test_joint_hierarchies_are_named_by_each_controller_and_counted_once() -> None:
    found = host()
    assert found.v1["cpu"] == found.v1["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert found.v1["name=systemd"] == "/sys/fs/cgroup/systemd"
    assert len(found.hierarchies) == 4
    assert found.paths("/a/b")[0] == "/sys/fs/cgroup/cpu,cpuacct/a/b"


def test_a_controller_s_directory_is_on_the_one_v2_mount_or_its_own() -> None:
    assert host(Mode.V2).directory("memory", "/a") == "/sys/fs/cgroup/a"
    assert host().directory("memory", "/a") == "/sys/fs/cgroup/memory/a"
    assert host().directory("pids", "/a") is None
    assert host().has("memory")
    assert not host().has("hugetlb")


@pytest.mark.parametrize(
    ("cgroup", "path"),
    [
        ("/kubepods/pod1/c", "/kubepods/pod1/c"),
        ("kubepods//pod1/", "/kubepods/pod1"),
        ("/", ""),
        ("", ""),
        ("kubepods-burstable-podx.slice:forgeone:abc",
         "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice/forgeone-abc.scope"),
        ("a-b.slice", "/a.slice/a-b.slice"),
        ("-.slice:forgeone:x", "/forgeone-x.scope"),
    ],
)  # fmt: skip
def test_a_cgroup_s_path_is_where_its_driver_puts_it(cgroup: str, path: str) -> None:
    assert relative(cgroup) == path


def test_a_container_is_a_directory_or_a_scope_of_its_pod() -> None:
    assert host().container("/kubepods/pod1", "c") == "/kubepods/pod1/c"
    assert (
        host(driver=Driver.SYSTEMD).container("/kubepods.slice/kubepods-podx.slice", "c")
        == "kubepods-podx.slice:forgeone:c"
    )
    assert slice_name("/forgeone") == "forgeone.slice"
    assert slice_name("") == "-.slice"


@pytest.mark.parametrize(
    ("mode", "cgroup", "directory"),
    [
        (Mode.V2, "a.slice:forgeone:c", "/sys/fs/cgroup/a.slice/forgeone-c.scope/container"),
        (Mode.V2, "a.slice", "/sys/fs/cgroup/a.slice"),
        (Mode.V2, "/a.slice/forgeone-c.scope/container", "/sys/fs/cgroup/a.slice/forgeone-c.scope/container"),
        (Mode.HYBRID, "a.slice:forgeone:c", "/sys/fs/cgroup/memory/a.slice/forgeone-c.scope"),
    ],
)
def test_on_v2_a_container_is_one_below_the_scope_that_is_removed_with_it(
    mode: Mode, cgroup: str, directory: str
) -> None:
    found = host(mode, Driver.SYSTEMD)
    assert found.directory("memory", cgroup) == directory
    assert directory in found.paths(cgroup) or directory.removesuffix("/container") in found.paths(cgroup)
    assert not any(path.endswith(".scope/container") for path in found.paths("a.slice:forgeone:c"))


def test_the_pods_cgroup_is_the_slice_or_the_directory_above() -> None:
    assert cgroups.parent("a-b.slice:forgeone:c") == "a-b.slice"
    assert cgroups.parent("/kubepods/pod1/c") == "/kubepods/pod1"


@pytest.mark.parametrize(
    ("driver", "parent"),
    [
        (Driver.CGROUPFS, "/kubepods/burstable/pod1"),
        (Driver.CGROUPFS, "kubepods"),
        (Driver.CGROUPFS, "/system.slice/mine"),
        (Driver.SYSTEMD, "kubepods-burstable-podx.slice"),
        (Driver.SYSTEMD, "/kubepods.slice/kubepods-podx.slice"),
    ],
)
def test_a_pod_s_parent_is_of_its_driver_s_form(driver: Driver, parent: str) -> None:
    check_parent(driver, parent)


@pytest.mark.parametrize(
    ("driver", "parent", "why"),
    [
        (Driver.CGROUPFS, "kubepods-podx.slice", "is a slice, and the cgroup driver is cgroupfs"),
        (Driver.SYSTEMD, "/kubepods/burstable/pod1", "is no slice, and the cgroup driver is systemd"),
        (Driver.SYSTEMD, "a--b.slice", "is not a slice name"),
        (Driver.SYSTEMD, "/x/a--b.slice", "is not a slice name"),
        (Driver.CGROUPFS, "/a/../../b", "is not a plain path"),
        (Driver.SYSTEMD, "/a/../b.slice", "is not a plain path"),
        (Driver.CGROUPFS, "a:b", "is not SLICE:PREFIX:NAME"),
    ],
)
def test_a_parent_that_the_other_driver_makes_is_refused(driver: Driver, parent: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        check_parent(driver, parent)


@pytest.mark.parametrize("bad", ["/a/../b", "..", "./a", "/a\0", "/a\nb"])
def test_a_cgroup_cannot_climb_out(bad: str) -> None:
    with pytest.raises(InvalidInput):
        plain(bad)


@pytest.mark.parametrize("bad", ["a--b.slice", "-a.slice", "a/b.slice", "nosuffix"])
def test_a_slice_has_a_name_systemd_takes(bad: str) -> None:
    with pytest.raises(InvalidInput):
        slice_path(bad)


@given(st.text(max_size=40))
def test_whatever_is_asked_stays_below_the_mount(cgroup: str) -> None:
    try:
        found = relative(cgroup)
    except ForgeError:
        return
    assert found == "" or found.startswith("/")
    assert not {".", ".."} & set(found.split("/"))


def test_an_unknown_driver_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cgroup_driver"):
        cgroups.detect("fancy")


def v2_at(root: Path) -> CgroupHost:
    return CgroupHost(mode=Mode.V2, driver=Driver.CGROUPFS, unified=str(root))


def test_oom_kills_are_counted_and_a_gone_cgroup_has_none(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert cgroups.oom_kills(v2_at(tmp_path), "/c") == 2
    assert cgroups.oom_kills(v2_at(tmp_path), "/gone") == 0
    v1 = CgroupHost(mode=Mode.V1, driver=Driver.CGROUPFS, v1={"memory": str(tmp_path)})
    (tmp_path / "c" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert cgroups.oom_kills(v1, "/c") == 1


def test_processes_of_a_whole_tree_are_listed(tmp_path: Path) -> None:
    (tmp_path / "c" / "sub").mkdir(parents=True)
    (tmp_path / "c" / "cgroup.procs").write_text("1\n2\n")
    (tmp_path / "c" / "sub" / "cgroup.procs").write_text("3\n")
    assert sorted(cgroups.processes(v2_at(tmp_path), "/c")) == [1, 2, 3]
    assert cgroups.processes(v2_at(tmp_path), "/gone") == []


def test_removing_goes_from_the_leaves_up_and_may_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "c" / "a" / "b").mkdir(parents=True)
    cgroups.remove_tree(str(tmp_path / "c"))
    cgroups.remove_tree(str(tmp_path / "c"))
    assert list(tmp_path.iterdir()) == []


def test_the_root_is_never_killed_or_removed(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("1\n")
    assert cgroups.kill_all(v2_at(tmp_path), "/", 9)
    cgroups.remove(v2_at(tmp_path), "/")
    assert tmp_path.is_dir()


def test_warming_leaves_this_process_where_it_is() -> None:
    before = Path("/proc/self/cgroup").read_text()
    cgroups.warm(cgroups.detect("cgroupfs"))
    assert Path("/proc/self/cgroup").read_text() == before
