"""Calls for one restored pod that come at the same time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from engines.base import ContainerSpec, SandboxSpec
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import AlreadyExists
from forgeone_shim.runtime.checkpoints import Checkpoints, RestoredContainer

SPEC = SandboxSpec(name="p", uid="u", namespace="n")
ASKED = (ContainerSpec(name="main"),)
MADE = ("s1", (RestoredContainer("main", "c1"),))


def test_a_repeated_restore_joins_the_one_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, go_on, calls = threading.Event(), threading.Event(), []

    def restore(_self: object, *request: Any) -> Any:
        calls.append(request)
        under_way.set()
        assert go_on.wait(30)
        return MADE

    monkeypatch.setattr(Checkpoints, "_restore", restore)
    nothing = cast(Any, None)
    checkpoints = Checkpoints(nothing, nothing, nothing, nothing)

    def ask(path: str, seconds: float) -> Any:
        return checkpoints.restore(path, SPEC, {}, ASKED, Deadline.after(seconds))

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, "/saved", 30)
        assert under_way.wait(30)
        second = pool.submit(ask, "/saved", 1000)
        _has_joined(calls[0][-1], 500)
        other = pool.submit(ask, "/else", 2000)
        _has_joined(calls[0][-1], 1500)
        go_on.set()
        assert first.result(30) == second.result(30) == MADE
        with pytest.raises(AlreadyExists):
            other.result(30)
    assert len(calls) == 1


def _has_joined(deadline: Deadline, seconds: float) -> None:
    """Whoever joins a call moves its deadline."""
    while (deadline.remaining() or 0) < seconds:
        time.sleep(0.01)
