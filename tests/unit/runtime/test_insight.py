"""What an engine is told of its containers, and how the calls of a guest are followed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engines.base import ContainerSpec, Handle, HostCalls, Step, Trust
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import InternalError
from forgeone_shim.lifecycle.machine import Event, Lifecycle, State, Subject, Transition
from forgeone_shim.runtime.insight import Insight
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.records import ContainerRecord
from forgeone_shim.runtime.table import Entry, Table
from forgeone_shim.state.store import StateStore

ID = "c" * 64


class Engine:
    """Keeps what it is told; ``reads`` are what its trace has, one after another."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.asked: list[tuple[int, bool]] = []
        self.reads: list[HostCalls] = []
        self.reading: Callable[[], None] = lambda: None
        self.fault: Exception | None = None
        self.known: list[Trust] = []

    def trusted(self, _handle: Handle, trust: Trust) -> None:
        if self.fault is not None:
            raise self.fault
        self.known.append(trust)

    def told(self, _handle: Handle, step: Step) -> None:
        if self.fault is not None:
            raise self.fault
        self.steps.append(step)

    def host_calls(self, _handle: Handle, after: int, *, ended: bool) -> HostCalls:
        self.asked.append((after, ended))
        self.reading()
        return self.reads.pop(0) if self.reads else HostCalls((), 0, after)


Made = tuple[Insight, Entry[ContainerRecord], Engine]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    store, engine = StateStore(tmp_path / "db"), Engine()
    table = Table(store, "container", "container", ContainerRecord)
    parts: Any = SimpleNamespace(
        containers=table,
        engines={"fake": engine},
        identity=SimpleNamespace(trust=lambda record: Trust(fingerprint=record.dna)),
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
    yield Insight(cast(Parts, parts)), table.add(record), engine
    store.close()


def _step(made: Made, event: Event, state: State) -> None:
    insight, entry, _ = made
    lifecycle = Lifecycle()
    lifecycle.subscribe(insight.told)
    lifecycle.step(
        Subject.CONTAINER,
        ID,
        sandbox_id="s",
        before=entry.record.state,
        event=event,
        commit=lambda _: entry.change(state=state),
    )


def test_an_engine_is_told_each_step_but_the_removal(made: Made) -> None:
    insight, entry, engine = made
    _step(made, Event.PAUSE, State.PAUSED)
    _step(made, Event.EXIT, State.TERMINATED)
    _step(made, Event.REMOVE, State.REMOVED)
    assert [(one.before, one.event, one.after) for one in engine.steps] == [
        ("running", "pause", "paused"),
        ("paused", "exit", "terminated"),
    ]
    insight.told(Transition(Subject.SANDBOX, "s", "s", State.CREATED, Event.BOOT, State.BOOTED, 1))
    assert len(engine.steps) == 2
    entry.change(state=State.PAUSED)
    insight.found(entry)
    assert (engine.steps[2].event, engine.steps[2].after) == ("", "paused")


def test_an_engine_is_told_how_a_container_is_known_before_it_runs_and_after_a_restart(made: Made) -> None:
    insight, entry, engine = made
    entry.change(state=State.CREATED, dna="sha256:1")
    _step(made, Event.BOOT, State.BOOTED)
    assert engine.known == [Trust(fingerprint="sha256:1")]
    _step(made, Event.START, State.RUNNING)
    _step(made, Event.PAUSE, State.PAUSED)
    assert len(engine.known) == 2
    insight.found(entry)
    assert len(engine.known) == 3


@pytest.mark.parametrize("fault", [InternalError("its file is gone"), ValueError("of another version")])
def test_a_step_is_made_although_the_engine_cannot_be_told(made: Made, fault: Exception) -> None:
    made[2].fault = fault
    _step(made, Event.PAUSE, State.PAUSED)
    made[0].found(made[1])
    assert made[1].record.state is State.PAUSED


def test_calls_are_followed_until_the_container_ends_and_the_last_are_not_missed(made: Made) -> None:
    insight, entry, engine = made
    first, last = HostCalls((), 1, 5), HostCalls((), 2, 9)
    engine.reads = [first]

    def end_after_the_first() -> None:
        if len(engine.asked) == 2:
            entry.change(state=State.TERMINATED)
            entry.ended.set()
            engine.reads = [HostCalls((), 0, 5), last]

    engine.reading = end_after_the_first
    assert list(insight.host_calls(ID, NEVER, follow=True)) == [first, last]
    assert engine.asked == [(0, False), (5, False), (5, True)]


def test_without_follow_what_is_there_is_all(made: Made) -> None:
    insight, _, engine = made
    assert list(insight.host_calls(ID, NEVER, follow=False)) == []
    assert engine.asked == [(0, False)]


def test_nobody_is_waited_for_who_has_gone(made: Made) -> None:
    insight, _, engine = made
    deadline = Deadline()
    threading.Timer(0.05, deadline.abandon).start()
    assert list(insight.host_calls(ID, deadline, follow=True)) == []
    assert engine.asked
