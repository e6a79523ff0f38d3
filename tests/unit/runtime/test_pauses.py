"""Pause and resume, on an engine that only notes what it is asked; the lifecycle and the store are real."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engines.base import ContainerSpec, Handle, Live, LiveState
from forgeone_shim.contract.facts import Point
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, InternalError
from forgeone_shim.lifecycle.machine import Lifecycle, State
from forgeone_shim.runtime.containers import Containers
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.pauses import Pauses
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord
from forgeone_shim.runtime.running import Running
from forgeone_shim.runtime.table import Entry, Table
from forgeone_shim.shim.exits import Exit
from forgeone_shim.state.store import StateStore
from tests.unit.runtime.guards import Lenient

ID = "c" * 64


@dataclass
class Engine:
    """A container that is frozen or not; ``freezing`` is called before it is, ``killed`` by a kill."""

    asked: list[str] = field(default_factory=list)
    frozen: bool = False
    freezing: Callable[[Deadline], None] = lambda _: None
    killed: Callable[[], None] = lambda: None

    def pause(self, _handle: Handle, deadline: Deadline) -> None:
        self.asked.append("pause")
        self.freezing(deadline)
        self.frozen = True

    def resume(self, _handle: Handle, settled: Deadline | None = None) -> None:
        self.asked.append("resume" if settled is None else "settle")
        self.frozen = False

    def kill(self, _handle: Handle, signal: int, *, everything: bool = False) -> None:
        self.asked.append(f"kill {signal}")
        self.killed()

    def look(self, _handle: Handle) -> Live:
        return Live(LiveState.PAUSED if self.frozen else LiveState.RUNNING, 7)

    def delete(self, _handle: Handle) -> None:
        """There is nothing to undo."""

    def was_oom_killed(self, _handle: Handle) -> bool:
        return False

    def verdict(self, _handle: Handle) -> None:
        return None


@dataclass
class Node:
    """One running container."""

    pauses: Pauses
    running: Running
    containers: Containers
    entry: Entry[ContainerRecord]
    engine: Engine
    guard: Lenient

    @property
    def state(self) -> State:
        return self.entry.record.state


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    store, engine, guard = StateStore(tmp_path / "db"), Engine(), Lenient()
    table = Table(store, "container", "container", ContainerRecord)
    parts: Any = SimpleNamespace(
        containers=table,
        sandboxes=Table(store, "sandbox", "sandbox", SandboxRecord),
        lifecycle=Lifecycle(),
        engines={"fake": engine},
        guard=guard,
        config=SimpleNamespace(cdi=SimpleNamespace(spec_dirs=())),
        janitor=SimpleNamespace(until_done=lambda _name, job, **_: job()),
        rootfs=SimpleNamespace(unmount=lambda _: None),
        paths=SimpleNamespace(exits=tmp_path),
        handle=lambda record: Handle(container_id=record.id, sandbox_id="s", bundle="/b", exits="/e"),
    )
    record = ContainerRecord(
        id=ID,
        sandbox_id="s" * 64,
        spec=ContainerSpec(name="main"),
        engine="fake",
        state=State.RUNNING,
        image_id="",
        image_ref="",
        layers=(),
        log_path="",
        cgroup="",
        stop_signal="SIGTERM",
        created_at=1,
    )
    containers = Containers(cast(Parts, parts), cast(Any, None))
    pauses = Pauses(cast(Parts, parts), containers.endings)
    yield Node(pauses, Running(cast(Parts, parts)), containers, table.add(record), engine, guard)
    store.close()


def test_both_verbs_may_be_repeated(node: Node) -> None:
    for _ in range(2):
        node.pauses.pause(ID, Deadline.after(5))
        assert (node.state, node.engine.frozen) == (State.PAUSED, True)
    for _ in range(2):
        node.pauses.resume(ID, Deadline.after(5))
        assert (node.state, node.engine.frozen) == (State.RUNNING, False)
    assert node.engine.asked == ["pause", "resume"]


@pytest.mark.parametrize("state", [State.BOOTED, State.STOPPING, State.TERMINATED])
def test_only_what_runs_can_be_paused_or_resumed(node: Node, state: State) -> None:
    node.entry.change(state=state)
    with pytest.raises(FailedPrecondition, match=f"is {state}: it cannot be paused"):
        node.pauses.pause(ID, Deadline.after(5))
    with pytest.raises(FailedPrecondition, match=f"is {state}: it cannot be resumed"):
        node.pauses.resume(ID, Deadline.after(5))
    assert node.engine.asked == []


def test_a_pause_that_cannot_be_stored_is_undone(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise InternalError("disk full")

    monkeypatch.setattr(node.containers.endings, "step", fail)
    with pytest.raises(InternalError, match="disk full"):
        node.pauses.pause(ID, Deadline.after(5))
    assert (node.state, node.engine.frozen) == (State.RUNNING, False)
    assert node.entry.break_off is None


def test_a_stop_breaks_off_a_pause_under_way_and_thaws_what_is_paused(node: Node) -> None:
    freezing, errors = threading.Event(), []

    def freeze_until_abandoned(deadline: Deadline) -> None:
        abandoned = threading.Event()
        deadline.listen(abandoned.set)
        freezing.set()
        assert abandoned.wait(30)
        deadline.check("while a container was frozen")

    def pause() -> None:
        try:
            node.pauses.pause(ID, Deadline.after(30))
        except FailedPrecondition as error:
            errors.append(str(error))

    node.engine.freezing = freeze_until_abandoned
    thread = threading.Thread(target=pause, daemon=True)
    thread.start()
    assert freezing.wait(30)
    # On a thread of its own, as the watch for ends has.
    node.engine.killed = lambda: threading.Thread(
        target=node.containers.endings.ended, args=(ID, Exit(137, 2)), daemon=True
    ).start()
    node.containers.endings.stop(node.entry, 0, Deadline.after(30))
    thread.join(30)
    assert len(errors) == 1
    assert "it cannot be paused" in errors[0]
    assert (node.state, node.engine.frozen) == (State.TERMINATED, False)


def test_a_paused_container_is_thawed_before_it_is_asked_to_stop(node: Node) -> None:
    node.pauses.pause(ID, Deadline.after(5))
    node.engine.killed = lambda: node.containers.endings.ended(ID, Exit(143, 2))
    node.containers.endings.stop(node.entry, 5, Deadline.after(30))
    assert node.engine.asked == ["pause", "resume", "kill 15"]
    assert (node.state, node.entry.record.exit_code) == (State.TERMINATED, 143)


@pytest.mark.parametrize("denied", [False, True])
def test_a_paused_container_that_may_not_go_on_dies_without_a_grace_period(node: Node, denied: bool) -> None:
    node.pauses.pause(ID, Deadline.after(5))
    node.guard.denies = Point.RESUME if denied else ""
    end = threading.Thread(target=lambda: node.containers.endings.ended(ID, Exit(137, 2)))
    node.engine.killed = lambda: None if end.is_alive() or end.ident else end.start()
    node.containers.stop(ID, 3600, Deadline.after(30))
    assert node.engine.asked[1:3] == (["kill 9", "resume"] if denied else ["resume", "kill 15"])
    end.join()
    assert node.state is State.TERMINATED
    assert node.guard.asked == [Point.RESUME]


def test_a_paused_container_whose_supervisor_dies_is_thawed_to_die(node: Node) -> None:
    node.pauses.pause(ID, Deadline.after(5))
    node.containers.endings.orphaned(ID)
    assert node.engine.asked == ["pause", "kill 9", "resume"]


def test_nothing_is_executed_in_a_paused_container(node: Node) -> None:
    node.pauses.pause(ID, Deadline.after(5))
    with pytest.raises(FailedPrecondition, match=r"is paused \(forge resume\)"):
        node.running.exec_sync(ID, ("true",), 1)


def test_a_pause_that_takes_too_long_is_an_error_and_undone(node: Node) -> None:
    node.engine.freezing = lambda deadline: deadline.check("while a container was frozen")
    with pytest.raises(DeadlineExceeded):
        node.pauses.pause(ID, Deadline.after(0))
    assert (node.state, node.engine.frozen) == (State.RUNNING, False)


@pytest.mark.parametrize(
    ("stored", "frozen", "state", "stays_frozen"),
    [
        (State.PAUSED, True, State.PAUSED, True),
        (State.PAUSED, False, State.RUNNING, False),
        (State.RUNNING, True, State.RUNNING, False),
        (State.RUNNING, False, State.RUNNING, False),
    ],
)
def test_a_restart_keeps_a_pause_and_puts_right_what_was_cut_off(
    node: Node, stored: State, frozen: bool, state: State, stays_frozen: bool
) -> None:
    node.entry.change(state=stored)
    node.engine.frozen = frozen
    node.containers.recover(node.entry)
    assert (node.state, node.engine.frozen) == (state, stays_frozen)
