"""A kubelet's word for its own health."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.node import health


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_INTERVAL", 0.01)
    monkeypatch.setattr(health, "_SETTLED", 0.0)


@pytest.fixture
def kubelet() -> Iterator[http.server.HTTPServer]:
    answers = iter([500, 500])

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(next(answers, 200) if self.path == "/healthz" else 404)
            self.send_header("Content-Length", "3")
            self.end_headers()
            self.wfile.write(b"no\n")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def test_a_kubelet_is_waited_for_until_it_is_healthy(kubelet: http.server.HTTPServer) -> None:
    health.healthz("127.0.0.1", kubelet.server_port, Deadline.after(10))


def test_the_last_answer_of_one_that_is_not_is_told(kubelet: http.server.HTTPServer) -> None:
    with pytest.raises(FailedPrecondition, match="the kubelet is not healthy: 500 no"):
        health.healthz("127.0.0.1", kubelet.server_port, Deadline.after(0))
    with pytest.raises(FailedPrecondition, match="refused"):
        health.healthz("127.0.0.1", 1, Deadline.after(0.05))


def test_one_that_says_nothing_has_to_stay(at_once: None) -> None:
    health.stays(lambda: 7, Deadline())
    pids = iter([7, 8])
    with pytest.raises(FailedPrecondition, match="does not stay up"):
        health.stays(lambda: next(pids), Deadline())
    with pytest.raises(FailedPrecondition, match="does not stay up"):
        health.stays(lambda: 0, Deadline())
