"""Whether a kubelet works: its own answer on ``/healthz``, which it gives only after the runtime has answered it."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from typing import Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition

_INTERVAL: Final = 0.5
_SETTLED: Final = 15.0
"""Seconds after which a kubelet that cannot reach its runtime has ended (it gives up after 10)."""
_ANSWER: Final = 5.0


def healthz(address: str, port: int, deadline: Deadline) -> None:
    """Wait until ``http://address:port/healthz`` is answered with 200; there is no event to wait for.

    :raises FailedPrecondition: the deadline has passed; tells the last answer.
    """
    pause = threading.Event()
    while True:
        said = _asked(address, port, deadline.remaining(_ANSWER) or 0.001)
        if not said:
            return
        if deadline.passed:
            raise FailedPrecondition(f"the kubelet is not healthy: {said}", fix="journalctl -u kubelet")
        pause.wait(deadline.remaining(_INTERVAL))


def stays(main_pid: Callable[[], int], deadline: Deadline) -> None:
    """Wait long enough to know that a kubelet without ``/healthz`` has not ended.

    :raises FailedPrecondition: it has.
    """
    before = main_pid()
    threading.Event().wait(deadline.remaining(_SETTLED))
    if not before or main_pid() != before:
        raise FailedPrecondition("the kubelet does not stay up", fix="journalctl -u kubelet")


def _asked(address: str, port: int, seconds: float) -> str:
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        text = answer.read(512).decode(errors="replace").strip()
        return "" if answer.status == 200 else f"{answer.status} {text}"
    except (OSError, http.client.HTTPException) as error:
        return f"http://{address}:{port}/healthz: {error}"
    finally:
        connection.close()
