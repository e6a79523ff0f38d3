"""The end of forgeoned."""

import threading
import time
from typing import cast

import pytest
from structlog.testing import capture_logs

from cri import daemon
from forgeone_shim.runtime.runtime import Runtime


class Stuck:
    def __init__(self) -> None:
        self.release = threading.Event()

    def close(self) -> None:
        self.release.wait(10)


def test_work_that_is_stuck_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "CLOSE_PATIENCE", 0.05)
    stuck = Stuck()
    began = time.monotonic()
    with capture_logs() as logs:
        daemon._close(cast(Runtime, stuck))
    assert time.monotonic() - began < 5
    assert [line["event"] for line in logs] == ["ends with work under way"]
    stuck.release.set()
    daemon._close(cast(Runtime, stuck))
