#!/usr/bin/env python3
r"""Compares CRI runtimes on one host, interleaved in one run, so that only the ratio between them counts.

    bench.py --image IMAGE --runtime containerd=/run/containerd/containerd.sock \
             --runtime forgeone=/run/forgeone/forgeone.sock

The first runtime named is the yardstick: every table ends with each runtime's ratio to it. Sections (``--only``):
``latency`` (one pod, one container, each step), ``parallel`` (pods a second at N at a time), ``memory`` (host memory a
running pod costs), ``pull`` (pull and unpack of ``--pull-image``). Nothing else should run on the host meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import grpc

from cri.api import runtime_pb2 as pb
from cri.api import runtime_pb2_grpc as rpc

SLEEP = ("/bin/sh", "-c", "sleep 1000")


@dataclass
class Runtime:
    """One runtime under test."""

    name: str
    socket: str
    handler: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        options = [("grpc.max_receive_message_length", 64 << 20)]
        self.channel = grpc.insecure_channel(f"unix://{self.socket}", options=options)
        self.cri = rpc.RuntimeServiceStub(self.channel)
        self.images = rpc.ImageServiceStub(self.channel)

    def timed(self, step: str, call: Callable[[], object]) -> object:
        """Run ``call`` and note how many milliseconds it took."""
        began = time.perf_counter()
        result = call()
        self.samples.setdefault(step, []).append((time.perf_counter() - began) * 1000)
        return result

    def note(self, step: str, value: float) -> None:
        """Note a value."""
        self.samples.setdefault(step, []).append(value)


@dataclass
class Pod:
    """One pod with one container, started step by step. ``step`` times each call where given."""

    runtime: Runtime
    image: str
    logs: str
    argv: tuple[str, ...] = SLEEP

    def __post_init__(self) -> None:
        uid = str(uuid.uuid4())
        options = pb.NamespaceOption(pid=pb.CONTAINER)
        self.config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=f"bench-{uid[:8]}", uid=uid, namespace="bench"),
            hostname="bench",
            log_directory=os.path.join(self.logs, uid),
            linux=pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(namespace_options=options)),
        )
        self.container = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="main"),
            image=pb.ImageSpec(image=self.image),
            command=self.argv,
            log_path="main.log",
            linux=pb.LinuxContainerConfig(
                security_context=pb.LinuxContainerSecurityContext(namespace_options=options),
                resources=pb.LinuxContainerResources(cpu_shares=102, memory_limit_in_bytes=128 << 20),
            ),
        )
        os.makedirs(self.config.log_directory)
        self.id = self.container_id = ""

    def run(self) -> None:
        """RunPodSandbox."""
        request = pb.RunPodSandboxRequest(config=self.config, runtime_handler=self.runtime.handler)
        self.id = self.runtime.cri.RunPodSandbox(request, timeout=120).pod_sandbox_id

    def create(self) -> None:
        """CreateContainer."""
        request = pb.CreateContainerRequest(pod_sandbox_id=self.id, config=self.container, sandbox_config=self.config)
        self.container_id = self.runtime.cri.CreateContainer(request, timeout=120).container_id

    def start(self) -> None:
        """StartContainer."""
        self.runtime.cri.StartContainer(pb.StartContainerRequest(container_id=self.container_id), timeout=120)

    def execute(self) -> None:
        """ExecSync of /bin/true, as an exec probe does."""
        request = pb.ExecSyncRequest(container_id=self.container_id, cmd=["/bin/true"], timeout=60)
        if self.runtime.cri.ExecSync(request, timeout=60).exit_code != 0:
            raise SystemExit(f"{self.runtime.name}: exec failed")

    def stop_container(self) -> None:
        """StopContainer with no grace period."""
        self.runtime.cri.StopContainer(pb.StopContainerRequest(container_id=self.container_id), timeout=120)

    def stop(self) -> None:
        """StopPodSandbox."""
        self.runtime.cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=self.id), timeout=120)

    def remove(self) -> None:
        """RemovePodSandbox."""
        self.runtime.cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=self.id), timeout=120)

    def up(self) -> None:
        """All three start steps."""
        self.run()
        self.create()
        self.start()

    def down(self) -> None:
        """Stop and remove."""
        self.stop()
        self.remove()


@contextlib.contextmanager
def logs() -> Iterator[str]:
    """A folder for container logs."""
    path = tempfile.mkdtemp(prefix="bench-logs-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def latency(runtimes: list[Runtime], image: str, rounds: int) -> None:
    """Each step of a pod's life; a round is one pod on each runtime, in turn."""
    with logs() as folder:
        for number in range(rounds + 2):
            for runtime in runtimes:
                pod = Pod(runtime, image, folder)
                if number < 2:  # caches warm up: not counted
                    pod.up()
                    pod.execute()
                    pod.down()
                    continue
                began = time.perf_counter()
                for step, call in (("run", pod.run), ("create", pod.create), ("start", pod.start)):
                    runtime.timed(step, call)
                runtime.note("pod start (run+create+start)", (time.perf_counter() - began) * 1000)
                runtime.timed("exec", pod.execute)
                if number % 2:
                    runtime.timed("stop container", pod.stop_container)
                    runtime.timed("stop pod (container stopped)", pod.stop)
                else:
                    runtime.timed("stop pod (container running)", pod.stop)
                runtime.timed("remove pod", pod.remove)
                runtime.note("whole life", (time.perf_counter() - began) * 1000)


