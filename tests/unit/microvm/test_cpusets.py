"""Where on the host a pod's machine runs: on what its containers were given, taken together."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.base import Resources
from engines.microvm.cpusets import NAME, Cpuset, Cpusets
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode
from forgeone_shim.kernel.host import Host


class Group:
    """A machine's cgroup (v2) below its pod's, which has processors 0 to 7 and node 0."""

    def __init__(self, tmp_path: Path) -> None:
        machine, self.pod = tmp_path / "cgroup/pod/vm", tmp_path / "pod"
        machine.mkdir(parents=True)
        self.pod.mkdir()
        self.cpus, self.mems = machine / "cpuset.cpus", machine / "cpuset.mems"
        for name, offered in (("cpus", "0-7"), ("mems", "0")):
            (machine / f"cpuset.{name}").write_text("")
            (machine.parent / f"cpuset.{name}.effective").write_text(f"{offered}\n")
        self.sets = Cpusets(
            Host(
                cgroups=CgroupHost(
                    mode=Mode.V2,
                    driver=Driver.CGROUPFS,
                    unified=str(tmp_path / "cgroup"),
                    v2_controllers=frozenset({"cpuset"}),
                ),
                capabilities=frozenset(),
            ),
            _put,
        )

    def give(self, container: str, cpus: str = "", mems: str = "") -> Cpuset:
        return self.sets.give(self.pod, "/pod/vm", container, Resources(cpuset_cpus=cpus, cpuset_mems=mems))

    def put_back(self, container: str, before: Cpuset | None = None) -> None:
        self.sets.put_back(self.pod, "/pod/vm", container, before or Cpuset())


def _put(path: str, value: str) -> None:
    Path(path).write_text(value)


@pytest.fixture
def group(tmp_path: Path) -> Group:
    return Group(tmp_path)


def test_a_machine_runs_where_any_of_its_containers_may(group: Group) -> None:
    group.give("anywhere")
    assert group.cpus.read_text() == "" and not (group.pod / NAME).exists()
    assert group.give("a", "2-3", "0") == Cpuset()
    assert (group.cpus.read_text(), group.mems.read_text()) == ("2,3", "0")
    group.give("b", "0,3")
    assert group.cpus.read_text() == "0,2,3"
    # As a kubelet's manager of processors moves a container that has none of its own.
    assert group.give("b", "4-6") == Cpuset("0,3")
    assert group.cpus.read_text() == "2,3,4,5,6"
    group.put_back("a")
    assert group.cpus.read_text() == "4,5,6"


def test_limits_that_were_not_taken_leave_the_machine_where_it_was(group: Group) -> None:
    group.give("a", "2")
    before = group.give("a", "5", "0")
    group.put_back("a", before)
    assert group.cpus.read_text() == "2"
    with pytest.raises(FailedPrecondition, match="not within its pod's 0-7"):
        group.give("a", "7-8")
    with pytest.raises(InvalidInput, match="cpuset_cpus"):
        group.give("b", "all")
    group.give("b", "3")
    assert group.cpus.read_text() == "2,3"


def test_a_container_goes_though_its_machine_has_gone_before(group: Group) -> None:
    group.give("a", "2")
    group.give("b", "3")
    group.cpus.unlink()
    group.put_back("a")
    group.put_back("a")
    assert [path.name for path in (group.pod / NAME).iterdir()] == ["b"]
