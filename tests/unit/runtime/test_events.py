"""Listeners hear everything in order, or are told that they do not."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from forgeone_shim.errors import ResourceExhausted
from forgeone_shim.lifecycle.machine import Event, Lifecycle, State, Subject, Transition
from forgeone_shim.runtime.events import EventHub, Feed, Happening


def hub(limit: int = 100) -> tuple[Lifecycle, EventHub]:
    life = Lifecycle()
    return life, EventHub(life, lambda made: Happening(made, None, ()), limit)


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
    assert ids(other, 2) == ["one", "two"]
    happen(life, "three")
    happen(life, "four")
    heard = iter(slow)
    assert [next(heard).transition.id for _ in range(2)] == ["one", "two"]
    with pytest.raises(ResourceExhausted, match="more than 2 events behind"):
        next(heard)
    assert ids(other, 2) == ["three", "four"]


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


def test_no_picture_is_taken_while_nobody_listens() -> None:
    taken: list[Transition] = []

    def snapshot(made: Transition) -> Happening:
        taken.append(made)
        return Happening(made, None, ())

    life = Lifecycle()
    events = EventHub(life, snapshot)
    happen(life, "one")
    feed = events.listen()
    happen(life, "two")
    feed.close()
    happen(life, "three")
    assert [made.id for made in taken] == ["two"]


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
