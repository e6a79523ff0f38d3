#!/usr/bin/env python3
"""Pods in virtual machines, each figure beside what it shall be: milliseconds, megabytes a second, memory.

    python -m hack.bench.microvm --rounds 11 --pods 10

Starts a registry and a forgeoned of its own, and removes them. In each round come, one after the other, a *bare* QEMU
(see hack/bench/machines.py), a machine as pods have it that boots until its agent answers, and a pod, whose machine
begins from a template. *first output* is from before the call of RunPodSandbox until there is something in the log of
the container, by one client that calls CreateContainer and StartContainer in between. Of times the median counts; the
least, beside it, says more on a busy host. Memory is that of monitor, keeper and file server, with a container each.

Needs root. Machines are emulated unless ``--accel kvm`` says otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from cri.api import runtime_pb2 as pb
from engines.microvm.boot import assembly, clock
from engines.microvm.boot.bootset import BootSet
from engines.microvm.boot.settings import BootSettings
from engines.microvm.vmm.base import Accel, Machine
from engines.microvm.wire.protocol import CONTROL_PORT, SHARE_PORT
from hack.bench import machines
from hack.bench.bench import Pod, Runtime
from hack.lab import images
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry

_HANDLER = "forgeone-microvm"
_SECONDS = 120.0
_WIDTH = 4
_EXECS = 5
_OUTPUTS, _OUTPUT_SECONDS = 3, 1.0
_MEMORY = 256 << 20
_FIRST = ("sh", "-c", "echo here; exec sleep 1000")


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and the most (or least) that it shall be."""

    name: str
    value: float
    target: float
    unit: str
    least: bool = False

    def __str__(self) -> str:
        held = self.value >= self.target if self.least else self.value <= self.target
        sign = ">=" if self.least else "<="
        return f"{self.name:52}{self.value:9.2f} {self.unit:4} {sign} {self.target:<6g} {'yes' if held else 'no'}"


