"""A retry joins the call in flight."""

import threading
import time

import pytest

from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded, NotFound
from forgeone_shim.runtime.flights import Flights


def test_a_retry_joins_the_create_in_flight() -> None:
    flights: Flights[str] = Flights()
    running, go = threading.Event(), threading.Event()
    runs: list[int] = []

    def work(_: Deadline) -> str:
        runs.append(1)
        running.set()
        go.wait(5)
        return "made"

    results: list[str] = []
    first = threading.Thread(target=lambda: results.append(flights.run("k", NEVER, work)))
    first.start()
    running.wait(5)
    second = threading.Thread(target=lambda: results.append(flights.run("k", NEVER, work)))
    second.start()
    time.sleep(0.05)
    go.set()
    first.join(5)
    second.join(5)
    assert (results, runs) == (["made", "made"], [1])
    assert flights.run("k", NEVER, lambda _: "again") == "again"


def test_a_joiner_moves_the_deadline_of_the_work() -> None:
    flights: Flights[bool] = Flights()
    running, joined = threading.Event(), threading.Event()
    seen: list[bool] = []

    def work(deadline: Deadline) -> bool:
        running.set()
        joined.wait(5)
        time.sleep(0.1)
        seen.append(deadline.passed)
        return True

    first = threading.Thread(target=lambda: flights.run("k", Deadline.after(0.05), work))
    first.start()
    running.wait(5)

    def join() -> None:
        threading.Timer(0.02, joined.set).start()
        flights.run("k", Deadline.after(30), work)

    second = threading.Thread(target=join)
    second.start()
    first.join(5)
    second.join(5)
    assert seen == [False]


def test_a_joiner_whose_deadline_passes_first_is_told_so() -> None:
    flights: Flights[str] = Flights()
    running, go = threading.Event(), threading.Event()

    def work(_: Deadline) -> str:
        running.set()
        go.wait(5)
        return "x"

    first = threading.Thread(target=lambda: flights.run("k", NEVER, work))
    first.start()
    running.wait(5)
    with pytest.raises(DeadlineExceeded, match="still under way"):
        flights.run("k", Deadline.after(0.01), work)
    go.set()
    first.join(5)


def test_a_joiner_gets_the_error_too_and_the_next_call_starts_afresh() -> None:
    flights: Flights[str] = Flights()

    def work(_: Deadline) -> str:
        raise NotFound("image", "x")

    with pytest.raises(NotFound):
        flights.run("k", NEVER, work)
    assert flights.run("k", NEVER, lambda _: "ok") == "ok"
