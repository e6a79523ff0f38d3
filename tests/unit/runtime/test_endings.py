"""How containers end, on an engine that is a few events and a lifecycle that is the real one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engines.base import ContainerSpec, Handle, Verdict
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded
from forgeone_shim.lifecycle.machine import Event, Lifecycle, State
from forgeone_shim.runtime.endings import Endings
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.records import ContainerRecord
from forgeone_shim.runtime.table import Entry, Table
from forgeone_shim.shim.exits import Exit
from forgeone_shim.state.store import StateStore


@dataclass
class Engine:
    """Notes what it is asked; ``killed`` is called by a kill."""

    asked: list[str] = field(default_factory=list)
    killed: Callable[[], None] = lambda: None
    said: Verdict | Exception | None = None
    oom: bool = False

    def kill(self, _handle: Handle, signal: int, *, everything: bool = False) -> None:
        self.asked.append(f"kill {signal}")
        self.killed()

    def delete(self, _handle: Handle) -> None:
        self.asked.append("delete")

    def was_oom_killed(self, _handle: Handle) -> bool:
        return self.oom

    def verdict(self, _handle: Handle) -> Verdict | None:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


@dataclass
class Node:
    """One container, and what ends it."""

    endings: Endings
    entry: Entry[ContainerRecord]
    engine: Engine
    jobs: list[str]

    def step(self, event: Event, **fields: object) -> None:
        with self.entry.work, self.entry.state:
            self.endings.step(self.entry, event, **fields)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    store, engine = StateStore(tmp_path / "db"), Engine()
    table = Table(store, "container", "container", ContainerRecord)
    jobs: list[str] = []

    def until_done(name: str, job: Callable[[], None], *, after: float = 0.0) -> None:
        jobs.append(name)
        job()

    parts: Any = SimpleNamespace(
        containers=table,
        lifecycle=Lifecycle(),
        engines={"fake": engine},
        janitor=SimpleNamespace(until_done=until_done),
        rootfs=SimpleNamespace(unmount=lambda _: engine.asked.append("unmount")),
        handle=lambda record: Handle(container_id=record.id, sandbox_id="s", bundle="/b", exits="/e"),
    )
    record = ContainerRecord(
        id="c" * 64,
        sandbox_id="s" * 64,
        spec=ContainerSpec(name="main"),
        engine="fake",
        state=State.CREATED,
        image_id="",
        image_ref="",
        layers=(),
        log_path="",
        cgroup="",
        stop_signal="SIGTERM",
        created_at=1,
    )
    made = Node(Endings(cast(Parts, parts)), table.add(record), engine, jobs)
    engine.killed = lambda: made.endings.ended(record.id, Exit(137, 2))
    yield made
    store.close()


def test_a_stop_waits_for_a_restore_under_way_and_then_kills(node: Node) -> None:
    node.step(Event.BOOT)
    node.entry.change(restored=True)
    stopped = threading.Event()

    def stop() -> None:
        node.endings.stop(node.entry, 0, Deadline.after(30))
        stopped.set()

    with node.entry.work:
        threading.Thread(target=stop, daemon=True).start()
        assert not stopped.wait(0.2), "it was declared ended while its processes were being made"
        node.step(Event.START)
    assert stopped.wait(30)
    assert "kill 9" in node.engine.asked
    assert (node.entry.record.state, node.entry.record.exit_code) == (State.TERMINATED, 137)


def test_a_stop_waits_for_a_restore_no_longer_than_its_caller(node: Node) -> None:
    node.step(Event.BOOT)
    node.entry.change(restored=True)
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with node.entry.work:
            held.set()
            leave.wait(30)

    threading.Thread(target=hold, daemon=True).start()
    assert held.wait(30)
    with pytest.raises(DeadlineExceeded):
        node.endings.stop(node.entry, 0, Deadline.after(0.05))
    leave.set()
    assert node.entry.record.state is State.BOOTED


def test_a_restored_container_that_nobody_started_holds_nothing_once_it_was_stopped(node: Node) -> None:
    node.step(Event.BOOT)
    node.entry.change(restored=True)
    node.endings.stop(node.entry, 0, Deadline.after(30))
    assert node.entry.record.state is State.TERMINATED
    assert node.engine.asked == ["delete", "unmount"]
    assert node.entry.record.cleaned


def test_a_stop_breaks_off_a_checkpoint_first(node: Node) -> None:
    node.step(Event.BOOT)
    node.step(Event.START)
    with node.entry.state:
        node.entry.break_off = lambda: node.engine.asked.append("thaw")
    node.endings.stop(node.entry, 0, Deadline.after(30))
    assert node.engine.asked[:2] == ["thaw", "kill 9"]


@pytest.mark.parametrize(
    ("found", "said", "oom", "reason", "message"),
    [
        (Exit(134, 2), Verdict("WasmTrap", "unreachable"), False, "WasmTrap", "unreachable"),
        (Exit(0, 2), None, False, "Completed", ""),
        (Exit(3, 2), None, False, "Error", ""),
        (Exit(3, 2), OSError("gone"), False, "Error", ""),
        (Exit(137, 2), Verdict("WasmTrap", "killed"), True, "OOMKilled", ""),
        (Exit(255, 2, lost=True), Verdict("WasmTrap", ""), False, "Error", "the container's supervisor was lost"),
    ],
)
def test_why_it_ended_is_what_its_engine_says_unless_the_kernel_knows_better(
    node: Node, found: Exit, said: Verdict | Exception | None, oom: bool, reason: str, message: str
) -> None:
    node.engine.said, node.engine.oom = said, oom
    node.step(Event.BOOT)
    node.step(Event.START)
    node.endings.ended(node.entry.record.id, found)
    assert node.entry.record.reason == reason
    assert node.entry.record.message.startswith(message)
