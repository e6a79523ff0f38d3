"""What runs is judged again: by a guard and an engine's side that only note what they are asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from forgeone_shim.contract.facts import Point
from forgeone_shim.errors import DeadlineExceeded, Denied, InvalidInput, NotFound
from forgeone_shim.lifecycle.machine import State
from forgeone_shim.runtime import placement
from forgeone_shim.runtime.containers import Containers
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.recheck import Recheck
from forgeone_shim.runtime.records import CONTAINER_KIND, SANDBOX_KIND, ContainerRecord, SandboxRecord
from forgeone_shim.runtime.table import Entry, Table
from forgeone_shim.state.store import StateStore
from tests.unit.runtime.test_guard import CONTAINER, POD


class Node:
    """Containers in a store; ``answers`` is what the guard says of one by its id, nothing being allowed."""

    def __init__(self, directory: Path) -> None:
        self.store = StateStore(directory / "db")
        self.containers = Table(self.store, CONTAINER_KIND, "container", ContainerRecord)
        self.sandboxes = Table(self.store, SANDBOX_KIND, "sandbox", SandboxRecord)
        self.answers: dict[str, Exception] = {}
        self.asked: list[str] = []
        self.stopped: list[tuple[str, float, str]] = []
        self.jobs: list[Callable[[], None]] = []
        self.guard = SimpleNamespace(container=self._judge)
        self.janitor = SimpleNamespace(until_done=lambda _name, job: self.jobs.append(job))
        endings = SimpleNamespace(stop=self._stop)
        self.recheck = Recheck(
            cast(Parts, self), cast(Containers, SimpleNamespace(endings=endings, of=lambda _id: self.containers.all()))
        )

    def add(self, number: int, state: State, answer: Exception | None = None) -> Entry[ContainerRecord]:
        entry = self.containers.add(replace(CONTAINER, id=f"{number:064x}", state=state))
        if answer is not None:
            self.answers[entry.record.id] = answer
        return entry

    def work(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()

    def _judge(self, point: Point, record: ContainerRecord, _deadline: object) -> None:
        assert point is Point.RECOVER
        self.asked.append(record.id)
        if record.id in self.answers:
            raise self.answers[record.id]

    def _stop(self, entry: Entry[ContainerRecord], timeout: float, _deadline: object) -> None:
        self.stopped.append((entry.record.id, timeout, entry.record.denied))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.store.close()


DENIED = Denied("house/rule", "not any more", "audit:7", starts=True)


def test_what_is_denied_is_stopped_at_once_and_says_why(node: Node) -> None:
    alive = [node.add(number, state, DENIED) for number, state in enumerate((State.RUNNING, State.PAUSED), 1)]
    node.add(3, State.RUNNING)
    node.add(4, State.RUNNING, NotFound("sandbox", "gone"))
    # Its grace period could have been years.
    alive.append(node.add(5, State.STOPPING, DENIED))
    node.add(6, State.TERMINATED, DENIED)
    node.recheck.all()
    node.work()
    assert node.stopped == [(entry.record.id, 0, str(DENIED)) for entry in alive]
    assert len(node.asked) == 5


def test_one_that_cannot_be_judged_keeps_no_other_from_it(node: Node) -> None:
    node.add(1, State.RUNNING, OSError("broken"))
    other: Any = node.add(2, State.RUNNING, DENIED)
    node.recheck.all()
    with pytest.raises(OSError, match="broken"):  # the janitor would repeat it
        node.jobs.pop(0)()
    node.work()
    assert [one[0] for one in node.stopped] == [other.record.id]


def test_a_start_under_way_is_judged_once_it_is_done(node: Node) -> None:
    entry = node.add(1, State.BOOTED, DENIED)
    holding, go_on = threading.Event(), threading.Event()

    def start() -> None:
        with entry.work:
            holding.set()
            go_on.wait(10)
            entry.change(state=State.RUNNING)

    thread = threading.Thread(target=start)
    thread.start()
    holding.wait(10)
    node.recheck.all()
    job = node.jobs.pop(0)
    with pytest.raises(DeadlineExceeded):
        job()
    assert node.asked == []
    go_on.set()
    thread.join()
    job()
    node.work()
    assert [one[0] for one in node.stopped] == [entry.record.id]


def test_what_ended_meanwhile_was_not_denied(node: Node) -> None:
    entry = node.add(1, State.RUNNING, DENIED)
    node.recheck.container(entry)
    entry.change(state=State.TERMINATED)
    node.work()
    assert entry.record.denied == ""


def test_a_pod_whose_rule_can_never_be_enforced_loses_its_containers(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.sandboxes.add(replace(POD, state=State.BOOTED))
    mine = node.add(1, State.RUNNING)
    assert mine.record.sandbox_id == POD.id

    def refuse(_parts: Parts, _sandbox: SandboxRecord) -> None:
        raise InvalidInput("network", "passes none")

    monkeypatch.setattr(placement, "restrain", refuse)
    node.recheck.all()
    node.work()
    assert node.stopped == [(mine.record.id, 0, "network: passes none")]
