"""Limits of a container that exists, on directories that stand for its cgroups."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Mapping
from pathlib import Path

import pytest

from engines.base import Resources
from forgeone_shim.errors import FailedPrecondition, InternalError, InvalidInput
from forgeone_shim.kernel.cgroups import Mode
from forgeone_shim.kernel.host import Host
from forgeone_shim.limits import updates
from forgeone_shim.limits.resources import limits
from forgeone_shim.limits.updates import Write
from tests.unit.native.conftest import make_host

CGROUP = "/pod/c"
NONE_V1 = "9223372036854771712"
V1 = {
    "cpuset/pod/cpuset.cpus": "0-3",
    "cpuset/pod/c/cpuset.cpus": "0-3",
    "cpuset/pod/c/cpuset.mems": "0",
    "cpu/pod/cpu.cfs_quota_us": "-1",
    "cpu/pod/cpu.cfs_period_us": "100000",
    "cpu/pod/c/cpu.shares": "1024",
    "cpu/pod/c/cpu.cfs_quota_us": "-1",
    "cpu/pod/c/cpu.cfs_period_us": "100000",
    "hugetlb/pod/c/hugetlb.2MB.limit_in_bytes": NONE_V1,
    "memory/pod/c/memory.limit_in_bytes": "67108864",
    "memory/pod/c/memory.memsw.limit_in_bytes": "67108864",
    "memory/pod/c/memory.usage_in_bytes": "1000000",
    "pids/pod/c/pids.max": "max",
}
V2 = {
    "pod/cpuset.cpus.effective": "0-1",
    "pod/c/cpuset.cpus": "",
    "pod/c/cpu.weight": "100",
    "pod/c/cpu.max": "max 100000",
    "pod/c/memory.max": "67108864",
    "pod/c/memory.current": "1000000",
    "pod/c/memory.swap.max": "0",
    "pod/c/memory.high": "max",
    "pod/c/memory.reclaim": "",
    "pod/c/cgroup.procs": "1",
    "pod/c/pids.max": "max",
}


def host_on(root: Path, mode: Mode, files: Mapping[str, str]) -> Host:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    host = make_host(mode, hugepage_sizes=frozenset({"2MB"}))
    mounts = {name: str(root / name) for name in host.cgroups.v1}
    groups = dataclasses.replace(host.cgroups, v1=mounts, unified=str(root) if mode is Mode.V2 else "")
    return dataclasses.replace(host, cgroups=groups)


@pytest.fixture
def v1(tmp_path: Path) -> Host:
    return host_on(tmp_path, Mode.V1, V1)


@pytest.fixture
def v2(tmp_path: Path) -> Host:
    return host_on(tmp_path, Mode.V2, V2)


def planned(host: Host, **resources: object) -> list[tuple[str, str]]:
    writes = updates.plan(Resources(**resources), host, CGROUP)
    return [(write.path.rpartition("/")[2], write.value) for write in writes]


def test_what_is_not_set_or_is_so_already_is_left_alone(v1: Host, v2: Host) -> None:
    assert planned(v1) == planned(v2) == []
    assert planned(v1, cpu_shares=1024, cpuset_cpus="0,1-3", memory_limit=67108864 + 7) == []
    assert planned(v1, hugepages=(("2MB", 2**63), ("1GB", 0))) == []
    assert planned(v2, cpu_quota=-1, cpu_period=100000, memory_limit=67108864) == []


def test_memory_grows_after_memory_and_swap_and_shrinks_before(v1: Host) -> None:
    limit, both = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
    assert planned(v1, memory_limit=1 << 27) == [(both, str(1 << 27)), (limit, str(1 << 27))]
    assert planned(v1, memory_limit=1 << 25) == [(limit, str(1 << 25)), (both, str(1 << 25))]
    assert planned(v1, memory_limit=-1) == [(both, "-1"), (limit, "-1")]
    without_swap = dataclasses.replace(v1, swap_limit=False)
    assert planned(without_swap, memory_limit=1 << 27, memory_swap_limit=1 << 28) == [(limit, str(1 << 27))]


def test_v2_counts_swap_apart_from_memory(v2: Host) -> None:
    found = planned(v2, memory_limit=1 << 27, memory_swap_limit=(1 << 27) + 4096)
    assert found == [("memory.swap.max", "4096"), ("memory.max", str(1 << 27))]
    assert planned(v2, memory_limit=-1) == [("memory.swap.max", "max"), ("memory.max", "max")]


@pytest.mark.parametrize(
    ("quota", "period", "names"),
    [
        (50000, 200000, ["cpu.cfs_period_us", "cpu.cfs_quota_us"]),
        (50000, 50000, ["cpu.cfs_quota_us", "cpu.cfs_period_us"]),
        (50001, 0, ["cpu.cfs_quota_us"]),
        (0, 50000, ["cpu.cfs_period_us"]),
    ],
)
def test_no_moment_asks_for_more_cpu_than_the_old_and_the_new(
    v1: Host, quota: int, period: int, names: list[str]
) -> None:
    assert [name for name, _ in planned(v1, cpu_quota=quota, cpu_period=period)] == names


def test_v2_has_cpu_time_in_one_file_and_shares_as_weight(v2: Host) -> None:
    found = planned(v2, cpu_quota=50000, cpu_shares=262144)
    assert found == [("cpu.weight", "10000"), ("cpu.max", "50000 100000")]
    assert planned(v2, cpu_period=200000) == [("cpu.max", "max 200000")]
    assert (updates.weight(2), updates.weight(1024)) == (1, 39)


def test_a_limit_of_processes_is_of_the_pids_controller(v1: Host, v2: Host) -> None:
    assert planned(v1, pids_limit=10) == planned(v2, pids_limit=10) == [("pids.max", "10")]
    # What somebody says of the file itself goes before it.
    assert planned(v2, pids_limit=10, unified={"pids.max": "5"}) == [("pids.max", "5")]
    assert limits(Resources(pids_limit=10), v1) == {"pids": {"limit": 10}}


@pytest.mark.parametrize(("mode", "cpus"), [(Mode.V1, "2-4"), (Mode.V2, "1-2")])
def test_a_cpuset_outside_the_pods_is_refused_with_both(tmp_path: Path, mode: Mode, cpus: str) -> None:
    host = host_on(tmp_path, mode, V2 if mode is Mode.V2 else V1)
    with pytest.raises(FailedPrecondition, match=rf"cpuset_cpus: {cpus} is not within its pod's 0-"):
        planned(host, cpuset_cpus=cpus)


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"cpu_quota": 999}, "cpu_quota"),
        ({"cpu_period": 1_000_001}, "cpu_period"),
        ({"cpuset_cpus": "3-1"}, "cpuset_cpus"),
        ({"cpuset_mems": "x"}, "cpuset_mems"),
        ({"memory_limit": 4096, "memory_swap_limit": 4095}, "memory_swap_limit"),
        ({"memory_limit": -1, "memory_swap_limit": 4096}, "memory_swap_limit"),
        ({"memory_swap_limit": 4096}, "memory_swap_limit"),
    ],
)
def test_what_can_never_be_is_named(v1: Host, resources: Mapping[str, object], field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        planned(v1, **resources)


def test_unified_keys_are_limits_of_v2_alone(v1: Host, v2: Host) -> None:
    assert planned(v2, unified={"memory.high": "1048576"}) == [("memory.high", "1048576")]
    own_swap = {"memory.swap.max": "8192"}
    assert planned(v2, memory_limit=1 << 26, unified=own_swap) == [("memory.swap.max", "8192")]
    with pytest.raises(FailedPrecondition, match="need cgroup v2"):
        planned(v1, unified={"memory.high": "1"})
    with pytest.raises(InvalidInput, match="is not a limit"):
        planned(v2, unified={"cgroup.procs": "7"})
    with pytest.raises(InvalidInput, match="not a cgroup file"):
        planned(v2, unified={"../memory.high": "7"})


def test_a_controller_the_cgroup_has_not_is_named(v2: Host) -> None:
    with pytest.raises(FailedPrecondition, match=r"no cpuset\.mems \(enable cpuset there\)"):
        planned(v2, cpuset_mems="0")


class Kernel:
    """Takes what it is not told to refuse."""

    def __init__(self, refuse: str = "", code: int = errno.EINVAL) -> None:
        self.refuse, self.code = refuse, code
        self.taken: list[tuple[str, str]] = []

    def put(self, path: str, text: str) -> None:
        name = path.rpartition("/")[2]
        if name == self.refuse:
            raise OSError(self.code, "no")
        self.taken.append((name, text))


def test_a_refused_write_undoes_those_before_it(v1: Host) -> None:
    writes = updates.plan(Resources(cpu_shares=5, cpu_quota=5000, memory_limit=1 << 20), v1, CGROUP)
    kernel = Kernel("memory.limit_in_bytes", errno.EBUSY)
    reason = "memory_limit_in_bytes: 1048576 bytes is below the 1000000 bytes in use"
    with pytest.raises(FailedPrecondition, match=reason), updates.applied(writes, kernel.put):
        pytest.fail("not reached")
    made = [("cpu.shares", "5"), ("cpu.cfs_quota_us", "5000")]
    assert kernel.taken == [*made, ("cpu.cfs_quota_us", "-1"), ("cpu.shares", "1024")]


def test_what_fails_after_the_writes_undoes_them(v1: Host) -> None:
    kernel = Kernel()
    writes = updates.plan(Resources(cpu_shares=5), v1, CGROUP)
    with pytest.raises(KeyError), updates.applied(writes, kernel.put):
        raise KeyError
    assert kernel.taken == [("cpu.shares", "5"), ("cpu.shares", "1024")]


def test_v2_reclaims_first_and_refuses_rather_than_kill(v2: Host) -> None:
    kernel = Kernel()
    writes = updates.plan(Resources(memory_limit=1 << 19), v2, CGROUP)
    reason = f"{1 << 19} bytes is below the 1000000 bytes in use"
    with pytest.raises(FailedPrecondition, match=reason), updates.applied(writes, kernel.put):
        pytest.fail("not reached")
    assert kernel.taken == [("memory.reclaim", str(1000000 - (1 << 19)))]


def test_a_refused_quota_tells_what_the_pod_has(v1: Host) -> None:
    writes = updates.plan(Resources(cpu_quota=5000), v1, CGROUP)
    reason = "a quota of -1 in a period of 100000"
    with pytest.raises(FailedPrecondition, match=reason), updates.applied(writes, Kernel("cpu.cfs_quota_us").put):
        pytest.fail("not reached")


@pytest.mark.parametrize(("code", "error"), [(errno.ENOENT, FailedPrecondition), (errno.EIO, InternalError)])
def test_other_failures_say_where(v1: Host, code: int, error: type[Exception]) -> None:
    write = Write("/x/cpu.shares", "1", "2", "linux.cpu_shares")
    with pytest.raises(error, match=r"cpu\.shares"), updates.applied([write], Kernel("cpu.shares", code).put):
        pytest.fail("not reached")
