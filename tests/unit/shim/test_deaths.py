"""The watch for processes that end."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Iterator

import pytest

from forgeone_shim.kernel.procs import Pidfd
from forgeone_shim.kernel.spawn import Child, spawn
from forgeone_shim.shim.deaths import Deaths


@pytest.fixture
def told() -> queue.Queue[str]:
    return queue.Queue()


@pytest.fixture
def deaths(told: queue.Queue[str]) -> Iterator[Deaths]:
    found = Deaths(told.put)
    yield found
    found.close()


def sleeper() -> Child:
    return spawn("/bin/sleep", ["sleep", "1000"])


def end(child: Child) -> None:
    os.kill(child.pidfd.pid, signal.SIGKILL)
    child.wait()
    child.pidfd.close()


def test_an_end_is_told_once_and_by_name(deaths: Deaths, told: queue.Queue[str]) -> None:
    first, second = sleeper(), sleeper()
    deaths.follow("first", Pidfd(first.pidfd.pid))
    deaths.follow("second", Pidfd(second.pidfd.pid))
    end(second)
    assert told.get(timeout=10) == "second"
    end(first)
    assert told.get(timeout=10) == "first"
    assert told.empty()


def test_what_is_forgotten_is_not_told(deaths: Deaths, told: queue.Queue[str]) -> None:
    first, second = sleeper(), sleeper()
    deaths.follow("first", Pidfd(first.pidfd.pid))
    deaths.follow("second", Pidfd(second.pidfd.pid))
    deaths.forget("first")
    end(first)
    end(second)
    assert told.get(timeout=10) == "second"
    assert told.empty()


def test_a_callback_that_fails_ends_nothing() -> None:
    told: queue.Queue[str] = queue.Queue()

    def fail(name: str) -> None:
        told.put(name)
        raise RuntimeError(name)

    deaths = Deaths(fail)
    for name in ("first", "second"):
        child = sleeper()
        deaths.follow(name, Pidfd(child.pidfd.pid))
        end(child)
        assert told.get(timeout=10) == name
    deaths.close()
    deaths.close()
