#!/usr/bin/env python3
r"""What a node full of containers costs CRI runtimes: lists in milliseconds, exec probes in processor time.

    python -m hack.bench.node --image IMAGE --pods 50 --containers 5 --rate 100 --seconds 20 \
        --runtime containerd=/run/containerd/containerd.sock --runtime forgeone=/run/forgeone/forgeone.sock

The runtimes take turns in one run, and each is compared with the first. Processor time is that of the daemon, of the
supervisors of its containers, and of everything they have executed and waited for, what runs inside the container too.
``--only lists`` or ``--only probes`` leaves the other out. Nothing else should run on the host meanwhile.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cri.api import runtime_pb2 as pb
from hack.bench.bench import Pod, Runtime, logs

_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
_TURN_SECONDS = 5.0


@dataclass
class Node:
    """One runtime, its pods, and the first container of each."""

    runtime: Runtime
    pods: list[Pod] = field(default_factory=list)
    probed: list[str] = field(default_factory=list)
    spent_ms: float = 0.0
    waited: float = 0.0
    probes: int = 0

    def fill(self, image: str, directory: str, pods: int, containers: int) -> None:
        """Start everything, a few pods at a time."""
        self.pods = [Pod(self.runtime, image, directory) for _ in range(pods)]
        with ThreadPoolExecutor(4) as pool:
            self.probed = list(pool.map(lambda pod: _start(pod, containers), self.pods))

    def empty(self) -> None:
        """Stop and remove everything."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(_remove, self.pods))

    def processor_ms(self) -> float:
        """Milliseconds that the daemon, supervisors, and what they waited for have used so far (proc_pid_stat(5))."""
        daemon = _peer(self.runtime.socket)
        mark = os.path.dirname(self.runtime.socket).encode()
        total = 0.0
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError):
                    if int(name) == daemon or _supervises(Path(f"/proc/{name}/cmdline").read_bytes(), mark):
                        fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                        total += sum(map(int, fields[11:15])) * _TICK_MS
        return total

    def probe(self, rate: float, seconds: float) -> None:
        """``/bin/true`` in one container after the other, so many a second, or as many as the runtime manages."""
        lock, began = threading.Lock(), time.perf_counter()
        count = 0

        def work() -> None:
            nonlocal count
            while True:
                with lock:
                    number, count = count, count + 1
                due = began + number / rate
                if due >= began + seconds or time.perf_counter() >= began + seconds:
                    return
                time.sleep(max(0.0, due - time.perf_counter()))
                target = self.probed[number % len(self.probed)]
                request = pb.ExecSyncRequest(container_id=target, cmd=["/bin/true"], timeout=60)
                if self.runtime.cri.ExecSync(request, timeout=60).exit_code != 0:
                    raise SystemExit(f"{self.runtime.name}: exec failed")
                with lock:
                    self.probes += 1

        before = self.processor_ms()
        with ThreadPoolExecutor(16) as pool:
            for done in [pool.submit(work) for _ in range(16)]:
                done.result()
        self.waited += time.perf_counter() - began
        self.spent_ms += self.processor_ms() - before


def main(argv: Sequence[str]) -> int:
    """Run it; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", action="append", required=True, metavar="NAME=SOCKET")
    parser.add_argument("--image", required=True, help="has /bin/sh and /bin/true")
    parser.add_argument("--pods", type=int, default=50)
    parser.add_argument("--containers", type=int, default=5, help="a pod")
    parser.add_argument("--calls", type=int, default=40, help="of each list")
    parser.add_argument("--rate", type=float, default=100, help="probes a second")
    parser.add_argument("--seconds", type=float, default=20, help="of probes")
    parser.add_argument("--only", action="append", choices=("lists", "probes"))
    given = parser.parse_args(argv)
    sections = given.only or ["lists", "probes"]
    nodes = []
    with ExitStack() as stack:
        directory = stack.enter_context(logs())
        for text in given.runtime:
            name, _, path = text.partition("=")
            node = Node(Runtime(name, path.removeprefix("unix://")))
            node.runtime.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=given.image)), timeout=600)
            stack.callback(node.empty)
            node.fill(given.image, directory, given.pods, given.containers)
            nodes.append(node)
        if "lists" in sections:
            _lists(nodes, given.calls)
        if "probes" in sections:
            _probes(nodes, given.rate, given.seconds)
    return 0


def _lists(nodes: Sequence[Node], calls: int) -> None:
    for name, call in _LISTS.items():
        samples: dict[str, list[float]] = {}
        sizes = [call(node.runtime) for node in nodes]  # caches warm up
        for _ in range(calls):
            for node in nodes:
                began = time.perf_counter()
                call(node.runtime)
                samples.setdefault(node.runtime.name, []).append((time.perf_counter() - began) * 1000)
        for node, size in zip(nodes, sizes, strict=True):
            median = statistics.median(samples[node.runtime.name])
            first = statistics.median(samples[nodes[0].runtime.name])
            _say(f"{name:22}{node.runtime.name:16}{size:6} entries{median:9.2f} ms{median / first:8.2f}x")


def _probes(nodes: Sequence[Node], rate: float, seconds: float) -> None:
    for node in nodes:
        node.probe(rate, 1.0)
        node.spent_ms, node.waited, node.probes = 0.0, 0.0, 0
    left = seconds
    while left > 0:
        for node in nodes:
            node.probe(rate, min(_TURN_SECONDS, left))
        left -= _TURN_SECONDS
    first = nodes[0].spent_ms / nodes[0].probes
    for node in nodes:
        each = node.spent_ms / node.probes
        speed = f"{node.probes / node.waited:6.0f} a second, {node.spent_ms / 1000:.1f} s of processor time"
        _say(f"{'exec probes':22}{node.runtime.name:16}{speed}, {each:.1f} ms a probe{each / first:8.2f}x")


_LISTS: dict[str, Callable[[Runtime], int]] = {
    "ListContainers": lambda one: len(one.cri.ListContainers(pb.ListContainersRequest()).containers),
    "ListPodSandbox": lambda one: len(one.cri.ListPodSandbox(pb.ListPodSandboxRequest()).items),
    "ListContainerStats": lambda one: len(one.cri.ListContainerStats(pb.ListContainerStatsRequest()).stats),
}


def _start(pod: Pod, containers: int) -> str:
    pod.run()
    for number in range(containers):
        pod.container.metadata.name = f"c{number}"
        pod.container.log_path = f"c{number}.log"
        pod.create()
        pod.start()
    return pod.container_id


def _remove(pod: Pod) -> None:
    if pod.id:
        pod.down()


def _peer(path: str) -> int:
    """The process that listens at a socket (SO_PEERCRED in unix(7))."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
        client.connect(path)
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])


def _supervises(command: bytes, mark: bytes) -> bool:
    """A shim or a conmon of the runtime whose socket lies in the directory ``mark``."""
    program = os.path.basename(command.split(b"\0", 1)[0])
    return (
        program.startswith((b"containerd-shim", b"conmon", b"crun", b"forgeone-supervisor")) and mark + b"/" in command
    )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
