"""Which keys of cgroup v2 a caller may set by name."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import Resources
from forgeone_shim.errors import FailedPrecondition, ForgeError, InvalidInput
from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode
from forgeone_shim.limits import unified

V2 = CgroupHost(
    mode=Mode.V2,
    driver=Driver.CGROUPFS,
    unified="/sys/fs/cgroup",
    v2_controllers=frozenset({"cpu", "cpuset", "io", "memory", "hugetlb", "pids"}),
)


def test_limits_go_through_as_they_are() -> None:
    keys = {"memory.high": "100M", "io.max": "8:0 rbps=1", "memory.oom.group": "1", "cgroup.max.depth": "3"}
    assert unified.check(Resources(unified=keys, memory_limit=1 << 30), V2) == keys


@pytest.mark.parametrize(
    "key",
    [
        *("cgroup.procs", "cgroup.kill", "cgroup.freeze", "cgroup.subtree_control", "cgroup.type", "memory/max"),
        *("/memory.max", "../memory.max", "memory..max", "memory", "", "memory.max/../cgroup.kill", "Memory.max"),
        *("memory.max\n", ".max", "cpuset.cpus.partition", "cpuset.cpus.exclusive"),
    ],
)
def test_what_is_no_limit_of_the_cgroup_is_refused(key: str) -> None:
    with pytest.raises(InvalidInput):
        unified.check(Resources(unified={key: "1"}), V2)


@pytest.mark.parametrize("value", ["", " ", "1\0"])
def test_a_value_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(InvalidInput, match=r"memory\.high"):
        unified.check(Resources(unified={"memory.high": value}), V2)


def test_a_controller_the_host_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(
        FailedPrecondition, match=r"unified\[rdma.max\]: .* 'rdma'; it has cpu, cpuset, hugetlb, io, mem"
    ):
        unified.check(Resources(unified={"rdma.max": "1"}), V2)


@pytest.mark.parametrize(
    ("typed", "key", "other"),
    [
        (Resources(memory_limit=100), "memory.max", "101"),
        (Resources(memory_limit=-1), "memory.max", "101"),
        (Resources(memory_limit=100, memory_swap_limit=150), "memory.swap.max", "51"),
        (Resources(cpu_quota=1000, cpu_period=5000), "cpu.max", "1000 6000"),
        (Resources(cpu_quota=1000), "cpu.max", "max"),
        (Resources(cpu_shares=2), "cpu.weight", "1"),
        (Resources(cpuset_cpus="0-1"), "cpuset.cpus", "0"),
        (Resources(hugepages=(("2MB", 5),)), "hugetlb.2MB.max", "6"),
    ],
)
def test_a_key_that_contradicts_a_field_is_refused(typed: Resources, key: str, other: str) -> None:
    with pytest.raises(InvalidInput, match=r"contradicts linux\.resources"):
        unified.check(dataclasses.replace(typed, unified={key: other}), V2)


@pytest.mark.parametrize(
    ("typed", "key", "same"),
    [
        (Resources(memory_limit=100), "memory.max", "100"),
        (Resources(memory_limit=-1), "memory.max", "max"),
        (Resources(memory_limit=100, memory_swap_limit=150), "memory.swap.max", "50"),
        (Resources(cpu_quota=1000, cpu_period=5000), "cpu.max", "1000  5000"),
        (Resources(cpu_quota=-1), "cpu.max", "max"),
    ],
)
def test_a_key_that_says_the_same_is_let_through(typed: Resources, key: str, same: str) -> None:
    assert unified.check(dataclasses.replace(typed, unified={key: same}), V2) == {key: same}


_NEARLY = st.from_regex(
    r"(memory|cpu|cpuset|cgroup|io|\.\.|)[./]{1,2}(max|procs|kill|cpus|depth|[a-z./]{1,9})(\.[a-z]{1,9})?",
    fullmatch=True,
)


@given(st.dictionaries(st.text(max_size=30) | _NEARLY, st.text(max_size=8), max_size=3))
def test_nothing_that_leaves_the_cgroup_gets_through(keys: dict[str, str]) -> None:
    try:
        found = unified.check(Resources(unified=keys), V2)
    except ForgeError:
        return
    known = V2.v2_controllers | {"cgroup"}
    assert all("/" not in key and ".." not in key and key.split(".")[0] in known for key in found)
    assert not {"cgroup.procs", "cgroup.kill", "cpuset.cpus.partition", "cpuset.cpus.exclusive"} & set(found)
