from __future__ import annotations

import time

import pytest

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded


def test_a_deadline_passes_at_its_time() -> None:
    deadline = Deadline.after(0.01)
    deadline.check("early")
    time.sleep(0.02)
    assert (deadline.passed, deadline.remaining()) == (True, 0.0)
    with pytest.raises(DeadlineExceeded, match="deadline passed late"):
        deadline.check("late")


def test_no_deadline_never_passes() -> None:
    assert (Deadline().passed, Deadline().remaining(), Deadline().remaining(3.0)) == (False, None, 3.0)


def test_the_later_of_two_deadlines_counts() -> None:
    deadline = Deadline.after(0.0)
    deadline.extend(Deadline.after(60.0))
    assert not deadline.passed
    deadline.extend(Deadline())
    assert deadline.remaining() is None


def test_an_abandoned_deadline_has_passed_and_says_why() -> None:
    told: list[str] = []
    deadline = Deadline()
    deadline.listen(lambda: told.append("before"))
    deadline.abandon()
    deadline.listen(lambda: told.append("after"))
    assert told == ["before", "after"]
    assert deadline.passed
    with pytest.raises(DeadlineExceeded, match="the caller went away in the middle"):
        deadline.check("in the middle")


def test_who_ignores_a_deadline_is_not_told() -> None:
    told: list[int] = []
    deadline = Deadline()

    def listener() -> None:
        told.append(1)

    deadline.listen(listener)
    deadline.ignore(listener)
    deadline.abandon()
    assert told == []


def test_a_deadline_within_another_passes_with_it_or_before_it() -> None:
    outer = Deadline.after(60)
    with outer.within(5) as inner:
        left = inner.remaining()
        assert left is not None
        assert left <= 5
        outer.abandon()
        with pytest.raises(DeadlineExceeded, match="the caller went away"):
            inner.check("here")


def test_a_deadline_within_another_can_be_abandoned_alone() -> None:
    outer = Deadline()
    with outer.within() as inner:
        assert inner.remaining() is None
        inner.abandon()
        assert inner.passed
    assert not outer.passed
    outer.abandon()
