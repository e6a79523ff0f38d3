"""What docs/promises.md says, where no other test shows it: what a pod costs, and who holds nobody up."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cri.api import runtime_pb2 as pb
from hack.lab import images, leaks
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e.conftest import Push
from tests.e2e.pods import Pod

pytestmark = pytest.mark.root

traced = pytest.mark.skipif(shutil.which("strace") is None, reason="strace, which sees system calls, is not there")
SYNCS = {"fsync", "fdatasync", "sync", "syncfs", "msync", "sync_file_range"}
CALL = re.compile(r"^\d+ +(\w+)\((?:-?\w+, )?(?:\"([^\"]*)\", \[(.*?)\])?")


@pytest.fixture
def daemon(forgeoned: Daemon, busybox: str, nothing_left: None) -> Daemon:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    return forgeoned


@contextmanager
def calls_of(daemon: Daemon, directory: Path) -> Iterator[Callable[[], tuple[list[str], list[str]]]]:
    """The programs that forgeoned and all it starts execute, by their first argument, and their calls for the disk."""
    # What was pulled is written to disk beside everything else, some seconds later.
    layers = Path(daemon.config.root, "layers")
    wait_for(lambda: all((layer / "synced").exists() for layer in layers.glob("?" * 64)))
    output = directory / f"calls-{secrets.token_hex(3)}"
    argv = ["strace", "-f", "-s", "200", "-o", str(output), "-e", f"trace=execve,execveat,{','.join(sorted(SYNCS))}"]
    tracer = subprocess.Popen([*argv, "-p", str(daemon.pid)], stderr=subprocess.DEVNULL)

    def seen() -> tuple[list[str], list[str]]:
        # Lines are written at once, but may come in two parts where threads take turns.
        lines = [line for line in output.read_text().splitlines() if re.match(r"^\d+ +[a-z]\w*\(", line)]
        found = [match for line in lines if (match := CALL.match(line))]
        programs = [Path(json.loads(f"[{m[3]}]".replace("...", ""))[0]).name for m in found if m[1].startswith("exec")]
        return programs, [m[0] for m in found if m[1] in SYNCS]

    try:
        wait_for(lambda: _traced(daemon.pid))
        yield seen
    finally:
        tracer.terminate()
        tracer.wait(30)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + patient(30)
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def _traced(pid: int) -> bool:
    """Every thread of it."""
    states = [Path(f"/proc/{pid}/task/{thread}/status").read_text() for thread in os.listdir(f"/proc/{pid}/task")]
    return all("TracerPid:\t0\n" not in state for state in states)


def processes(daemon: Daemon) -> list[tuple[int, str]]:
    """Those of its pods."""
    ours = {daemon.pid, os.getpid(), *leaks.fork_servers(str(daemon.directory))}
    return list(leaks.processes(daemon.marks, ours))


@traced
def test_a_pods_life_executes_three_programs_and_waits_for_no_disk(
    daemon: Daemon, busybox: str, tmp_path: Path
) -> None:
    Pod.plan(daemon).run().remove()  # the bridge is there from now on
    with calls_of(daemon, tmp_path) as seen:
        pod = Pod.plan(daemon).run()
        assert seen() == ([], []), "a pod on the built-in network"
        id_ = pod.start(pod.container(busybox))
        pod.stop_container(id_)
        pod.remove()
        programs, syncs = seen()
    # A sealed copy of crun is executed by its descriptor's number.
    [conmon, crun, command] = programs
    assert (conmon, crun.isdigit() or crun == "crun", command) == ("conmon", True, "sleep")
    assert syncs == []


@traced
def test_exec_executes_crun_alone(daemon: Daemon, busybox: str, tmp_path: Path) -> None:
    pod = Pod.plan(daemon).run()
    id_ = pod.start(pod.container(busybox))
    with calls_of(daemon, tmp_path) as seen:
        for _ in range(3):
            assert pod.exec(id_, "true").exit_code == 0
        programs, syncs = seen()
    assert programs == ["crun", "true"] * 3
    assert syncs == []
    pod.remove()


@traced
def test_a_pod_on_a_cni_bridge_executes_no_program(
    daemon_factory: Callable[..., Daemon], busybox: str, tmp_path: Path
) -> None:
    daemon = daemon_factory({"cni.bin_dirs": (str(tmp_path / "none"),), "cni.in_process": True})
    bridge, low = f"bp{secrets.token_hex(3)}", f"10.{secrets.randbelow(100) + 120}.{secrets.randbelow(256)}"
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "leases"), "ranges": [[{"subnet": f"{low}.0/24"}]]}
    plugins = [
        {"type": "bridge", "bridge": bridge, "isGateway": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    folder = Path(daemon.config.cni.conf_dir)
    folder.mkdir()
    (folder / "10.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": "promised", "plugins": plugins}))
    try:
        # crun is asked for its version beside the start, or by the first container.
        daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
        first = Pod.plan(daemon).run()
        first.start(first.container(busybox))
        first.remove()
        with calls_of(daemon, tmp_path) as seen:
            pod = Pod.plan(daemon).run()
            request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id)
            assert daemon.runtime.PodSandboxStatus(request, timeout=30).status.network.ip.startswith(f"{low}.")
            pod.remove()
            assert seen() == ([], [])
    finally:
        subprocess.run(["ip", "link", "delete", bridge], check=False, capture_output=True)


def test_a_pod_has_no_process_and_a_container_a_small_one_beside_its_own(daemon: Daemon, busybox: str) -> None:
    pod = Pod.plan(daemon).run()
    assert processes(daemon) == []
    pod.start(pod.container(busybox, "sleep", "1234"))
    [supervisor, own] = sorted(processes(daemon), key=lambda found: "sleep 1234" in found[1])
    assert "conmon" in supervisor[1]
    assert own[1] == "sleep 1234"
    sizes = dict(line.split(":") for line in Path(f"/proc/{supervisor[0]}/smaps_rollup").read_text().splitlines()[1:])
    assert int(sizes["Pss"].split()[0]) < 2048, "KiB of the host's memory"
    pod.remove()


def test_an_image_is_on_disk_once(daemon: Daemon, push: Push) -> None:
    noise = os.urandom(8 << 20)
    root = Path(daemon.config.root)

    def used() -> int:
        return sum(path.lstat().st_blocks * 512 for path in root.rglob("*"))

    before = used()
    # What cannot be compressed takes as much room in its layer as it does unpacked.
    image = push("noise:latest", images.busybox(extra=[images.Entry("noise", noise)]))
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=image)), timeout=60)
    assert len(noise) <= used() - before < len(noise) * 1.5
    daemon.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=image)), timeout=60)


def test_a_supervisor_that_hangs_keeps_no_pod_from_being_removed(daemon: Daemon, busybox: str) -> None:
    pod = Pod.plan(daemon).run()
    pod.start(pod.container(busybox))
    [hung] = [pid for pid, command in processes(daemon) if "conmon" in command]
    os.kill(hung, signal.SIGSTOP)
    began = time.monotonic()
    pod.remove()
    assert time.monotonic() - began < patient(20)
    assert processes(daemon) == []


def test_a_container_that_hangs_holds_up_no_start_of_forgeoned(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    hung, other = Pod.plan(daemon).run(), Pod.plan(daemon).run()
    stuck = hung.start(hung.container(busybox, "sleep", "1234"))
    stopped = [pid for pid, command in processes(daemon) if "conmon" in command or command == "sleep 1234"]
    kept = other.start(other.container(busybox))
    assert len(stopped) == 2
    daemon.kill()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    daemon.start()
    assert other.exec(kept, "true").exit_code == 0
    fresh = Pod.plan(daemon).run()
    fresh.start(fresh.container(busybox))
    assert time.monotonic() - began < patient(10)
    assert hung.status(stuck).state == pb.CONTAINER_RUNNING
    for pod in (hung, other, fresh):
        pod.remove()
