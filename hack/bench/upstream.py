#!/usr/bin/env python3
"""What a call costs that forgeoned forwards to another runtime: the same one asked of Debian's containerd, and through.

    python -m hack.bench.upstream --pods 20 --calls 500

Starts a registry, a containerd and a forgeoned of its own, and removes them. Milliseconds, median and 99th percentile;
both ways are taken in turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from cri.api import runtime_pb2 as pb
from hack.bench.bench import Pod, Runtime
from hack.lab import containerd, images
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry


def main(argv: Sequence[str]) -> int:
    """Run it; returns 0, or 1 where there is no containerd."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=20, help="of containerd, one container each")
    parser.add_argument("--calls", type=int, default=500)
    options = parser.parse_args(argv)
    if why := containerd.missing():
        sys.stderr.write(f"{why}\n")
        return 1
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forgeone-bench-")))
        registry = stack.enter_context(Registry(directory / "registry")).address
        image = images.push(registry, "bench/busybox:latest", images.busybox())
        pause = images.push(registry, "bench/pause:latest", images.busybox(("sleep", "1000000")))
        certs = directory / "certs.d" / registry
        certs.mkdir(parents=True)
        (certs / "hosts.toml").write_text(f'server = "http://{registry}"\n')
        other = containerd.Containerd(directory / "containerd", pause=pause, certs=str(certs.parent))
        stack.callback(other.close)
        stack.callback(other.start().remove_pods)
        daemon = Daemon([registry], {"FORGEONE_LOG__LEVEL": "warning"}, {"upstream.socket": other.socket})
        stack.callback(daemon.close)
        daemon.start()
        direct, through = Runtime("containerd", other.socket), Runtime("forgeone", daemon.socket)
        direct.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=image)), timeout=120)
        pods = [Pod(direct, image, str(directory)) for _ in range(options.pods)]
        for pod in pods:
            pod.run()
            pod.create()
            pod.start()
        for name, request in _calls(pods[0]):
            ways = [_way(getattr(runtime.cri, name), request) for runtime in (direct, through)]
            _report(name, ways, max(20, options.calls // 10) if name == "ExecSync" else options.calls)
    return 0


def _calls(pod: Pod) -> list[tuple[str, object]]:
    return [
        ("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id)),
        ("ContainerStatus", pb.ContainerStatusRequest(container_id=pod.container_id)),
        ("ListPodSandbox", pb.ListPodSandboxRequest()),
        ("ListContainers", pb.ListContainersRequest()),
        ("ListContainerStats", pb.ListContainerStatsRequest()),
        ("Status", pb.StatusRequest()),
        ("ExecSync", pb.ExecSyncRequest(container_id=pod.container_id, cmd=["true"])),
    ]


def _way(verb: Callable[..., object], request: object) -> Callable[[], object]:
    return lambda: verb(request, timeout=60)


def _report(name: str, ways: Sequence[Callable[[], object]], calls: int) -> None:
    taken: list[list[float]] = [[] for _ in ways]
    for number in range(calls + 10):
        for way, times in zip(ways, taken, strict=True):
            began = time.perf_counter()
            way()
            if number >= 10:
                times.append((time.perf_counter() - began) * 1000)
    (direct, late), (through, later) = ((_at(times, 0.5), _at(times, 0.99)) for times in taken)
    sys.stdout.write(
        f"{name:20} direct {direct:7.2f} (p99 {late:6.2f})  through {through:7.2f} (p99 {later:6.2f})"
        f"  more {through - direct:5.2f} ms\n"
    )


def _at(times: list[float], part: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * part))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
