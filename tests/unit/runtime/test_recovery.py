"""What a start does about the network: nothing that hangs on one pod keeps the others waiting."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from forgeone_shim.errors import InternalError
from forgeone_shim.runtime.recovery import Recovery


class Janitor:
    """Keeps what is to be retried."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def until_done(self, _name: str, job: Callable[[], None], *, after: float = 0.0) -> None:
        assert after > 0
        self.jobs.append(job)


def test_a_pod_that_cannot_be_detached_keeps_no_other_from_being_looked_after() -> None:
    left = ["stuck"]
    recovered: list[set[str]] = []
    janitor = Janitor()
    network = SimpleNamespace(reconcile=lambda _known: tuple(left), recovered=recovered.append)
    parts = SimpleNamespace(network=network, janitor=janitor, handlers=SimpleNamespace(conf_dirs=lambda: {"/x"}))
    Recovery(cast("Any", parts), cast("Any", None), cast("Any", None), cast("Any", None))._recover_network()
    assert recovered == [{"/x"}]
    (again,) = janitor.jobs
    with pytest.raises(InternalError, match="stuck"):
        again()
    left.clear()
    again()
    assert recovered == [{"/x"}], "once a start"
