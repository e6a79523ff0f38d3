"""Events of two runtimes in one stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from cri.upstream.events import Junction
from forgeone_shim.config.model import UpstreamConfig
from forgeone_shim.errors import Unimplemented
from forgeone_shim.lifecycle.machine import State
from tests.unit.upstream.conftest import PATIENT, Front, Here, Other, create, pull, run

NATIVE = "forgeone-native"
CREATED, STARTED, STOPPED, DELETED = (
    pb.CONTAINER_CREATED_EVENT,
    pb.CONTAINER_STARTED_EVENT,
    pb.CONTAINER_STOPPED_EVENT,
    pb.CONTAINER_DELETED_EVENT,
)

Listen = Callable[[], Any]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cri.upstream.events._PAUSES", (0.02,))


@pytest.fixture
def listen(node: Front) -> Iterator[Listen]:
    calls: list[Any] = []

    def begin() -> Any:
        call = node.cri.GetContainerEvents(pb.GetEventsRequest(), timeout=PATIENT)
        call.initial_metadata()  # comes once nothing is missed any more
        calls.append(call)
        return call

    yield begin
    for call in calls:
        call.cancel()


def take(heard: Any, count: int) -> list[tuple[str, int]]:
    return [(event.container_id, event.container_event_type) for event in islice(heard, count)]


def test_events_of_both_are_told(node: Front, listen: Listen) -> None:
    heard = listen()
    mine = run(node, "a", NATIVE)
    assert take(heard, 2) == [(mine, CREATED), (mine, STARTED)]
    theirs = run(node, "b")
    assert take(heard, 2) == [(theirs, CREATED), (theirs, STARTED)]


def container(node: Front, pod: str, of: str, name: str) -> str:
    pull(node, "busybox", of)
    return create(node, pod, "busybox", name)


def test_what_happened_while_the_other_one_was_away_is_told_of(node: Front, other: Other, listen: Listen) -> None:
    pod, gone = run(node, "b"), run(node, "c")
    first = container(node, pod, "b", "first")
    heard = listen()
    # What a client that listed before it listened may not have seen.
    told = take(heard, 5)
    assert {id_ for id_, _ in told} == {pod, gone, first}
    other.stop()
    mine = run(node, "a", NATIVE)
    assert take(heard, 2) == [(mine, CREATED), (mine, STARTED)]
    runtime = other.runtime
    runtime.start_container(first, None)  # type: ignore[arg-type]
    runtime.change(first, state=State.TERMINATED, finished_at=1)
    runtime.remove_sandbox(gone, None)  # type: ignore[arg-type]
    other.start()
    events = list(islice(heard, 4))
    assert [(event.container_id, event.container_event_type) for event in events] == [
        (first, STARTED),
        (first, STOPPED),
        (gone, STOPPED),
        (gone, DELETED),
    ]
    assert events[0].pod_sandbox_status.metadata.name == "b"
    assert [one.id for one in events[0].containers_statuses] == [first]
    # What is gone is still named.
    assert (events[2].pod_sandbox_status.id, events[2].pod_sandbox_status.metadata.name) == (gone, "c")
    later = container(node, pod, "b", "later")
    assert (later, CREATED) in take(heard, 1)


def test_a_client_is_not_kept_waiting_for_a_runtime_that_is_away(node: Front, other: Other, listen: Listen) -> None:
    other.stop()
    heard = listen()
    mine = run(node, "a", NATIVE)
    assert take(heard, 2) == [(mine, CREATED), (mine, STARTED)]
    other.start()
    grpc.channel_ready_future(node.links.now._channel).result(PATIENT)  # type: ignore[union-attr]
    theirs = run(node, "b")
    assert {(theirs, CREATED), (theirs, STARTED)} == set(take(heard, 2))


def test_a_client_is_not_kept_waiting_for_a_runtime_that_hangs(
    node: Front, other: Other, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cri.upstream.events.PATIENCE", 0.1)
    let_go = threading.Event()
    other.verbs["ListPodSandbox"] = lambda *_: let_go.wait(PATIENT)
    try:
        heard = listen()
        mine = run(node, "a", NATIVE)
        assert take(heard, 2) == [(mine, CREATED), (mine, STARTED)]
    finally:
        let_go.set()


def test_what_is_told_late_is_not_dated_after_what_it_shows(node: Front, other: Other, listen: Listen) -> None:
    """A kubelet drops an event that is older than the one before."""
    pod = run(node, "b")
    heard = listen()
    take(heard, 2)
    other.stop()
    asked: list[int] = []

    def status(request: Any, call: Any) -> Any:
        asked.append(time.time_ns())
        del other.verbs["PodSandboxStatus"]
        return pb.PodSandboxStatusResponse(status=pb.PodSandboxStatus(id=request.pod_sandbox_id))

    other.verbs["PodSandboxStatus"] = status
    other.runtime.stop_sandbox(pod, None)  # type: ignore[arg-type]
    other.start()
    event = next(heard)
    assert (event.container_id, event.container_event_type) == (pod, STOPPED)
    assert event.created_at <= asked[0]


def test_a_runtime_without_events_has_a_kubelet_list_instead(node: Front, other: Other) -> None:
    def none(_request: object, _call: object) -> None:
        raise Unimplemented("unknown method GetContainerEvents")

    other.verbs["GetContainerEvents"] = none
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as raised:
            list(node.cri.GetContainerEvents(pb.GetEventsRequest(), timeout=PATIENT))
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        # Others end the stream at once.
        other.verbs["GetContainerEvents"] = lambda *_: iter(())


def test_a_client_that_has_gone_leaves_no_thread_behind(node: Front, listen: Listen) -> None:
    def busy() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name == "upstream-events"]

    heard = listen()
    assert len(busy()) == 2
    threads = busy()
    heard.cancel()
    for thread in threads:
        thread.join(PATIENT)
    assert busy() == []


def test_a_client_comes_again_when_there_is_another_runtime(directory: Path, here: Here, other: Other) -> None:
    node = Front(directory / "alone.sock", here, UpstreamConfig())
    try:
        heard = node.cri.GetContainerEvents(pb.GetEventsRequest(), timeout=PATIENT)
        heard.initial_metadata()
        mine = run(node, "a", NATIVE)
        assert take(heard, 2) == [(mine, CREATED), (mine, STARTED)]
        node.links.follow(UpstreamConfig(socket=str(other.path)))
        assert list(heard) == []
    finally:
        node.close()


def test_what_is_put_in_is_out_or_was_not_taken() -> None:
    junction, results = Junction(), []
    threads = [threading.Thread(target=lambda: results.append(junction.put(b"x"))) for _ in range(2)]
    threads[0].start()
    taken = iter(junction)
    assert next(taken) == b"x"
    assert results == []
    threads[1].start()
    assert next(taken) == b"x"
    threads[0].join(PATIENT)
    assert results == [True]
    junction.close()
    threads[1].join(PATIENT)
    assert results == [True, False]
    assert list(taken) == []
