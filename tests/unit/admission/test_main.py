"""forgeone-admission as a process: from nothing but an API server to an answer, and to its end."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from cri.admission import api, following
from forgeone_shim.contract.parse import PREFIX
from hack.lab.api import served
from tests.unit.admission.test_following import policy
from tests.unit.admission.test_review import question
from tests.unit.admission.test_server import JSON, ask

SECRET = f"{api.secrets('house')}/certificates"


def connect(port: int, authority: bytes) -> ssl.SSLSocket:
    context = ssl.create_default_context(cadata=authority.decode())
    plain = socket.create_connection(("127.0.0.1", port), 10)
    return context.wrap_socket(plain, server_hostname="hook.house.svc")


def until(lines: IO[str], event: str) -> None:
    """Read the log up to that event."""
    assert any(json.loads(line)["event"] == event for line in lines)


def ready(opened: Callable[[], http.client.HTTPConnection]) -> http.client.HTTPConnection:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with suppress(OSError):
            one = opened()
            if ask(one, "GET", "/readyz")[0] == 200:
                return one
        time.sleep(0.02)
    raise AssertionError("it did not become ready")


def test_it_serves_until_it_is_told_to_stop_and_a_little_longer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environ = os.environ | {"FORGEONE_ADMISSION_NAMESPACE": "house", "FORGEONE_ADMISSION_SERVICE": "hook"}
    argv = [sys.executable, "-m", "cri.admission.main", "--listen", f"127.0.0.1:{port}", "--secret", "certificates"]
    with served(tmp_path) as (double, kubeconfig):
        double.put(SECRET, {"kind": "Secret"})
        double.put(f"{following.POLICIES}/gold", policy("gold"))
        with subprocess.Popen(
            [*argv, "--kubeconfig", kubeconfig], env=environ, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                with double.changed:
                    assert double.changed.wait_for(lambda: "data" in double.objects[SECRET], 30)
                    authority = base64.b64decode(double.objects[SECRET]["data"]["ca.crt"])
                assert process.stderr is not None
                until(process.stderr, "serving")

                def opened() -> http.client.HTTPConnection:
                    made = http.client.HTTPConnection("127.0.0.1", port)
                    made.sock = connect(port, authority)
                    return made

                # It has its certificate, and is about to use it.
                one = ready(opened)
                body = json.dumps(question({f"{PREFIX}runtime_policy_id": "gold"}))
                code, answer = ask(one, "POST", "/validate", body, JSON)
                assert (code, json.loads(answer)["response"]["allowed"]) == (200, True)

                process.send_signal(signal.SIGTERM)
                until(process.stderr, "leaving")
                # Endpoints are told; whoever has not heard of it is answered.
                assert ask(opened(), "GET", "/readyz")[0] == 503
                assert ask(one, "POST", "/validate", body, JSON)[0] == 200
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
            finally:
                process.kill()
