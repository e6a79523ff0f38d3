"""The memory that virtual machines have of the host's."""

from __future__ import annotations

from pathlib import Path

import pytest

from hack.lab.daemon import Daemon
from tests.e2e.microvm_pods import VmPod, await_template, monitors
from tests.e2e.streams import eventually

pytestmark = pytest.mark.root

_MIB = 1 << 20


def of_its_own(monitor: int) -> int:
    """Bytes that nobody else has: of a clone, what it has changed."""
    lines = Path(f"/proc/{monitor}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def clone(daemon: Daemon) -> tuple[VmPod, int]:
    """A pod whose machine began from a template, and its monitor."""
    for _ in range(5):
        pod = VmPod.plan(daemon).run()
        (monitor,) = monitors(daemon)
        if "/memfd:" in Path(f"/proc/{monitor}/maps").read_text():
            return pod, monitor
        await_template(daemon)
        pod.remove()
    raise AssertionError("machines do not begin from templates")


def test_what_a_clone_has_freed_is_the_hosts_again_and_what_it_gets_is_empty(machines: Daemon, busybox: str) -> None:
    pod, monitor = clone(machines)
    try:
        container = pod.start(pod.container(busybox, "sleep", "1000"))
        before = of_its_own(monitor)
        written = pod.exec(container, "dd", "if=/dev/zero", "of=/full", "bs=1M", "count=80")
        assert written.exit_code == 0
        assert of_its_own(monitor) > before + 70 * _MIB
        assert pod.exec(container, "rm", "/full").exit_code == 0
        eventually(lambda: of_its_own(monitor) < before + 40 * _MIB, 30)
        # To the guest its pages have what the template has, and to who gets them nothing.
        found = pod.exec(container, "sh", "-c", "fallocate -l 16777216 /new && tr -d '\\0' < /new | wc -c")
        assert found.stdout.strip() == b"0"
    finally:
        pod.remove()
