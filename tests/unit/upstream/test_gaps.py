"""What was missed while nobody could be asked."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from cri.api import runtime_pb2 as pb
from cri.upstream.gaps import Listed, Track, last_status

CREATED, STARTED, STOPPED, DELETED = (
    pb.CONTAINER_CREATED_EVENT,
    pb.CONTAINER_STARTED_EVENT,
    pb.CONTAINER_STOPPED_EVENT,
    pb.CONTAINER_DELETED_EVENT,
)
READY, NOT_READY = pb.SANDBOX_READY, pb.SANDBOX_NOTREADY
_OF = {CREATED: pb.CONTAINER_CREATED, STARTED: pb.CONTAINER_RUNNING, STOPPED: pb.CONTAINER_EXITED}


def listed(pods: Mapping[str, int], **containers: int) -> Listed:
    return Listed.of(
        [pb.PodSandbox(id=id_, state=state, labels={"of": id_}) for id_, state in pods.items()],  # type: ignore[arg-type]
        [pb.Container(id=id_, pod_sandbox_id=id_[0], state=state) for id_, state in containers.items()],  # type: ignore[arg-type]
    )


def event(id_: str, step: int) -> pb.ContainerEventResponse:
    status = pb.PodSandboxStatus(id=id_[0], labels={"of": id_[0]})
    return pb.ContainerEventResponse(container_id=id_, container_event_type=step, pod_sandbox_status=status)  # type: ignore[arg-type]


def missed(track: Track, now: Listed) -> list[tuple[str, int]]:
    return [(one.id, one.type) for one in track.missed(now)]


def test_nothing_is_missed_where_nothing_has_happened() -> None:
    track, now = Track(), listed({"p": READY}, p1=pb.CONTAINER_RUNNING)
    track.begin(now)
    assert missed(track, now) == []


def test_every_step_is_told_pods_first() -> None:
    track = Track()
    track.begin(listed({}))
    now = listed({"p": READY}, p1=pb.CONTAINER_EXITED, p2=pb.CONTAINER_CREATED)
    told = [("p", CREATED), ("p", STARTED), ("p1", CREATED), ("p1", STARTED), ("p1", STOPPED), ("p2", CREATED)]
    assert missed(track, now) == told
    assert missed(track, now) == []


def test_what_is_gone_has_ended_containers_first() -> None:
    track = Track()
    track.begin(listed({"p": READY}, p1=pb.CONTAINER_RUNNING, p2=pb.CONTAINER_EXITED))
    found = track.missed(listed({}))
    assert [(one.id, one.type) for one in found] == [
        ("p1", STOPPED),
        ("p1", DELETED),
        ("p2", DELETED),
        ("p", STOPPED),
        ("p", DELETED),
    ]
    assert {one.pod.labels["of"] for one in found} == {"p"}
    last = last_status(found[0].pod)
    assert (last.id, last.state, last.labels["of"]) == ("p", NOT_READY, "p")


def test_what_was_made_up_is_not_told_again_by_the_stream() -> None:
    track = Track()
    track.begin(listed({"p": READY}, p1=pb.CONTAINER_RUNNING))
    assert track.news(event("p1", STARTED))
    assert missed(track, listed({"p": READY}, p1=pb.CONTAINER_EXITED)) == [("p1", STOPPED)]
    assert not track.news(event("p1", STOPPED))
    assert track.news(event("p1", DELETED))
    assert not track.news(event("p1", DELETED))
    assert missed(track, listed({"p": READY})) == []


def test_what_came_before_the_list_is_told_all_the_same() -> None:
    """A client that lists before it listens has not seen it."""
    track = Track()
    track.begin(listed({"p": READY}, p1=pb.CONTAINER_EXITED))
    assert track.news(event("p1", STOPPED))


def test_the_pod_of_an_event_is_known_when_it_is_gone() -> None:
    track = Track()
    track.begin(listed({}))
    for id_, step in (("p", CREATED), ("p", STARTED), ("p1", CREATED)):
        assert track.news(event(id_, step))
    [*_, last] = track.missed(listed({}))
    assert (last.id, last.type, last.pod.labels["of"]) == ("p", DELETED, "p")


LIVES = st.dictionaries(st.sampled_from(["p1", "p2", "q1"]), st.integers(CREATED, DELETED))


@given(st.lists(st.tuples(LIVES, st.booleans()), max_size=6))
def test_whatever_is_missed_each_life_is_told_whole_and_once(steps: list[tuple[dict[str, int], bool]]) -> None:
    """Lives only go on; of each change the stream tells, or, in a gap, a list."""
    track = Track()
    track.begin(listed({"p": READY, "q": READY}))
    reached: dict[str, int] = {}
    told: dict[str, list[int]] = {}
    for wanted, heard in steps:
        for id_, step in wanted.items():
            for one in range(reached.get(id_, -1) + 1, step + 1):
                reached[id_] = one
                if heard and track.news(event(id_, one)):
                    told.setdefault(id_, []).append(one)
        if not heard:
            alive = {id_: _OF[step] for id_, step in reached.items() if step != DELETED}  # type: ignore[index]
            for of, step in missed(track, listed({"p": READY, "q": READY}, **alive)):
                told.setdefault(of, []).append(step)
    seen = {id_: steps for id_, steps in told.items() if len(id_) > 1}
    for id_, life in seen.items():
        assert life == sorted(set(life))
        assert life[-1] == reached[id_] or reached[id_] == DELETED
    # What came and went within one gap was never seen by anybody.
    assert all(reached[id_] == DELETED for id_ in reached.keys() - seen.keys())
