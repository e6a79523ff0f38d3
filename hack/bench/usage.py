#!/usr/bin/env python3
"""What forgeoned spends on telling the usage of many containers: milliseconds of processor time and of waiting a call.

    python -m hack.bench.usage --pods 50 --containers 5 --calls 20

Starts a registry and a forgeoned of its own, and removes them. The first call of each kind measures what later ones
take from the cache, and is not counted.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from cri.api import runtime_pb2 as pb
from hack.bench.bench import Pod, Runtime
from hack.lab import images
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry

_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


def main(argv: Sequence[str]) -> int:
    """Run it; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=50)
    parser.add_argument("--containers", type=int, default=5, help="a pod")
    parser.add_argument("--calls", type=int, default=20)
    options = parser.parse_args(argv)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forgeone-bench-")))
        registry = stack.enter_context(Registry(directory / "registry")).address
        image = images.push(registry, "bench/busybox:latest", images.busybox())
        daemon = Daemon([registry], {"FORGEONE_LOG__LEVEL": "warning"})
        stack.callback(daemon.close)
        daemon.start()
        stack.callback(daemon.remove_pods)
        runtime = Runtime("forgeone", daemon.socket)
        runtime.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=image)), timeout=120)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: _fill(runtime, image, directory, options.containers), range(options.pods)))
        _report(runtime, daemon.pid, options.calls)
    return 0


def _fill(runtime: Runtime, image: str, directory: Path, containers: int) -> None:
    pod = Pod(runtime, image, str(directory))
    pod.run()
    for number in range(containers):
        pod.container.metadata.name = f"c{number}"
        pod.container.log_path = f"c{number}.log"
        pod.create()
        pod.start()


def _report(runtime: Runtime, pid: int, calls: int) -> None:
    cri = runtime.cri
    cases: dict[str, Callable[[], object]] = {
        "ListContainers": lambda: cri.ListContainers(pb.ListContainersRequest()).containers,
        "ListContainerStats": lambda: cri.ListContainerStats(pb.ListContainerStatsRequest()).stats,
        "ListPodSandboxStats": lambda: cri.ListPodSandboxStats(pb.ListPodSandboxStatsRequest()).stats,
        "ListPodSandboxMetrics": lambda: cri.ListPodSandboxMetrics(pb.ListPodSandboxMetricsRequest()).pod_metrics,
    }
    sys.stdout.write(f"{'':24}{'entries':>9}{'CPU ms':>9}{'wall ms':>9}\n")
    for name, call in cases.items():
        entries = len(call())  # type: ignore[arg-type]
        spent, began = _spent(pid), time.perf_counter()
        for _ in range(calls):
            call()
        wall = (time.perf_counter() - began) * 1000 / calls
        sys.stdout.write(f"{name:24}{entries:9}{(_spent(pid) - spent) / calls:9.1f}{wall:9.1f}\n")


def _spent(pid: int) -> float:
    """Milliseconds of processor time, user and system (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_MS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