def parallel(runtimes: list[Runtime], image: str, rounds: int, width: int) -> None:
    """Pods started a second, ``width`` at a time; every pod is up before any is taken down."""
    with logs() as folder, ThreadPoolExecutor(width) as pool:
        for _ in range(rounds):
            for runtime in runtimes:
                pods = [Pod(runtime, image, folder) for _ in range(width * 3)]
                began = time.perf_counter()
                list(pool.map(Pod.up, pods))
                runtime.note(f"pods/s at {width} parallel", len(pods) / (time.perf_counter() - began))
                list(pool.map(Pod.down, pods))


def memory(runtimes: list[Runtime], image: str, pods: int) -> None:
    """What a running pod adds to the host: the PSS of every process and MemAvailable, before and after."""
    with logs() as folder:
        for runtime in runtimes:
            warm = Pod(runtime, image, folder)
            warm.up()
            warm.down()
            before_pss, before_available = total_pss(), available()
            running = [Pod(runtime, image, folder) for _ in range(pods)]
            for pod in running:
                pod.up()
            time.sleep(1)
            runtime.note("PSS KiB a pod", (total_pss() - before_pss) / pods)
            runtime.note("MemAvailable KiB a pod", (before_available - available()) / pods)
            for pod in running:
                pod.down()
            time.sleep(1)


def total_pss() -> int:
    """KiB of memory of all processes of the host, shared pages counted once."""
    total = 0
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total


def available() -> int:
    """MemAvailable of the host in KiB, after the page cache was written back and dropped."""
    os.sync()
    with contextlib.suppress(OSError), open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))


def pull(runtimes: list[Runtime], image: str, rounds: int) -> None:
    """Pull and unpack; the image is removed before each round."""
    spec = pb.ImageSpec(image=image)
    request = pb.PullImageRequest(image=spec)
    for _ in range(rounds):
        for runtime in runtimes:
            runtime.images.RemoveImage(pb.RemoveImageRequest(image=spec), timeout=120)
            os.sync()
            time.sleep(2)
            runtime.timed("pull ms", partial(runtime.images.PullImage, request, timeout=600))
            os.sync()


def table(runtimes: list[Runtime]) -> None:
    """Median and p95 of every step, with the ratio of medians to the first runtime."""
    steps = list(dict.fromkeys(step for runtime in runtimes for step in runtime.samples))
    print(f"{'':34}" + "".join(f"{r.name + ' p50':>18}{'p95':>9}" for r in runtimes) + "   ratios")
    for step in steps:
        medians = [statistics.median(r.samples[step]) for r in runtimes]
        cells = ""
        for runtime, median in zip(runtimes, medians, strict=True):
            ordered = sorted(runtime.samples[step])
            cells += f"{median:18.1f}{ordered[math.ceil(0.95 * len(ordered)) - 1]:9.1f}"
        ratios = "  ".join(f"{m / medians[0]:.2f}x" for m in medians[1:])
        print(f"{step:34}{cells}   {ratios}")


def main() -> int:
    """Run the sections asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", action="append", required=True, metavar="NAME=SOCKET[,HANDLER]")
    parser.add_argument("--image", required=True)
    parser.add_argument("--pull-image")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--pods", type=int, default=20)
    parser.add_argument("--only", action="append", choices=("latency", "parallel", "memory", "pull"))
    parser.add_argument("--json", metavar="FILE", help="also write every sample")
    given = parser.parse_args()
    runtimes = []
    for text in given.runtime:
        name, _, rest = text.partition("=")
        socket, _, handler = rest.partition(",")
        runtimes.append(Runtime(name, socket.removeprefix("unix://"), handler))
    sections = given.only or ["latency", "parallel", "memory", *(["pull"] if given.pull_image else [])]
    for runtime in runtimes:
        runtime.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=given.image)), timeout=600)
    if "latency" in sections:
        latency(runtimes, given.image, given.rounds)
    if "parallel" in sections:
        parallel(runtimes, given.image, max(2, given.rounds // 5), given.parallel)
    if "memory" in sections:
        memory(runtimes, given.image, given.pods)
    if "pull" in sections:
        pull(runtimes, given.pull_image or given.image, max(3, given.rounds // 4))
    table(runtimes)
    if given.json:
        with open(given.json, "w") as file:
            json.dump({r.name: r.samples for r in runtimes}, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