def main(argv: Sequence[str]) -> int:
    """Run it; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="", help="as microvm.kernel; default: as forgeoned finds it")
    parser.add_argument("--accel", choices=[one.value for one in Accel], default=Accel.TCG.value)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--pods", type=int, default=10, help="at once, for the memory that they take")
    options = parser.parse_args(argv)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forgeone-bench-")))
        boot = assembly.assemble(BootSettings(kernel=options.kernel), directory, machines.soon())
        registry = stack.enter_context(Registry(directory / "registry")).address
        image = images.push(registry, "bench/busybox:latest", images.busybox())
        settings = {"microvm.boot_set": str(Path(boot.kernel).parent), "microvm.accel": options.accel}
        daemon = Daemon([registry], {"FORGEONE_LOG__LEVEL": "warning"}, settings)
        stack.callback(daemon.close)
        daemon.start()
        stack.callback(daemon.remove_pods)
        runtime = Runtime("forgeone", daemon.socket, _HANDLER)
        spec = pb.ImageSpec(image=image, runtime_handler=_HANDLER)
        runtime.images.PullImage(pb.PullImageRequest(image=spec), timeout=_SECONDS)
        _Bench(runtime, image, directory, boot, Accel(options.accel)).run(options.rounds, options.pods)
    return 0


class _Bench:
    def __init__(self, runtime: Runtime, image: str, directory: Path, boot: BootSet, accel: Accel) -> None:
        self._runtime, self._image, self._directory, self._boot = runtime, image, directory, boot
        self._machine = Machine(
            memory=_MEMORY,
            vcpus=1,
            accel=accel,
            kernel=boot.kernel,
            initrd=boot.initrd,
            cmdline=boot.cmdline(accel, clock.khz() if accel is Accel.TCG else 0),
            ports=(CONTROL_PORT, SHARE_PORT),
        )

    def run(self, rounds: int, pods: int) -> None:
        self._warm()
        # What makes monitors has one thread, which is not so where gRPC is.
        with ProcessPoolExecutor(1, get_context("spawn")) as boots:
            for _ in range(rounds):
                self._boot_both(boots)
                self._pod()
        self._output()
        own, guests = self._memory(pods)
        for step, samples in self._runtime.samples.items():
            middle = statistics.median(samples)
            _say(f"{step:24} p50 {middle:8.1f}   least {min(samples):8.1f}   most {max(samples):8.1f}")
        _say(f"{pods} pods at once: Pss of a machine {own:.1f} MiB, and {guests:.1f} MiB of its guest's memory\n")
        for one in self._targets(own):
            _say(str(one))

    def _warm(self) -> None:
        """Until there is a template, and once from it."""
        first = self._life()
        until = time.monotonic() + _SECONDS
        while self._life() > first / 2 and time.monotonic() < until:
            # It is made beside.
            time.sleep(first)

    def _life(self) -> float:
        pod = self._new()
        began = time.monotonic()
        pod.up()
        taken = time.monotonic() - began
        pod.down()
        return taken

    def _new(self, command: tuple[str, ...] = _FIRST) -> Pod:
        return Pod(self._runtime, self._image, str(self._directory), command)

    def _boot_both(self, boots: ProcessPoolExecutor) -> None:
        bare, ran = boots.submit(machines.bare, self._machine, self._boot, self._directory).result(_SECONDS)
        self._runtime.note("bare QEMU, ms", bare)
        self._runtime.note("  of a processor", ran)
        cold, ran = boots.submit(machines.answers, self._machine).result(_SECONDS)
        self._runtime.note("cold boot, ms", cold)
        self._runtime.note("  of one, cold", ran)

    def _pod(self) -> None:
        runtime, pod = self._runtime, self._new()
        began = time.perf_counter()
        runtime.timed("RunPodSandbox, ms", pod.run)
        runtime.timed("CreateContainer, ms", pod.create)
        runtime.timed("StartContainer, ms", pod.start)
        _await_output(pod)
        runtime.note("first output, ms", (time.perf_counter() - began) * 1000)
        request = pb.ExecSyncRequest(container_id=pod.container_id, cmd=("true",), timeout=30)
        runtime.cri.ExecSync(request, timeout=_SECONDS)
        for _ in range(_EXECS):
            runtime.timed("ExecSync, ms", lambda: runtime.cri.ExecSync(request, timeout=_SECONDS))
        pod.down()

    def _output(self) -> None:
        """What a container that never stops writes to its log."""
        pod = self._new(("yes", "x" * 1000))
        pod.up()
        _await_output(pod)
        log = _log(pod)
        for _ in range(_OUTPUTS):
            began, before = time.monotonic(), log.stat().st_size
            time.sleep(_OUTPUT_SECONDS)
            self._runtime.note("stdout, MB/s", (log.stat().st_size - before) / (time.monotonic() - began) / 1e6)
        pod.down()

    def _memory(self, count: int) -> tuple[float, float]:
        """MiB of a pod's monitor and keeper on the average: of their own, and of the guest's memory."""
        pods = [self._new() for _ in range(count)]
        with ThreadPoolExecutor(_WIDTH) as pool:
            list(pool.map(Pod.up, pods))
        for pod in pods:
            _await_output(pod)
        keepers = {pid: words[1] for pid, words in _processes() if words[0] == "forgeone-vm" and len(words) > 1}
        ours = {pid for pid, sandbox in keepers.items() if sandbox in {pod.id for pod in pods}}
        found = [_pss(pid) for pid, _ in _processes() if pid in ours or _parent(pid) in ours]
        with ThreadPoolExecutor(_WIDTH) as pool:
            list(pool.map(Pod.down, pods))
        own, guests = (sum(sizes) / count / 1024 for sizes in zip(*found, strict=True))
        return own, guests

    def _targets(self, own: float) -> list[Target]:
        found = {step: statistics.median(samples) for step, samples in self._runtime.samples.items()}
        bare = found["bare QEMU, ms"]
        return [
            Target("sandbox ready from a template, of bare QEMU's boot", found["RunPodSandbox, ms"] / bare, 0.15, ""),
            Target("first output, from RunPodSandbox on", found["first output, ms"], 450, "ms"),
            Target("cold boot to the agent, of bare QEMU's to /init", found["cold boot, ms"] / bare, 1.2, ""),
            Target("exec in a running container", found["ExecSync, ms"], 10, "ms"),
            Target("stdout to the log", found["stdout, MB/s"], 40, "MB/s", least=True),
            Target("Pss of a pod's machine but its guest's memory", own, 30, "MiB"),
        ]


def _log(pod: Pod) -> Path:
    return Path(pod.config.log_directory, "main.log")


def _await_output(pod: Pod) -> None:
    log, until = _log(pod), time.monotonic() + _SECONDS
    while not (log.exists() and log.stat().st_size):
        if time.monotonic() > until:
            raise SystemExit(f"{log} stays empty")
        time.sleep(0.001)


def _processes() -> list[tuple[int, list[str]]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found.append((int(entry.name), (entry / "cmdline").read_text(errors="replace").split("\0")))
    return found


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _pss(pid: int) -> tuple[int, int]:
    """KiB: of all mappings but the guest's memory, and of that."""
    own = guest = 0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            inside = "guest-memory" in rest
        elif name == "Pss:":
            size = int(rest.split()[0])
            own, guest = own + size * (not inside), guest + size * inside
    return own, guest


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
