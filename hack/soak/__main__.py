"""Soak: ``python -m hack.soak --minutes 30 --workers 8`` on a forgeoned of its own, which is killed at random.

Exit code 1 when an invariant broke, something was left, two pods had one address, or forgeoned's memory grew. In the
last quarter of the time it is not killed: its memory is measured there.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cri.api import runtime_pb2 as pb
from hack.lab import images
from hack.lab.daemon import REPOSITORY, Daemon
from hack.lab.registry import Registry
from hack.soak.patient import Client, Refused

_SAMPLE_SECONDS = 5.0
_GROWTH_KIB = 8 * 1024
_PULL_SECONDS = 60


@dataclass
class Watch:
    """What was seen of forgeoned: kills, seconds until it served again, memory of its undisturbed time."""

    kills: int = 0
    back: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    doubles: list[str] = field(default_factory=list)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m hack.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--kill-after", type=float, nargs=2, default=(2.0, 20.0), metavar="SECONDS", help="at random")
    asked = parser.parse_args()
    seconds = asked.minutes * 60
    with tempfile.TemporaryDirectory(prefix="forgeone-soak-") as folder, Registry(Path(folder)) as registry:
        image = images.push(registry.address, "busybox:latest", images.busybox())
        daemon = Daemon([registry.address])
        try:
            daemon.start()
            daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=image)), timeout=_PULL_SECONDS)
            workers = [_worker(daemon, image, number, seconds) for number in range(asked.workers)]
            watch = _disturb(daemon, seconds, asked.kill_after)
            reports = [_report(worker) for worker in workers]
            left = [
                *(pod.id for pod in daemon.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items),
                *daemon.left(),
            ]
        finally:
            daemon.close()
    return _tell(watch, reports, left)


def _worker(daemon: Daemon, image: str, number: int, seconds: float) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "hack.soak.worker", daemon.socket, image, str(daemon.directory / "logs")]
    argv += [f"w{number}", str(seconds)]
    return subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def _disturb(daemon: Daemon, seconds: float, between: tuple[float, float]) -> Watch:
    watch, over = Watch(), threading.Event()
    began = time.monotonic()
    looking = threading.Thread(target=_look_for_doubles, args=(daemon.socket, watch, over))
    looking.start()
    while (wait := random.uniform(*between)) < began + seconds * 0.75 - time.monotonic():
        time.sleep(wait)
        daemon.kill()
        watch.kills += 1
        time.sleep(random.choice((0.0, 0.0, 0.5)))
        killed = time.monotonic()
        daemon.start()
        watch.back.append(time.monotonic() - killed)
    while time.monotonic() < began + seconds:
        time.sleep(min(_SAMPLE_SECONDS, seconds / 20))
        watch.memory.append(_resident(daemon.pid))
    over.set()
    looking.join()
    return watch


def _resident(pid: int) -> int:
    """KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def _look_for_doubles(socket: str, watch: Watch, over: threading.Event) -> None:
    """Two ready pods that have one address at the same time."""
    client = Client(socket)

    def addresses(ids: list[str]) -> dict[str, str]:
        found = {}
        for id_ in ids:
            try:
                status = client.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=id_)).status
            except Refused:
                continue
            if status.state == pb.SANDBOX_READY and status.network.ip:
                found[id_] = status.network.ip
        return found

    while not over.wait(2.0):
        ids = [pod.id for pod in client.ListPodSandbox(pb.ListPodSandboxRequest()).items]
        found = addresses(ids)
        counts = Counter(found.values())
        for id_, address in addresses([one for one in found if counts[found[one]] > 1]).items():
            # One of them may have gone between the two looks; what is still there must be alone by now.
            if sum(other == address for other in addresses(list(found)).values()) > 1:
                watch.doubles.append(f"{address} of {id_}")


def _report(worker: subprocess.Popen[str]) -> dict[str, Any]:
    said, _ = worker.communicate()
    if worker.returncode or not said.strip():
        return {"machines": 0, "calls": {}, "cut_off": 0, "failures": [f"worker ended with {worker.returncode}"]}
    report: dict[str, Any] = json.loads(said.splitlines()[-1])
    return report


def _tell(watch: Watch, reports: list[dict[str, Any]], left: list[str]) -> int:
    calls: Counter[str] = Counter()
    failures: list[str] = []
    for report in reports:
        calls.update(report["calls"])
        failures += report["failures"]
    third = max(1, len(watch.memory) // 3)
    growth = statistics.median(watch.memory[-third:]) - statistics.median(watch.memory[:third]) if watch.memory else 0
    summary = {
        "machines": sum(report["machines"] for report in reports),
        "calls": sum(calls.values()),
        "verbs": dict(calls.most_common()),
        "cut_off": sum(report["cut_off"] for report in reports),
        "kills": watch.kills,
        "back_seconds": {"median": statistics.median(watch.back), "max": max(watch.back)} if watch.back else {},
        "memory_kib": {"first": watch.memory[:1], "last": watch.memory[-1:], "growth": growth},
        "doubles": watch.doubles,
        "left": left,
        "failures": len(failures),
    }
    print(json.dumps(summary, indent=2))
    for failure in failures[:5]:
        print(failure, file=sys.stderr)
    return 1 if failures or left or watch.doubles or growth > _GROWTH_KIB else 0


if __name__ == "__main__":
    sys.exit(main())
