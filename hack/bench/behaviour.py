"""What watching containers costs: a system call of one that is watched, of everybody else meanwhile, and a start.

    python -m hack.bench.behaviour [RUNS]

A call's cost is the processor time of ``dd bs=1`` (a read and a write each turn), the least of RUNS interleaved runs.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from forgeone_shim.dna.behaviour.recorder import Recorder, group_at
from forgeone_shim.kernel import cgroups

_TURNS = 400_000


def main() -> None:
    """Print a line for each state."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    mount = cgroups.detect().unified
    here = Path(f"{mount}/forgeone-bench-{os.getpid()}")
    watched, beside = here / "watched", here / "beside"
    for path in (watched, beside):
        path.mkdir(parents=True)
    try:
        with tempfile.TemporaryDirectory(prefix="forgeone-bench-") as directory:
            _report(mount, watched, beside, Path(directory) / "bpf", runs)
    finally:
        cgroups.remove_tree(str(here))


def _report(mount: str, watched: Path, beside: Path, pins: Path, runs: int) -> None:
    recorder = Recorder(pins, lambda: None, lambda job: threading.Thread(target=job, daemon=True).start())
    group = group_at(mount, str(watched))
    found: dict[str, list[float]] = {"nobody is watched": [], "somebody else is": [], "it is watched": []}
    starts: list[float] = []
    for _ in range(runs):
        found["nobody is watched"].append(_cost(watched))
        recorder.check()
        # What a container's creation leaves time for.
        time.sleep(0.2)
        starts.append(_took(lambda: recorder.watch(group)))
        found["somebody else is"].append(_cost(beside))
        found["it is watched"].append(_cost(watched))
        recorder.forget(group.id)
    least = {state: min(costs) for state, costs in found.items()}
    plain = least["nobody is watched"]
    for state, cost in least.items():
        print(f"{state:20} {cost:6.0f} ns a call, {cost - plain:+5.0f} ns, {100 * (cost / plain - 1):+4.0f} %")
    print(f"to watch one more    {statistics.median(starts) * 1e6:6.0f} us at its start")


def _cost(group: Path) -> float:
    """Nanoseconds of processor time that one system call takes in a process of the group."""

    def enter() -> None:
        cgroups.write(f"{group}/cgroup.procs", "0")

    command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=1", f"count={_TURNS}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, preexec_fn=enter)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used * 1e9 / (2 * _TURNS)


def _took(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
