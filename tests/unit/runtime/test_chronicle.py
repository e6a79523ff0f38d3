"""What the audit log is told, and that nobody is answered before it is there."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import ContainerSpec, Namespaces, Resources, SandboxSpec
from forgeone_shim.audit import wal
from forgeone_shim.config.model import Config
from forgeone_shim.contract.facts import Bound, ImageFacts
from forgeone_shim.contract.model import Contract
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, Unavailable
from forgeone_shim.lifecycle.machine import Event, Lifecycle, State, Subject
from forgeone_shim.runtime.chronicle import Chronicle
from forgeone_shim.runtime.recorded import Recorded
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord
from tests.unit.audit.logs import Node, soon

POD = SandboxRecord(
    id="p" * 64,
    spec=SandboxSpec(name="web", uid="u1", namespace="shop"),
    engine="native",
    state=State.BOOTED,
    created_at=1,
    namespaces=Namespaces(network=None, ipc=None, uts=None, pid=""),
    hostname="web",
    cgroup_parent="/x",
)
CONTAINER = ContainerRecord(
    id="c" * 64,
    sandbox_id=POD.id,
    spec=ContainerSpec(name="main", image="busybox"),
    engine="native",
    state=State.TERMINATED,
    image_id="sha256:1",
    image_ref="busybox@sha256:2",
    layers=(),
    log_path="",
    cgroup="/x/y",
    stop_signal="SIGTERM",
    created_at=1,
    exit_code=3,
    reason="Error",
)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    made.start()
    yield made
    made.close()


def chronicle(node: Node, *, arguments: bool = False) -> Chronicle:
    assert node.log is not None
    return Chronicle(node.log, lambda id_: POD if id_ == POD.id else None, arguments=arguments)


@pytest.fixture
def full(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node whose disk takes nothing any more."""

    def fail(_: wal.Segments, _data: bytes, _end: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    node.write(1)
    monkeypatch.setattr(wal.Segments, "write", fail)
    made = chronicle(node)
    with pytest.raises(Unavailable):
        made.note("node.test", "node").wait(soon())
    yield node
    monkeypatch.undo()


def test_each_step_of_a_life_is_told_with_what_is_known(node: Node) -> None:
    made, lifecycle = chronicle(node), Lifecycle()
    lifecycle.subscribe(made.told)
    lifecycle.step(
        Subject.CONTAINER,
        CONTAINER.id,
        sandbox_id=POD.id,
        before=State.RUNNING,
        event=Event.EXIT,
        commit=lambda _: CONTAINER,
    )
    made.settle(soon())
    found = node.events()[-1]
    assert (found.type, found.subject) == ("dev.forgeone.container.exited", f"container/{CONTAINER.id}")
    assert found.data == {
        "sandbox": POD.id,
        "pod": {"namespace": "shop", "name": "web", "uid": "u1", "attempt": 0},
        "handler": "",
        "engine": "native",
        "container": {"id": CONTAINER.id, "name": "main", "attempt": 0},
        "image": {"id": "sha256:1", "ref": "busybox@sha256:2"},
        "event": "exit",
        "from": "running",
        "to": "terminated",
        "exit_code": 3,
        "reason": "Error",
        "message": "",
    }


def test_every_event_of_the_lifecycle_has_a_word(node: Node) -> None:
    made = chronicle(node)
    lifecycle = Lifecycle()
    lifecycle.subscribe(made.told)
    before = {Event.BOOT: State.CREATED, Event.START: State.BOOTED, Event.RESUME: State.PAUSED}
    for event in Event:
        start = State.TERMINATED if event is Event.REMOVE else before.get(event, State.RUNNING)
        lifecycle.step(Subject.SANDBOX, POD.id, sandbox_id=POD.id, before=start, event=event, commit=lambda _: POD)
    made.settle(soon())
    words = ["booted", "started", "paused", "resumed", "stopping", "exited", "removed"]
    assert node.types()[1:] == [f"sandbox.{word}" for word in words]


def test_contract_and_fingerprint_are_told_where_there_are_any(node: Node) -> None:
    bound = Bound(contract=Contract(minimum_entropy=256), given=True, signers=("key:1",), policies=("house",))
    image = ImageFacts(name="busybox", repository="docker.io/library/busybox", digest="d", verified_by=("key:2",))
    told = chronicle(node).about(replace(CONTAINER, bound=bound, dna="sha256:3", entropy=256, trusted=image))
    assert told["contract"] == {"digest": bound.contract.digest, "policies": ["house"], "signers": ["key:1"]}
    assert (told["dna"], told["entropy"], told["verified_by"]) == ("sha256:3", 256, ["key:2"])
    assert chronicle(node).about(replace(POD, bound=bound))["contract"] == told["contract"]


def test_a_container_whose_pod_is_gone_is_told_of_all_the_same(node: Node) -> None:
    assert node.log is not None
    made = Chronicle(node.log, lambda _: None)
    assert made.about(CONTAINER)["sandbox"] == POD.id
    assert made.about(None) == {}


def test_a_denial_is_durable_and_has_a_number(node: Node) -> None:
    made = chronicle(node)
    entry = made.denied("start", "container/1", soon(), rule="house/r", reason="no")
    found = node.killed().events()[-1]
    assert entry == f"audit:{found.id}"
    assert found.type == "dev.forgeone.denied"
    assert found.data == {"point": "start", "rule": "house/r", "reason": "no"}


def test_a_verb_answers_once_its_entries_are_durable(node: Node) -> None:
    made = chronicle(node)
    with made.settled(soon()):
        ticket = made.note("node.test", "node")
    ticket.wait(Deadline.after(0))
    with pytest.raises(RuntimeError, match="the verb's own"), made.settled(soon()):
        ticket = made.note("node.test", "node")
        raise RuntimeError("the verb's own")
    ticket.wait(Deadline.after(0))


def test_who_has_no_time_left_is_told_that(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    made, written, begun = chronicle(node), threading.Event(), threading.Event()
    write = wal.Segments.write

    def slow(self: wal.Segments, data: bytes, end: int) -> None:
        begun.set()
        written.wait(10)
        write(self, data, end)

    node.write(1)
    monkeypatch.setattr(wal.Segments, "write", slow)
    # Whoever comes first writes, and the others wait for that.
    first = threading.Thread(target=made.note("node.test", "node").wait, args=(soon(),))
    first.start()
    assert begun.wait(10)
    with pytest.raises(DeadlineExceeded), made.settled(Deadline.after(0.05)):
        made.note("node.test", "node")
    monkeypatch.setattr("forgeone_shim.runtime.chronicle.PATIENCE", 0.05)
    with pytest.raises(Unavailable, match="behind"), made.settled(Deadline()):
        made.note("node.test", "node")
    with made.settled(Deadline(), must=False):
        made.note("node.test", "node")
    with pytest.raises(Unavailable, match="behind"), made.session("exec", CONTAINER, Deadline()):
        raise AssertionError("it began")
    written.set()
    first.join()
    made.settle(soon(), must=False)


def test_on_a_full_disk_nothing_begins(full: Node) -> None:
    made = chronicle(full)
    began = False
    with pytest.raises(Unavailable, match="No space left"), made.settled(soon()):
        began = True
    with pytest.raises(Unavailable, match="No space left"), made.session("exec", CONTAINER, soon()):
        began = True
    assert not began


def test_on_a_full_disk_things_end(full: Node) -> None:
    made = chronicle(full)
    with made.settled(soon(), must=False):
        made.note("container.exited", "container/1")
    assert "not written yet" in made.denied("start", "container/1", soon(), rule="r", reason="no")


def test_what_begins_is_durable_before_it_does_and_told_when_it_has_ended(node: Node) -> None:
    made = chronicle(node)
    with made.session("exec", CONTAINER, soon(), program="sh") as told:
        began = node.killed().events()[-1]
        assert began.type == "dev.forgeone.container.exec.began"
        told["exit_code"] = 4
    with pytest.raises(OSError, match="it failed"), made.session("attach", CONTAINER, soon()):
        raise OSError("it failed")
    made.settle(soon())
    ended = [one for one in node.events() if one.type.endswith("ended")]
    assert (ended[0].data["began"], ended[0].data["exit_code"]) == (f"audit:{began.id}", 4)
    assert ended[1].data["error"] == "OSError"


def test_arguments_are_told_only_where_that_is_asked_for(node: Node) -> None:
    told = chronicle(node).command(("sh", "-c", "secret"))
    assert (told["program"], told["arguments"], len(told["sha256"])) == ("sh", 3, 64)
    assert "secret" not in str(told)
    assert chronicle(node, arguments=True).command(("sh", "-c", "x")) == {"command": ["sh", "-c", "x"]}
    assert chronicle(node).command(("\udcff",))["arguments"] == 1


def test_what_there_is_after_a_start_is_told(node: Node) -> None:
    made = chronicle(node)
    made.started(Config(), "sha256:before")
    made.recovered([POD, CONTAINER])
    made.loaded(["log.level"], (), "sha256:after")
    made.refused("bad key")
    made.stopped()
    made.settle(soon())
    found = node.events()[1:]
    assert [one.type.removeprefix("dev.forgeone.") for one in found] == [
        "node.started",
        "sandbox.recovered",
        "container.recovered",
        "node.configuration.loaded",
        "node.configuration.refused",
        "node.stopped",
    ]
    assert (found[2].data["state"], found[2].data["exit_code"]) == ("terminated", 3)
    assert found[0].data["policies"] == "sha256:before"
    assert found[3].data == {"changed": ["log.level"], "waiting": [], "policies": "sha256:after"}


def test_limits_are_told_as_they_are(node: Node) -> None:
    made = chronicle(node)
    made.noted("updated", CONTAINER, resources=Resources(memory_limit=5), overhead=None)
    made.settle(soon())
    assert node.events()[-1].data["resources"]["memory_limit"] == 5


class _Console:
    readers, writer, exited = (3,), 4, 5

    def __init__(self) -> None:
        self.closed = 0

    def read(self, fd: int) -> None:
        return None

    def write(self, data: bytes) -> int:
        return len(data)

    def end_input(self) -> None:
        return

    def resize(self, width: int, height: int) -> None:
        return

    def finish(self) -> int:
        return 9

    def close(self) -> None:
        self.closed += 1


def test_a_console_tells_its_end_once() -> None:
    ends: list[dict[str, int]] = []
    inner = _Console()
    console = Recorded(inner, lambda **told: ends.append(told))
    assert (console.readers, console.writer, console.exited) == ((3,), 4, 5)
    assert console.read(3) is None
    assert console.write(b"abc") == 3
    console.end_input()
    console.resize(1, 2)
    assert console.finish() == 9
    console.close()
    console.close()
    assert (ends, inner.closed) == ([{"exit_code": 9}], 2)
