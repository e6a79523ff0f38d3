"""Control groups that are made without another program's help, in the kernel's own hierarchies."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import BlockIO, Resources
from forgeone_shim.deadline import NEVER
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel import host as hosts
from forgeone_shim.kernel.cgroups import CgroupHost, Mode
from forgeone_shim.kernel.host import Host
from forgeone_shim.limits import groups

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture(scope="module")
def host() -> Host:
    return hosts.read("cgroupfs")


@pytest.fixture
def pod(host: Host) -> Iterator[str]:
    parent = f"/forgeone-test-groups-{os.getpid()}"
    yield parent
    left = [path for path in host.cgroups.paths(parent) if any(Path(path).glob("*/"))]
    cgroups.remove(host.cgroups, parent)
    assert not left, "a container's group was left behind"


def read(host: Host, controller: str, cgroup: str, name: str) -> str:
    directory = host.cgroups.directory(controller, cgroup)
    return Path(directory or "", name).read_text().strip()


V1_FILES = {
    "memory": {"memory.limit_in_bytes": str(64 * MIB)},
    "cpu": {"cpu.cfs_quota_us": "50000", "cpu.shares": "512"},
}
V2_FILES = {"memory": {"memory.max": str(64 * MIB)}, "cpu": {"cpu.max": "50000 100000", "cpu.weight": "20"}}


def test_a_group_is_made_with_its_limits_and_takes_a_process(host: Host, pod: str) -> None:
    cgroup, v2 = f"{pod}/c", host.cgroups.mode is Mode.V2
    asked = Resources(memory_limit=64 * MIB, cpu_quota=50000, cpu_period=100000, cpu_shares=512)
    with groups.made(host, cgroup, asked, NEVER), subprocess.Popen(["sleep", "60"]) as process:
        for path in host.cgroups.paths(cgroup):
            cgroups.write(f"{path}/cgroup.procs", str(process.pid))
        for controller, files in (V2_FILES if v2 else V1_FILES).items():
            assert {name: read(host, controller, cgroup, name) for name in files} == files
        if host.swap_limit and not v2:
            assert read(host, "memory", cgroup, "memory.memsw.limit_in_bytes") == str(64 * MIB), "no swap on top"
        if not v2:
            assert read(host, "cpuset", cgroup, "cpuset.cpus"), "a group without processors takes no process"
        assert cgroups.processes(host.cgroups, cgroup) == [process.pid]
        groups.remove(host.cgroups, cgroup)
        assert process.wait(5) == -9
    assert not cgroups.exists(host.cgroups, cgroup)


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        (Resources(memory_limit=-2), InvalidInput),
        (Resources(cpuset_cpus="0-4000"), FailedPrecondition),
        (Resources(cpu_quota=5), InvalidInput),
        (Resources(memory_limit=MIB, memory_swap_limit=1), InvalidInput),
    ],
)
def test_a_limit_that_cannot_be_leaves_no_group(host: Host, pod: str, asked: Resources, wrong: type[Exception]) -> None:
    with pytest.raises(wrong), groups.made(host, f"{pod}/c", asked, NEVER):
        pytest.fail("it was made")


def test_block_io_that_cannot_be_limited_leaves_no_group(host: Host, pod: str) -> None:
    others = {controller: mount for controller, mount in host.cgroups.v1.items() if controller != "blkio"}
    without = replace(host, cgroups=replace(host.cgroups, v1=others))
    made = groups.made(without, f"{pod}/c", Resources(), NEVER, BlockIO(weight=100))
    if host.cgroups.mode is Mode.V2:
        pytest.skip("the group always has the files")
    with pytest.raises(FailedPrecondition, match="block I/O"), made:
        pytest.fail("it was made")


def test_a_container_that_fails_leaves_neither_group_nor_process(host: Host, pod: str) -> None:
    process = subprocess.Popen(["sleep", "60"])
    with pytest.raises(RuntimeError), groups.made(host, f"{pod}/c", Resources(), NEVER):
        for path in host.cgroups.paths(f"{pod}/c"):
            cgroups.write(f"{path}/cgroup.procs", str(process.pid))
        raise RuntimeError
    assert process.wait(5) == -9


@pytest.mark.parametrize("cgroup", ["", "/", "//"])
def test_the_root_is_nobody_s_group(host: Host, cgroup: str) -> None:
    with pytest.raises(InvalidInput), groups.made(host, cgroup, Resources(memory_limit=MIB), NEVER):
        pytest.fail("it was made")


def test_every_group_above_has_the_controllers_on(tmp_path: Path) -> None:
    root = CgroupHost(mode=Mode.V2, driver=cgroups.Driver.CGROUPFS, unified=str(tmp_path))
    for path in ("", "pod"):
        (tmp_path / path).mkdir(exist_ok=True)
        (tmp_path / path / "cgroup.controllers").write_text("cpu memory rdma\n")
        (tmp_path / path / "cgroup.subtree_control").write_text("cpu\n")
    groups.prepare(root, "/pod/c")
    assert (tmp_path / "pod/c").is_dir()
    for path in ("", "pod"):
        assert "+memory" in (tmp_path / path / "cgroup.subtree_control").read_text()
