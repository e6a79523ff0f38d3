"""One worker: state machines one after another until its time is over. Its last line of output is its report."""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from cri.api import runtime_pb2 as pb
from hack.soak.machine import Life
from hack.soak.patient import Client

_STEPS = 40
# At a time. The first of them is always the simplest there is, so more than one is needed.
_MACHINES = 6


def main() -> None:
    """``worker.py SOCKET IMAGE LOGS LABEL SECONDS``."""
    socket, image, logs, label, seconds = sys.argv[1:]
    client, made, failures = Client(socket), 0, []

    class Mine(Life):
        def __init__(self) -> None:
            nonlocal made
            made += 1
            super().__init__()

    Mine.client, Mine.image, Mine.logs, Mine.worker = client, image, Path(logs), label
    # What happened cannot be made to happen again: neither shrunk nor replayed.
    once = settings(
        max_examples=_MACHINES,
        stateful_step_count=_STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        try:
            run_state_machine_as_test(Mine, settings=once)
        except Exception:
            failures.append(traceback.format_exc())
            sys.stderr.write(failures[-1])
            _clear(client, label)
    report = {"machines": made, "calls": client.calls, "cut_off": client.cut_off, "failures": failures}
    sys.stdout.write(json.dumps(report) + "\n")


def _clear(client: Client, label: str) -> None:
    """What a machine that failed has left is not the next one's."""
    mine = pb.PodSandboxFilter(label_selector={"worker": label})
    for pod in client.ListPodSandbox(pb.ListPodSandboxRequest(filter=mine)).items:
        client.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod.id))
        client.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id))


if __name__ == "__main__":
    main()
