"""Limits that change while a container runs, over a store of the test's own and an engine that only remembers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.base import ContainerSpec, Handle, Namespaces, Resources, SandboxSpec
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, NotFound
from forgeone_shim.lifecycle.machine import State
from forgeone_shim.runtime.records import CONTAINER_KIND, SANDBOX_KIND, ContainerRecord, SandboxRecord
from forgeone_shim.runtime.table import Table
from forgeone_shim.runtime.updates import Updates, merged
from forgeone_shim.state.store import StateStore
from tests.unit.runtime.guards import lenient

OLD = Resources(cpu_shares=100, memory_limit=1 << 26, memory_swap_limit=1 << 26, oom_score_adj=7)
SANDBOX = SandboxRecord(
    id="5" * 64,
    spec=SandboxSpec(name="p", uid="u", namespace="n", overhead=Resources(cpu_shares=2)),
    engine="native",
    state=State.BOOTED,
    created_at=1,
    namespaces=Namespaces(network=None, ipc=None, uts=None, pid=None),
    hostname="",
    cgroup_parent="/p",
)


def container(state: State = State.RUNNING) -> ContainerRecord:
    return ContainerRecord(
        id="c" * 64,
        sandbox_id=SANDBOX.id,
        spec=ContainerSpec(name="c", resources=OLD),
        engine="native",
        state=state,
        image_id="",
        image_ref="",
        layers=(),
        log_path="",
        cgroup="/p/c",
        stop_signal="SIGTERM",
        created_at=1,
    )


class Node:
    """The parts an update works with; ``refuse`` makes the engine refuse."""

    def __init__(self, directory: Path) -> None:
        self.store = StateStore(directory / "db")
        self.sandboxes = Table(self.store, SANDBOX_KIND, "sandbox", SandboxRecord)
        self.containers = Table(self.store, CONTAINER_KIND, "container", ContainerRecord)
        self.engines = {"native": SimpleNamespace(update=self.update)}
        self.given: list[Resources] = []
        self.refuse = False
        self.guard = lenient()
        parts: Any = self
        self.updates = Updates(parts)

    @staticmethod
    def handle(record: ContainerRecord) -> Handle:
        return Handle(container_id=record.id, sandbox_id=record.sandbox_id, bundle="", exits="", cgroup=record.cgroup)

    def update(self, handle: Handle, resources: Resources) -> None:
        assert handle.cgroup == "/p/c"
        if self.refuse:
            raise FailedPrecondition("below what is in use")
        self.given.append(resources)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_what_is_asked_for_replaces_and_the_rest_stays() -> None:
    asked = Resources(cpu_quota=-1, cpuset_cpus="0", hugepages=(("2MB", 4),), unified={"memory.high": "1"})
    after = merged(OLD, asked)
    assert after == Resources(
        cpu_shares=100,
        cpu_quota=-1,
        cpuset_cpus="0",
        memory_limit=1 << 26,
        memory_swap_limit=1 << 26,
        oom_score_adj=7,
        hugepages=(("2MB", 4),),
        unified={"memory.high": "1"},
    )
    again = merged(after, Resources(hugepages=(("2MB", 8), ("1GB", 1)), oom_score_adj=900))
    assert (again.hugepages, again.oom_score_adj) == ((("2MB", 8), ("1GB", 1)), 7)


@pytest.mark.parametrize(
    ("before", "asked", "after"),
    [
        ((64, 64), (128, 0), (128, 0)),
        ((64, 0), (128, 0), (128, 0)),
        ((64, 100), (128, 0), (128, 100)),
        ((64, 64), (0, 128), (64, 128)),
        ((0, 0), (128, 256), (128, 256)),
    ],
)
def test_who_could_not_swap_cannot_with_more_memory(
    before: tuple[int, int], asked: tuple[int, int], after: tuple[int, int]
) -> None:
    limits = [Resources(memory_limit=memory, memory_swap_limit=swap) for memory, swap in (before, asked)]
    found = merged(*limits)
    assert (found.memory_limit, found.memory_swap_limit) == after


def test_an_update_reaches_the_engine_whole_and_survives_a_restart(node: Node, tmp_path: Path) -> None:
    node.containers.add(container())
    node.updates.container("c", Resources(cpu_shares=512), NEVER)
    after = merged(OLD, Resources(cpu_shares=512))
    assert node.given == [after]
    node.store.close()
    record = Node(tmp_path).containers.find("c").record
    assert record.effective_spec.resources == after
    assert record.spec.resources == OLD, "a kubelet's retry of the create is compared with what it asked for"


def test_a_refused_update_changes_nothing(node: Node) -> None:
    node.containers.add(container())
    node.refuse = True
    with pytest.raises(FailedPrecondition, match="in use"):
        node.updates.container("c", Resources(memory_limit=1), NEVER)
    assert node.containers.find("c").record.effective_spec.resources == OLD


def test_limits_that_cannot_be_kept_are_taken_back(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = node.containers.add(container())

    def full(**_: object) -> ContainerRecord:
        raise OSError("disk full")

    monkeypatch.setattr(entry, "change", full)
    with pytest.raises(OSError, match="disk full"):
        node.updates.container("c", Resources(cpu_shares=512), NEVER)
    assert [given.cpu_shares for given in node.given] == [512, 100]


@pytest.mark.parametrize("state", [State.CREATED, State.TERMINATED])
def test_only_what_waits_or_runs_can_be_updated(node: Node, state: State) -> None:
    node.containers.add(container(state))
    with pytest.raises(FailedPrecondition, match=state):
        node.updates.container("c", Resources(cpu_shares=512), NEVER)
    with pytest.raises(NotFound):
        node.updates.container("f", Resources(cpu_shares=512), NEVER)
    assert node.given == []


def test_a_call_that_is_late_changes_nothing(node: Node) -> None:
    node.containers.add(container())
    with pytest.raises(DeadlineExceeded):
        node.updates.container("c", Resources(cpu_shares=512), Deadline.after(0))
    assert node.given == []


def test_a_pods_resources_are_kept_each_by_itself(node: Node, tmp_path: Path) -> None:
    node.sandboxes.add(SANDBOX)
    node.updates.sandbox("5", None, Resources(memory_limit=9))
    node.store.close()
    record = Node(tmp_path).sandboxes.find("5").record
    assert record.spec == SANDBOX.spec
    assert record.effective_spec.resources == Resources(memory_limit=9)
    assert record.effective_spec.overhead == Resources(cpu_shares=2)


def test_a_pod_that_is_not_ready_is_not_updated(node: Node) -> None:
    node.sandboxes.add(SANDBOX).change(state=State.TERMINATED)
    with pytest.raises(FailedPrecondition, match="not ready"):
        node.updates.sandbox("5", Resources(cpu_shares=3), None)


def test_a_field_takes_the_place_of_a_key_from_before() -> None:
    before = Resources(memory_limit=100, unified={"memory.high": "90", "memory.max": "100", "cpu.weight": "3"})
    after = merged(before, Resources(memory_limit=200))
    assert after.memory_limit == 200
    assert after.unified == {"memory.high": "90", "cpu.weight": "3"}
    assert merged(after, Resources(cpu_shares=5)).unified == {"memory.high": "90"}
    assert merged(after, Resources(unified={"memory.max": "300"})).unified["memory.max"] == "300"


def test_what_a_package_suggests_is_in_force_until_something_else_is_asked_for_and_told_to_nobody(node: Node) -> None:
    suggested = Resources(memory_limit=1 << 20, cpu_period=100_000, cpu_quota=5000)
    record = replace(container(), spec=ContainerSpec(name="c"), suggested=suggested)
    entry = node.containers.add(record)
    node.updates.container(record.id, Resources(cpu_shares=7), NEVER)
    assert node.given[-1] == replace(suggested, cpu_shares=7)
    # A kubelet compares this with what it has asked for.
    assert entry.record.effective_spec.resources == Resources(cpu_shares=7)
    node.updates.container(record.id, Resources(memory_limit=1 << 30), NEVER)
    assert node.given[-1] == replace(suggested, cpu_shares=7, memory_limit=1 << 30)
