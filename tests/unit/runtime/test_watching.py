"""What is made of what the kernel and guests count: without either."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest

from engines.base import ContainerSpec, Handle, HostCount
from forgeone_shim.contract.facts import Bound
from forgeone_shim.contract.model import Behaviour, Contract
from forgeone_shim.deadline import NEVER
from forgeone_shim.dna.behaviour import names
from forgeone_shim.dna.behaviour.baseline import Baseline
from forgeone_shim.dna.behaviour.profile import Seen
from forgeone_shim.dna.behaviour.program import SLOTS
from forgeone_shim.dna.behaviour.recorder import Counts, Group, Recorder
from forgeone_shim.dna.score import UNWATCHED
from forgeone_shim.errors import FailedPrecondition, InternalError
from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode
from forgeone_shim.lifecycle.machine import Event, State, Subject, Transition
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.records import ContainerRecord
from forgeone_shim.runtime.table import Entry, Table
from forgeone_shim.runtime.watching import Answers, Watching
from forgeone_shim.state.store import StateStore

ID, IMAGE = "c" * 64, f"sha256:{'1' * 64}"
# Numbers differ between machines.
NAMES = ("read", "write", "ptrace", "setgroups")
READ, WRITE, PTRACE, SETGROUPS = range(4)


class Kernel:
    """Stands for a recorder: groups and what they called, in order."""

    def __init__(self) -> None:
        self.groups: dict[int, list[int]] = {}
        self.blind = ""
        self.settled = 0

    def check(self) -> None:
        if self.blind:
            raise FailedPrecondition(self.blind)

    def watch(self, group: Group) -> None:
        self.groups.setdefault(group.id, [])

    def watched(self) -> set[int]:
        return set(self.groups)

    def read(self, group_id: int) -> Counts | None:
        if group_id not in self.groups:
            return None
        counts = [0] * SLOTS
        for slot in self.groups[group_id]:
            counts[slot] += 1
        return Counts(tuple(counts), self.order(group_id) or ())

    def order(self, group_id: int) -> tuple[int, ...] | None:
        calls = list(dict.fromkeys(self.groups.get(group_id, [])))
        return tuple(calls.index(slot) + 1 if slot in calls else 0 for slot in range(SLOTS))

    def forget(self, group_id: int) -> None:
        self.groups.pop(group_id, None)

    def keep(self, groups: set[int]) -> None:
        for stranger in self.watched() - groups:
            self.forget(stranger)

    def settle(self) -> None:
        self.settled += 1

    def close(self) -> None:
        pass


class Acts:
    """Remembers what was done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fault: Exception | None = None

    def stop(self, _entry: Entry[ContainerRecord], why: str) -> None:
        self._do(f"stop: {why}")

    def pause(self, _entry: Entry[ContainerRecord]) -> None:
        self._do("pause")

    def _do(self, what: str) -> None:
        if self.fault is not None:
            raise self.fault
        self.done.append(what)


