#!/usr/bin/env python3
r"""What WebAssembly containers cost, with their code compiled before: milliseconds, memory, starts a second.

    python -m hack.bench.wasm --rounds 50 --containers 100
    python -m hack.bench.wasm --rival containerd=/run/containerd/containerd.sock --rival-image busybox

Starts a registry and a forgeoned of its own, and removes them. ``first log line`` is from before the call of
StartContainer to the time of the line in the log. ``unique`` is the memory that a container's supervisor and guest
share with nobody (USS, proc_pid_smaps_rollup). With a rival a whole pod start of the image there is measured in turn
with one of a module here. Nothing else should run on the host meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from cri.api import runtime_pb2 as pb
from hack.bench.bench import SLEEP, Pod, Runtime
from hack.lab import images
from hack.lab.daemon import Daemon
from hack.lab.guests import guest, say, sleep
from hack.lab.registry import Registry

_HANDLER = "forgeone-wasm"
_WIDTH = 4
_GUEST = guest(say("here\n"), sleep(100_000))


def main(argv: Sequence[str]) -> int:
    """Run it; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--containers", type=int, default=100, help="that run at once, for their memory")
    parser.add_argument("--rival", default="", metavar="NAME=SOCKET", help="another runtime, for a pod of a program")
    parser.add_argument("--rival-image", default="docker.io/library/busybox:latest")
    options = parser.parse_args(argv)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forgeone-bench-")))
        registry = stack.enter_context(Registry(directory / "registry")).address
        image = _push(registry)
        daemon = Daemon([registry], {"FORGEONE_LOG__LEVEL": "warning"})
        stack.callback(daemon.close)
        daemon.start()
        stack.callback(daemon.remove_pods)
        runtime = Runtime("forgeone", daemon.socket, _HANDLER)
        spec = pb.ImageSpec(image=image, runtime_handler=_HANDLER)
        runtime.images.PullImage(pb.PullImageRequest(image=spec), timeout=120)
        rival = None
        if options.rival:
            name, _, socket = options.rival.partition("=")
            rival = Runtime(name, socket)
            rival.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=options.rival_image)), timeout=120)
        against = None if rival is None else (rival, options.rival_image)
        _latency(runtime, image, str(directory), options.rounds, against)
        _density(runtime, image, directory, options.containers)
    return 0


def _push(registry: str) -> str:
    layer = images.layer([images.Entry("guest.wasm", _GUEST, 0o755)])
    config = {"Entrypoint": ["/guest.wasm"]}
    return images.push(registry, "bench/wasm:latest", images.build([layer], config, architecture="wasm", os="wasi"))


def _latency(runtime: Runtime, image: str, directory: str, rounds: int, against: tuple[Runtime, str] | None) -> None:
    for number in range(rounds + 2):
        warm = number < 2
        pod = Pod(runtime, image, directory, ())
        began = time.perf_counter()
        for step, call in (("run", pod.run), ("create", pod.create)):
            _timed(runtime, step, call, warm=warm)
        at = time.time()
        _timed(runtime, "start", pod.start, warm=warm)
        if not warm:
            runtime.note("pod start (run+create+start)", (time.perf_counter() - began) * 1000)
        line = _first_line(Path(pod.config.log_directory, "main.log"))
        if not warm:
            runtime.note("start to first log line", (line - at) * 1000)
        _timed(runtime, "stop pod", pod.stop, warm=warm)
        _timed(runtime, "remove pod", pod.remove, warm=warm)
        if against is not None:
            rival = against[0]
            other = Pod(rival, against[1], directory, SLEEP)
            began = time.perf_counter()
            other.up()
            if not warm:
                rival.note("pod start (run+create+start)", (time.perf_counter() - began) * 1000)
            other.down()
    for one in (runtime, *(against or ())[:1]):
        for step, samples in one.samples.items():
            quick = statistics.quantiles(samples, n=10)
            _row(f"{one.name}: {step}", f"p50 {quick[4]:7.1f} ms   p90 {quick[8]:7.1f} ms")


def _timed(runtime: Runtime, step: str, call: object, *, warm: bool) -> None:
    if warm:
        call()  # type: ignore[operator]
    else:
        runtime.timed(step, call)  # type: ignore[arg-type]


def _first_line(log: Path) -> float:
    """When it was written, in seconds since the epoch."""
    until = time.monotonic() + 30
    while not (text := log.read_text() if log.exists() else ""):
        if time.monotonic() > until:
            raise SystemExit(f"{log} stays empty")
        time.sleep(0.001)
    return datetime.fromisoformat(text.split(" ", 1)[0][:26] + "+00:00").timestamp()


def _density(runtime: Runtime, image: str, directory: Path, containers: int) -> None:
    pod = Pod(runtime, image, str(directory), ())
    pod.run()

    def up(number: int) -> str:
        config = pb.ContainerConfig()
        config.CopyFrom(pod.container)
        config.metadata.name = config.log_path = f"c{number}"
        request = pb.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        id_ = str(runtime.cri.CreateContainer(request, timeout=120).container_id)
        runtime.cri.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=120)
        return id_

    began = time.perf_counter()
    with ThreadPoolExecutor(_WIDTH) as pool:
        ids = list(pool.map(up, range(containers)))
    _row(
        f"containers created and started a second, {_WIDTH} at a time",
        f"{len(ids) / (time.perf_counter() - began):.0f}",
    )
    for number in range(containers):
        _first_line(Path(pod.config.log_directory, f"c{number}"))
    memory = {"forgeone-supervisor": [], "forgeone-wasm": []}  # type: dict[str, list[tuple[int, int]]]
    known = set(ids)
    for entry in Path("/proc").iterdir():
        words = _words(entry)
        if len(words) > 1 and words[0] in memory and words[1] in known:
            memory[words[0]].append(_memory(entry))
    for title, found in memory.items():
        unique, proportional = (statistics.mean(values) / 1024 for values in zip(*found, strict=True))
        _row(f"{title} ({len(found)})", f"unique {unique:.2f} MiB   proportional {proportional:.2f} MiB")
    pod.down()


def _words(entry: Path) -> list[str]:
    try:
        return (entry / "cmdline").read_bytes().decode(errors="replace").split("\0") if entry.name.isdigit() else []
    except OSError:
        return []


def _memory(entry: Path) -> tuple[int, int]:
    """USS and PSS in KiB."""
    found: dict[str, int] = {}
    for line in (entry / "smaps_rollup").read_text().splitlines()[1:]:
        name, size, *_ = line.split()
        found[name] = int(size)
    return found["Private_Clean:"] + found["Private_Dirty:"], found["Pss:"]


def _row(what: str, value: str) -> None:
    sys.stdout.write(f"{what:55}{value}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
