"""Listeners hear everything in order, or are told that they do not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from forgeone_shim.errors import ResourceExhausted
from forgeone_shim.lifecycle import machine
from forgeone_shim.lifecycle.machine import Event, Lifecycle, State, Subject, Transition
from forgeone_shim.runtime.events import RESUME, EventHub, Feed, Happening


class Clock:
    """A clock that is put forward."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def hub(limit: int = 100, clock: Clock | None = None) -> tuple[Lifecycle, EventHub]:
    """One that has been there for long, unless it has a clock."""
    life, own = Lifecycle(), clock or Clock()
    events = EventHub(life, lambda made: Happening(made, None, ()), limit, own)
    if clock is None:
        own.now += RESUME
    return life, events


def happen(life: Lifecycle, id_: str, event: Event = Event.BOOT, before: State = State.CREATED) -> None:
    life.step(Subject.CONTAINER, id_, sandbox_id="s", before=before, event=event, commit=lambda _: None)


def ids(feed: Feed, count: int) -> list[str]:
    heard: Iterator[Happening] = iter(feed)
    return [next(heard).transition.id for _ in range(count)]


def test_each_listener_hears_all_from_when_it_began() -> None:
    life, events = hub()
    happen(life, "before")
    first = events.listen()
    happen(life, "one")
    second = events.listen()
    happen(life, "two")
    assert ids(first, 2) == ["one", "two"]
    assert ids(second, 1) == ["two"]


def test_a_listener_that_is_behind_gets_what_was_queued_and_then_an_error() -> None:
    life, events = hub(limit=2)
    slow, other = events.listen(), events.listen()
    for name in ("one", "two"):
        happen(life, name)
    in_time = iter(other)
    assert [next(in_time).transition.id for _ in range(2)] == ["one", "two"]
    happen(life, "three")
    assert next(in_time).transition.id == "three"
    happen(life, "four")
    heard = iter(slow)
    assert [next(heard).transition.id for _ in range(2)] == ["one", "two"]
    with pytest.raises(ResourceExhausted, match="more than 2 events behind"):
        next(heard)
    assert next(in_time).transition.id == "four"
    happen(life, "five")
    slow.close()
    happen(life, "six")
    assert ids(events.listen(), 1) == ["six"], "what was before is in the lists that it was told to make"


def test_closing_wakes_the_one_who_waits_and_may_be_repeated() -> None:
    life, events = hub()
    feed = events.listen()
    ended = threading.Event()

    def run() -> None:
        assert list(feed) == []
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    feed.close()
    feed.close()
    assert ended.wait(5)
    happen(life, "later")
    assert list(feed) == []


def test_the_next_listener_begins_where_one_that_went_had_come_to() -> None:
    life, events = hub()
    first = events.listen()
    for name in ("had", "in the middle", "not yet"):
        happen(life, name)
    heard = iter(first)
    assert [next(heard).transition.id for _ in range(2)] == ["had", "in the middle"]
    first.close()
    happen(life, "while nobody listened")
    second, third = events.listen(), events.listen()
    happen(life, "now")
    assert ids(second, 4) == ["in the middle", "not yet", "while nobody listened", "now"]
    assert ids(third, 1) == ["now"]


def test_of_several_that_went_the_last_is_followed_first() -> None:
    life, events = hub()
    one, other = events.listen(), events.listen()
    one.close()
    happen(life, "a")
    assert ids(other, 1) == ["a"]
    other.close()
    other.close()
    happen(life, "b")
    assert ids(events.listen(), 2) == ["a", "b"], "that it had the first was not known yet"
    assert ids(events.listen(), 2) == ["a", "b"]
    happen(life, "c")
    assert ids(events.listen(), 0) == []


def test_what_happens_after_the_start_waits_for_those_who_listened_before_it() -> None:
    life, events = hub(clock=Clock())
    happen(life, "found at the start")
    assert ids(events.listen(), 1) == ["found at the start"]


def test_nothing_is_kept_for_long_nor_with_a_gap() -> None:
    clock = Clock()
    life, events = hub(limit=2, clock=clock)
    for name in ("a", "b", "c"):
        happen(life, name)
    late = events.listen()
    happen(life, "d")
    assert ids(late, 1) == ["d"], "what was kept had a gap"
    late.close()
    clock.now += RESUME
    later = events.listen()
    happen(life, "e")
    assert ids(later, 1) == ["e"]


def test_no_picture_is_taken_where_nobody_has_listened_for_long() -> None:
    taken: list[Transition] = []

    def snapshot(made: Transition) -> Happening:
        taken.append(made)
        return Happening(made, None, ())

    life, clock = Lifecycle(), Clock()
    events = EventHub(life, snapshot, clock=clock)
    clock.now += RESUME
    happen(life, "one")
    feed = events.listen()
    happen(life, "two")
    feed.close()
    happen(life, "three")
    clock.now += RESUME
    happen(life, "four")
    assert [made.id for made in taken] == ["two", "three"]


def test_the_times_of_events_only_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    life, events = hub()
    feed = events.listen()
    for now in (50, 40, 40, 60):
        monkeypatch.setattr(machine, "time", SimpleNamespace(time_ns=lambda now=now: now))
        happen(life, str(now))
    heard = iter(feed)
    assert [next(heard).transition.at for _ in range(4)] == [50, 51, 52, 60]


def test_a_later_event_never_shows_an_older_state() -> None:
    count = 0
    life = Lifecycle()

    def commit(_: State) -> None:
        nonlocal count
        with lock:
            count += 1

    lock = threading.Lock()
    pictures: list[int] = []

    def snapshot(made: Transition) -> Happening:
        pictures.append(count)
        return Happening(made, None, ())

    events = EventHub(life, snapshot)
    feed = events.listen()

    def make() -> None:
        for number in range(200):
            life.step(
                Subject.CONTAINER,
                str(number),
                sandbox_id="s",
                before=State.CREATED,
                event=Event.BOOT,
                commit=commit,
            )

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids(feed, 800)) == 800
    assert pictures == sorted(pictures)