class Later:
    """A janitor whose jobs run when they are told to, once each; what fails stays."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def until_done(self, _name: str, job: Callable[[], None], *, after: float = 0.0) -> None:
        self.jobs.append(job)

    def run(self) -> None:
        for job in tuple(self.jobs):
            job()
            self.jobs.remove(job)


@dataclass
class Node:
    store: StateStore
    parts: Any
    kernel: Kernel = field(default_factory=Kernel)
    acts: Acts = field(default_factory=Acts)
    notes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    later: str = ""
    """What policies that came after it have done about drift."""

    def start(self) -> Watching:
        """As after a restart of forgeoned."""
        return Watching(cast(Parts, self.parts), self.acts, cast(Recorder, self.kernel))

    def container(self, id_: str = ID, *, engine: str = "native", **behaviour: Any) -> Entry[ContainerRecord]:
        contract = Contract(behaviour=Behaviour(**{"watch": True, **behaviour}))
        record = ContainerRecord(
            id=id_,
            sandbox_id="s" * 64,
            spec=ContainerSpec(name=f"main-{id_[0]}"),
            engine=engine,
            state=State.BOOTED,
            image_id=IMAGE,
            image_ref="",
            layers=(),
            log_path="",
            cgroup=f"/{id_}",
            stop_signal="SIGTERM",
            created_at=1,
            bound=Bound(contract=contract),
        )
        return cast(Entry[ContainerRecord], self.parts.containers.add(record))

    def told(self, type_: str) -> list[dict[str, Any]]:
        return [data for one, data in self.notes if one == type_]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    store = StateStore(tmp_path / "db")
    counts: dict[str, tuple[HostCount, ...] | None] = {"native": None, "wasm": None}
    made = Node(store, None)
    made.parts = SimpleNamespace(
        store=store,
        containers=Table(store, "container", "container", ContainerRecord),
        engines={name: SimpleNamespace(host_counts=lambda _, name=name: counts[name]) for name in counts},
        counts=counts,
        janitor=Later(),
        guard=SimpleNamespace(on_drift=lambda record: made.later or record.contract.behaviour.on_drift),
        pool=SimpleNamespace(submit=lambda job: job()),
        cgroups=CgroupHost(mode=Mode.HYBRID, driver=Driver.CGROUPFS, v1={"memory": "/m"}, unified="/u"),
        chronicle=SimpleNamespace(
            noted=lambda type_, _record, **data: made.notes.append((type_, data)),
            note=lambda type_, subject, **data: made.notes.append((type_, {"subject": subject, **data})),
        ),
        handle=lambda record: Handle(container_id=record.id, sandbox_id="s", bundle="/b", exits="/e"),
    )
    monkeypatch.setattr(names, "name", lambda slot: NAMES[slot] if slot < len(NAMES) else f"#{slot}")
    monkeypatch.setattr(Watching, "_group", lambda _self, record, _pid: Group(int(record.id[0], 16), 2))
    yield made
    store.close()


def baseline(*calls: str, host: tuple[str, ...] = (), engine: str = "native") -> Baseline:
    return Baseline(
        image=IMAGE,
        engine=engine,
        machine=platform.machine(),
        containers=1,
        system=tuple(Seen(name, 1) for name in calls),
        host=tuple(Seen(name, 1) for name in host),
    )


def ended(watching: Watching, entry: Entry[ContainerRecord], event: Event = Event.EXIT) -> None:
    entry.change(state=State.TERMINATED)
    watching.told(
        Transition(Subject.CONTAINER, entry.record.id, "s", State.RUNNING, event, State.TERMINATED, 1, {}, entry.record)
    )


GROUP = 0xC


def test_a_container_that_did_not_ask_is_let_alone(node: Node) -> None:
    watching, entry = node.start(), node.container(watch=False)
    node.kernel.blind = "no"
    watching.prepare(entry.record)
    watching.begin(entry)
    assert (node.kernel.groups, watching.standing(entry.record)) == ({}, UNWATCHED)
    with pytest.raises(FailedPrecondition, match="is not watched"):
        watching.find(ID)


def test_one_that_asked_does_not_start_where_it_cannot_be_watched(node: Node) -> None:
    watching, entry = node.start(), node.container()
    node.kernel.blind = "bpf: no"
    for step in (lambda: watching.prepare(entry.record), lambda: watching.begin(entry)):
        with pytest.raises(FailedPrecondition, match="bpf: no"):
            step()
    node.kernel.blind = ""
    node.parts.cgroups = replace(node.parts.cgroups, unified="")
    with pytest.raises(FailedPrecondition, match="no unified control group"):
        watching.prepare(entry.record)


def test_a_guest_that_counts_itself_is_watched_all_the_same(node: Node) -> None:
    watching, entry = node.start(), node.container(engine="wasm")
    node.kernel.blind = "bpf: no"
    watching.prepare(entry.record)
    with pytest.raises(FailedPrecondition, match="bpf: no"):
        watching.begin(entry)
    node.parts.counts["wasm"] = (HostCount("wasi fd_write", 3),)
    watching.begin(entry)
    assert watching.find(ID).profile.host == (Seen("wasi fd_write", 3),)
    watching.close()


def test_what_is_usual_leads_to_nothing(node: Node) -> None:
    watching, entry = node.start(), node.container(on_drift="stop")
    watching.adopt(baseline("read", "write"))
    watching.begin(entry)
    node.kernel.groups[GROUP] = [READ, WRITE, READ]
    watching._news()
    assert (node.acts.done, node.told("drifted")) == ([], [])
    found = watching.standing(entry.record)
    assert (found.watched, found.baseline, found.drift) == (True, True, 0.0)


def test_the_answer_is_that_of_the_policies_of_the_moment(node: Node) -> None:
    watching, entry = node.start(), node.container(on_drift="report")
    watching.adopt(baseline("read"))
    watching.begin(entry)
    node.later = "stop"
    node.kernel.groups[GROUP] = [READ, PTRACE]
    watching._news()
    node.parts.janitor.run()
    assert [one.partition(":")[0] for one in node.acts.done] == ["stop"]
    assert node.told("drifted")[0]["on_drift"] == "stop"


@pytest.mark.parametrize(
    ("answer", "done"),
    [("report", []), ("pause", ["pause"]), ("stop", ["stop: it does what is not usual for its image: ptrace, write"])],
)
def test_what_is_new_is_told_once_and_answered(node: Node, answer: str, done: list[str]) -> None:
    watching, entry = node.start(), node.container(on_drift=answer)
    watching.adopt(baseline("read"))
    watching.begin(entry)
    node.kernel.groups[GROUP] = [READ, WRITE, PTRACE]
    watching._news()
    watching._news()
    node.parts.janitor.run()
    assert node.acts.done == done
    (told,) = node.told("drifted")
    assert (told["calls"], told["on_drift"], told["live"]) == (["ptrace", "write"], answer, True)
    assert watching.standing(entry.record).drift == 0.55
    assert watching.find(ID).observed.acted == 2


def test_more_that_is_new_is_told_by_itself(node: Node) -> None:
    watching, entry = node.start(), node.container(on_drift="pause")
    watching.adopt(baseline("read"))
    watching.begin(entry)
    for calls in ([READ, WRITE], [READ, WRITE, PTRACE]):
        node.kernel.groups[GROUP] = calls
        watching._news()
        node.parts.janitor.run()
    assert [one["calls"] for one in node.told("drifted")] == [["write"], ["ptrace"]]
    assert node.acts.done == ["pause", "pause"]


def test_an_answer_that_failed_is_given_again_after_a_restart_too(node: Node) -> None:
    watching, entry = node.start(), node.container(on_drift="stop")
    watching.adopt(baseline("read"))
    watching.begin(entry)
    node.kernel.groups[GROUP] = [PTRACE]
    node.acts.fault = InternalError("it does not die")
    watching._news()
    with pytest.raises(InternalError):
        node.parts.janitor.run()
    node.acts.fault, node.parts.janitor = None, Later()
    entry.change(state=State.RUNNING)
    again = node.start()
    again.recover()
    node.parts.janitor.run()
    assert len(node.acts.done) == 1
    assert len(node.told("drifted")) == 1
    again.recover()
    node.parts.janitor.run()
    assert len(node.acts.done) == 1, "it was answered"


def test_one_that_ended_before_it_could_be_paused_is_no_trouble(node: Node) -> None:
    watching, entry = node.start(), node.container(on_drift="pause")
    watching.adopt(baseline("read"))
    watching.begin(entry)
    node.kernel.groups[GROUP] = [PTRACE]
    node.acts.fault = FailedPrecondition("it does not run")
    watching._news()
    entry.change(state=State.TERMINATED)
    node.parts.janitor.run()
    assert node.parts.janitor.jobs == []


def test_one_that_runs_and_cannot_be_paused_is_stopped(node: Node) -> None:
    watching, entry = node.start(), node.container(on_drift="pause")
    watching.adopt(baseline("read"))
    watching.begin(entry)
    node.kernel.groups[GROUP] = [PTRACE]
    node.acts.pause = Mock(side_effect=FailedPrecondition("no freezer"))  # type: ignore[method-assign]
    watching._news()
    with pytest.raises(FailedPrecondition):
        node.parts.janitor.run()
    assert node.acts.done == [], "its start is not over: it is asked again"
    entry.change(state=State.RUNNING)
    node.parts.janitor.run()
    assert node.acts.done == ["stop: it does what is not usual for its image: ptrace; it cannot be paused: no freezer"]


@pytest.mark.parametrize("state", [State.BOOTED, State.RUNNING, State.PAUSED, State.STOPPING])
def test_what_is_stopped_for_its_drift_says_so_in_whatever_state_it_is(node: Node, state: State) -> None:
    entry, endings = node.container(), Mock()
    entry.change(state=state)
    Answers(endings, Mock()).stop(entry, "ptrace")
    assert entry.record.denied == "ptrace"
    endings.stop.assert_called_once_with(entry, 0, NEVER)


def test_whoever_names_a_baseline_is_watched(node: Node) -> None:
    watching, known = node.start(), baseline("read")
    entry = node.container(watch=False, baseline=known.digest)
    with pytest.raises(FailedPrecondition, match="not on this node"):
        watching.prepare(entry.record)
    watching.adopt(known)
    watching.begin(entry)
    assert watching.find(ID).observed.baseline == known.digest


def test_one_that_cannot_be_looked_at_keeps_no_other_from_it(node: Node) -> None:
    watching, bad, good = node.start(), node.container(), node.container("d" * 64)
    watching.adopt(baseline("read"))
    for entry in (bad, good):
        watching.begin(entry)
    node.kernel.groups |= {GROUP: [PTRACE], 0xD: [PTRACE]}
    order = node.kernel.order

    def fail(group_id: int) -> tuple[int, ...] | None:
        if group_id == GROUP:
            raise OSError("no memory")
        return order(group_id)

    node.kernel.order = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no memory"):
        watching._news()
    assert watching.standing(good.record).drift == 0.5
    node.kernel.order = order  # type: ignore[method-assign]
    watching._news()
    assert watching.standing(bad.record).drift == 0.5


def test_a_look_that_a_pin_overtakes_is_no_look_at_what_is_pinned_now(node: Node) -> None:
    watching, entry = node.start(), node.container(on_drift="stop")
    watching.adopt(baseline("read"))
    watching.begin(entry)
    before = watching.find(ID).observed
    wide, narrow = baseline("read", "write"), baseline("read", "ptrace")
    for pinned in (wide, narrow):
        watching.library.adopt(pinned)
        watching._compare_anew(IMAGE, pinned)
        node.kernel.groups[GROUP] = [READ, WRITE]
        watching._look([before])
        assert node.told("drifted") == []
    watching._news()
    assert [(one["calls"], one["baseline"]) for one in node.told("drifted")] == [(["write"], narrow.digest)]


def test_a_watch_that_could_not_be_ended_is_ended_when_that_is_repeated(node: Node) -> None:
    watching, entry = node.start(), node.container()
    watching.begin(entry)
    forget = node.kernel.forget
    node.kernel.forget = Mock(side_effect=OSError("no memory"))  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no memory"):
        watching.forget(ID)
    node.kernel.forget = forget  # type: ignore[method-assign]
    watching.forget(ID)
    assert (node.kernel.groups, node.store.items("watched", dict)) == ({}, [])


def test_where_nobody_can_be_watched_any_more_containers_go_all_the_same(node: Node) -> None:
    watching, entry = node.start(), node.container()
    watching.begin(entry)
    node.kernel.forget = Mock(side_effect=FailedPrecondition("bpf: no"))  # type: ignore[method-assign]
    watching.forget(ID)
    assert node.store.items("watched", dict) == []


def test_what_it_did_last_is_known_after_its_end(node: Node) -> None:
    watching, entry = node.start(), node.container(on_drift="stop")
    watching.adopt(baseline("read"))
    watching.begin(entry)
    node.kernel.groups[GROUP] = [READ, WRITE]
    ended(watching, entry)
    assert node.kernel.groups == {}
    (told,) = node.told("drifted")
    assert (told["calls"], told["live"]) == (["write"], False)
    assert node.parts.janitor.jobs == [], "there is nobody to stop"
    found = node.start().find(ID)
    assert [one.name for one in found.profile.system] == ["read", "write"]
    assert found.drift is not None
    assert found.drift.system == ("write",)


def test_an_end_that_was_not_noted_is_noted_after_a_restart(node: Node) -> None:
    watching, entry = node.start(), node.container()
    watching.begin(entry)
    node.kernel.groups[GROUP] = [READ]
    entry.change(state=State.TERMINATED)
    again = node.start()
    again.recover()
    assert (node.kernel.groups, again.find(ID).profile.calls) == ({}, 1)


def test_a_group_that_nobody_counted_meanwhile_is_not_whole(node: Node) -> None:
    watching, entry = node.start(), node.container()
    watching.begin(entry)
    entry.change(state=State.RUNNING)
    node.kernel.groups.clear()
    again = node.start()
    again.recover()
    assert node.kernel.groups == {GROUP: []}
    assert not again.find(ID).profile.whole


def test_a_watch_that_a_kill_cut_off_is_whole_as_nothing_ran_yet(node: Node) -> None:
    watching, entry = node.start(), node.container()
    watching.begin(entry)
    node.kernel.groups.clear()
    again = node.start()
    again.begin(entry)
    assert (set(node.kernel.groups), again.find(ID).profile.whole) == ({GROUP}, True)


def test_a_host_that_can_watch_nobody_any_more_is_no_reason_not_to_start(node: Node) -> None:
    watching, entry = node.start(), node.container()
    watching.begin(entry)
    entry.change(state=State.RUNNING)

    def refuse(*_: object) -> set[int]:
        raise FailedPrecondition("bpf: no")

    node.kernel.watched = node.kernel.keep = node.kernel.order = refuse  # type: ignore[method-assign,assignment]
    again = node.start()
    again.recover()
    assert [one["why"] for one in node.told("unwatched")] == ["bpf: no"]
    assert not again.standing(entry.record).watched


def test_groups_of_nobody_are_forgotten(node: Node) -> None:
    watching, entry = node.start(), node.container()
    watching.begin(entry)
    node.kernel.groups[99] = [READ]
    node.parts.containers.drop(entry)
    again = node.start()
    again.recover()
    assert node.kernel.groups == {}
    assert node.store.items("watched", dict) == []


def test_what_goes_is_forgotten_whole(node: Node) -> None:
    watching, entry = node.start(), node.container()
    watching.begin(entry)
    ended(watching, entry)
    ended(watching, entry, Event.REMOVE)
    watching.forget(ID)
    assert node.store.items("watched", dict) == []
    assert node.kernel.settled >= 1


def test_a_start_that_is_repeated_watches_once(node: Node) -> None:
    watching, entry = node.start(), node.container()
    watching.begin(entry)
    node.kernel.groups[GROUP] = [READ]
    watching.begin(entry)
    found = watching.find(ID)
    assert (found.profile.calls, found.profile.whole) == (1, True)


def test_what_the_runtime_does_for_an_exec_is_excused_only_after_one(node: Node) -> None:
    watching, entry = node.start(), node.container()
    watching.adopt(baseline("read"))
    watching.begin(entry)
    watching.executing(entry.record)
    node.kernel.groups[GROUP] = [READ, SETGROUPS, PTRACE]
    watching._news()
    assert [one["calls"] for one in node.told("drifted")] == [["ptrace"]]
    other = node.container("d" * 64)
    watching.begin(other)
    node.kernel.groups[0xD] = [READ, SETGROUPS]
    watching._news()
    assert node.told("drifted")[1]["calls"] == ["setgroups"]


def test_a_pin_counts_for_those_that_run_but_not_for_those_with_one_of_their_own(node: Node) -> None:
    watching, first = node.start(), baseline("read")
    watching.adopt(first)
    named, plain = node.container("d" * 64, baseline=first.digest), node.container()
    for entry in (named, plain):
        watching.begin(entry)
    second = baseline("read", "write")
    watching.adopt(second)
    assert watching.find("d" * 64).observed.baseline == first.digest
    assert watching.find(ID).observed.baseline == second.digest
    watching.unpin(IMAGE)
    assert (watching.find(ID).drift, watching.find(ID).observed.baseline) == (None, "")
    assert [type_ for type_, _ in node.notes] == ["baseline.pinned", "baseline.pinned", "baseline.unpinned"]


def test_what_another_engine_does_with_an_image_is_not_compared(node: Node) -> None:
    watching, entry = node.start(), node.container()
    watching.adopt(baseline("read", engine="wasm"))
    watching.begin(entry)
    assert watching.find(ID).drift is None
    watching.adopt(replace(baseline("read"), machine="none"))
    assert watching.find(ID).drift is None
    watching.adopt(baseline("read"))
    assert watching.find(ID).drift is not None


def test_learning_is_told_and_pinning_uses_it(node: Node) -> None:
    watching, entry = node.start(), node.container()
    watching.begin(entry)
    node.kernel.groups[GROUP] = [READ]
    made = watching.learn(ID, anew=False)
    assert watching.pin(IMAGE) == made
    assert node.told("learned") == [{"baseline": made.digest}]
    assert node.told("baseline.pinned") == [{"subject": f"image/{IMAGE}", "baseline": made.digest}]


@pytest.mark.parametrize(
    ("known", "why"),
    [(None, "not on this node"), (baseline("read", engine="wasm"), "on the wasm engine")],
)
def test_a_baseline_that_a_contract_names_must_be_here_and_fit(node: Node, known: Baseline | None, why: str) -> None:
    watching = node.start()
    digest = "sha256:0" if known is None else known.digest
    if known is not None:
        watching.adopt(known)
    entry = node.container(baseline=digest)
    with pytest.raises(FailedPrecondition, match=why):
        watching.prepare(entry.record)


def test_what_a_guest_asks_of_its_host_is_looked_at_from_time_to_time(node: Node) -> None:
    watching, entry = node.start(), node.container(engine="wasm", on_drift="stop")
    watching.adopt(baseline(host=("wasi fd_write",), engine="wasm"))
    node.parts.counts["wasm"] = (HostCount("wasi fd_write", 1), HostCount("wasi sock_accept", 1))
    watching.begin(entry)
    watching._look([watching.find(ID).observed])
    assert [one["calls"] for one in node.told("drifted")] == [["wasi sock_accept"]]
    watching.close()
