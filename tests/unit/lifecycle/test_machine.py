"""The table is the only way a state changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.lifecycle.machine import TABLE, Event, Lifecycle, State, Subject, Transition, diagram, next_state


@given(st.lists(st.sampled_from(Event)))
def test_whatever_happens_only_steps_of_the_table_are_made_and_the_end_is_final(events: list[Event]) -> None:
    state = State.CREATED
    for event in events:
        try:
            after = next_state(state, event, name="x")
        except FailedPrecondition:
            assert event not in TABLE[state]
            continue
        assert TABLE[state][event] is after
        assert state is not State.REMOVED
        state = after


def test_every_state_but_the_last_can_end() -> None:
    over = (State.TERMINATED, State.REMOVED)
    assert all(TABLE[state][Event.EXIT] is State.TERMINATED for state in State if state not in over)


def test_only_what_has_ended_is_removed() -> None:
    assert [state for state in State if Event.REMOVE in TABLE[state]] == [State.TERMINATED]
    assert TABLE[State.REMOVED] == {}


def test_a_step_is_committed_before_it_is_told() -> None:
    told: list[object] = []
    life = Lifecycle()
    stop = life.subscribe(told.append)
    life.step(Subject.CONTAINER, "c", sandbox_id="s", before=State.BOOTED, event=Event.START, commit=told.append, pid=1)
    assert told[0] is State.RUNNING
    assert isinstance(told[1], Transition)
    assert (told[1].before, told[1].after, told[1].detail) == (State.BOOTED, State.RUNNING, {"pid": 1})
    stop()
    life.step(Subject.CONTAINER, "c", sandbox_id="s", before=State.RUNNING, event=Event.EXIT, commit=lambda _: None)
    assert len(told) == 2


def test_a_step_tells_what_was_stored() -> None:
    told: list[Transition] = []
    life = Lifecycle()
    life.subscribe(told.append)
    life.step(
        Subject.SANDBOX, "s", sandbox_id="s", before=State.TERMINATED, event=Event.REMOVE, commit=lambda _: "record"
    )
    assert (told[0].after, told[0].record) == (State.REMOVED, "record")


def test_a_step_whose_commit_fails_is_not_told() -> None:
    told: list[Transition] = []
    life = Lifecycle()
    life.subscribe(told.append)

    def fail(_: State) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        life.step(Subject.SANDBOX, "s", sandbox_id="s", before=State.CREATED, event=Event.BOOT, commit=fail)
    assert told == []


def test_the_diagram_has_every_step() -> None:
    text = diagram()
    assert text.count("-->") == sum(len(row) for row in TABLE.values()) + 2
