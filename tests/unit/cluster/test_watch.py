"""Following a cluster, over an API that is a script; its answers are a real server's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from forgeone_shim.cluster.watch import FIRST_DELAY, LONGEST_DELAY, ApiError, Watch
from forgeone_shim.cluster.wire import Begun, Came, Gone, Heard, Listed, Told, Trouble
from tests.unit.cluster.server import RECORDED, recorded

EVENTS = RECORDED["watch"]["documents"]
ADDED, MODIFIED, DELETED, *BOOKMARKS = EVENTS


class Script:
    """Answers in their order; an exception is raised. An endless watch is not needed: tests take steps."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str]] = []
        self.told: list[Told] = []
        self.seen: dict[str, Mapping[str, Any] | None] = {}
        self.waited: list[float] = []
        self.clock = 0.0
        self.watch_ = Watch(
            self, self.told.append, self.seen.__setitem__, self.waited.append, jitter=lambda: 0.5, now=self.now
        )

    def now(self) -> float:
        return self.clock

    def page(self, token: str) -> Mapping[str, Any]:
        self.asked.append(("page", token))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def watch(self, version: str) -> Iterator[Mapping[str, Any]]:
        self.asked.append(("watch", version))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        for one in answer:
            if isinstance(one, Exception):
                raise one
            yield one
        self.clock += 300

    def mark(self, name: str, patch: Mapping[str, Any]) -> None:
        raise AssertionError

    def tell(self, event: Mapping[str, Any]) -> None:
        raise AssertionError

    def steps(self, number: int = 1) -> list[Any]:
        """What was told meanwhile: names of what came, and messages."""
        self.told.clear()
        for _ in range(number):
            self.watch_.step()
        return [one.given["metadata"]["name"] if isinstance(one, Came) else one for one in self.told]


PAGE, LAST = recorded("page"), recorded("last_page")


def test_a_list_of_several_parts_is_one_and_the_watch_goes_on_from_it() -> None:
    script = Script(PAGE, LAST, [])
    assert script.steps() == [Begun(), "policy-a", "policy-b", "policy-c", Listed(), Heard()]
    token = PAGE["metadata"]["continue"]
    assert script.asked == [("page", ""), ("page", token), ("watch", PAGE["metadata"]["resourceVersion"])]


def test_of_an_object_comes_what_decides_something() -> None:
    script = Script(LAST, [])
    script.steps()
    found = next(one for one in script.told if isinstance(one, Came))
    item = LAST["items"][0]
    assert found.given == {
        "apiVersion": "zta.forgeone.dev/v1alpha1",
        "kind": "ZTAPolicy",
        "metadata": {"name": "policy-c"},
        "spec": item["spec"],
    }
    assert (found.uid, found.generation) == (item["metadata"]["uid"], 1)


def test_what_happens_is_told_in_order_and_the_next_watch_begins_after_it() -> None:
    script = Script(LAST, EVENTS, [])
    assert script.steps() == [Begun(), "policy-c", Listed(), "policy-d", "policy-d", Gone("policy-a"), *[Heard()] * 3]
    script.steps()
    assert script.asked[-1] == ("watch", BOOKMARKS[-1]["object"]["metadata"]["resourceVersion"])
    assert script.seen["policy-a"] is None and script.seen["policy-d"] == MODIFIED["object"]
    assert script.waited == []


@pytest.mark.parametrize("expired", [[recorded("expired_version")], ApiError(410, "gone")])
def test_a_version_that_the_server_forgot_has_everything_listed_anew(expired: Any) -> None:
    script = Script(PAGE, LAST, expired, LAST, [])
    script.steps()
    assert script.steps() == [Begun(), "policy-c", Listed(), Heard()]
    assert script.seen["policy-a"] is None, "what the new list does not have is not there"
    assert script.waited == [FIRST_DELAY]


def test_a_list_whose_token_expires_begins_again() -> None:
    script = Script(PAGE, ApiError(410, "expired"), LAST, [])
    assert script.steps() == [Begun(), "policy-a", "policy-b"]
    assert script.steps() == [Begun(), "policy-c", Listed(), Heard()]


def test_a_watch_that_breaks_off_goes_on_from_where_it_was() -> None:
    script = Script(LAST, [ADDED, ApiError(0, "reset")], [])
    assert script.steps()[-2:] == ["policy-d", Trouble("reset")]
    script.steps()
    assert script.asked[-1] == ("watch", ADDED["object"]["metadata"]["resourceVersion"])


def test_a_server_that_is_away_is_asked_ever_more_slowly() -> None:
    script = Script(*[ApiError(0, "refused")] * 9, LAST, [ADDED], ApiError(0, "refused"))
    assert script.steps() == [Begun(), Trouble("refused")]
    script.steps(8)
    assert script.waited == [1, 2, 4, 8, 16, 32, LONGEST_DELAY, LONGEST_DELAY, LONGEST_DELAY]
    script.steps(2)
    assert script.waited[-1] == FIRST_DELAY


def test_a_server_that_asks_for_time_gets_it() -> None:
    script = Script(ApiError(429, "busy", 17.0))
    script.steps()
    assert script.waited == [17.0]


def test_a_server_that_ends_watches_at_once_is_not_asked_in_a_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(LAST, [], [], [])
    monkeypatch.setattr(script.watch_, "_now", lambda: 0.0)
    script.steps(3)
    assert script.waited == [1, 2, 4]


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"type": "ADDED"},
        {"type": "ADDED", "object": {"metadata": {"name": "x"}}},
        {"type": "WHAT", "object": ADDED["object"]},
        {"type": "ERROR", "object": {"code": 500, "message": "etcd"}},
    ],
)
def test_an_event_that_cannot_be_is_a_fault_of_the_server(event: dict[str, Any]) -> None:
    script = Script(LAST, [event])
    assert isinstance(script.steps()[-1], Trouble)


@pytest.mark.parametrize("answer", [{"kind": "Status", "items": []}, {"kind": "ZTAPolicyList"}, {"items": []}])
def test_what_is_no_list_takes_nothing_away(answer: dict[str, Any]) -> None:
    script = Script(answer | {"metadata": {"resourceVersion": "1"}})
    started, told = script.steps()
    assert started == Begun() and "is no list" in told.why


def test_what_went_while_a_list_broke_off_is_seen_to_be_gone() -> None:
    script = Script(PAGE, LAST, ApiError(410, "expired"), PAGE, ApiError(0, "away"), LAST, [])
    script.steps(2)
    assert all(script.seen.values())
    script.steps()
    gone = {name for name, given in script.seen.items() if given is None}
    assert gone == {"policy-a", "policy-b"}


def test_a_list_without_a_version_is_none() -> None:
    script = Script(LAST | {"metadata": {}})
    assert script.steps() == [Begun(), "policy-c", Trouble("the list has no resourceVersion")]


def test_an_object_that_no_reader_takes_comes_without_what_it_says() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    item = LAST["items"][0]
    script = Script(LAST | {"items": [item | {"spec": {"a": deep}}, item | {"spec": {"a": [1] * 70000}}, item]}, [])
    script.steps()
    first, second, third = (one for one in script.told if isinstance(one, Came))
    assert "nested deeper" in first.fault and "spec" not in first.given
    assert "more than" in second.fault and "spec" not in second.given
    assert third.fault == "" and "spec" in third.given
