"""Short ways to say what a test's pod in a virtual machine looks like over CRI."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from cri.api import runtime_pb2 as pb
from engines.microvm import checks, settings
from engines.microvm.boot import assembly
from forgeone_shim.config.model import Config
from forgeone_shim.deadline import Deadline
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e.pods import Pod
from tests.e2e.streams import eventually

HANDLER = "forgeone-microvm"
# Emulated machines on a busy host.
SLOW = 120


@dataclass
class VmPod(Pod):
    """A pod of the handler :data:`HANDLER`."""

    def run(self, timeout: float = SLOW) -> VmPod:
        """RunPodSandbox."""
        request = pb.RunPodSandboxRequest(config=self.config, runtime_handler=HANDLER)
        self.id = self.daemon.runtime.RunPodSandbox(request, timeout=patient(timeout)).pod_sandbox_id
        return self


def missing() -> str:
    """Why no machine can be had on this host; empty: it can."""
    found = checks.problems(settings.read(asdict(Config())))
    return "; ".join(f"{one.what} ({one.fix})" for one in found)


@functools.cache
def boot_set() -> str:
    """A boot set for all tests of this run, made once; removed with the process."""
    parent = Path(tempfile.mkdtemp(prefix="forgeone-boot-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    chosen = settings.read(asdict(Config())).boot
    assembly.make(assembly.plan(chosen), parent / "set", Deadline.after(patient(60)))
    return str(parent / "set")


def machines() -> dict[str, object]:
    """Settings of a daemon: emulated everywhere, so that all hosts test the same, and none tries for seconds."""
    return {"microvm.boot_set": boot_set(), "microvm.accel": "tcg"}


def await_template(daemon: Daemon) -> None:
    """Until machines of the first one's size begin from a template."""
    templates = Path(daemon.config.root, "microvm/templates")
    eventually(lambda: templates.exists() and any(not one.name.startswith(".") for one in templates.iterdir()), 60)


def keepers(daemon: Daemon) -> list[int]:
    """The keepers of a daemon's pods."""
    return _named(daemon, lambda words: words[0] == b"forgeone-vm")


def monitors(daemon: Daemon) -> list[int]:
    """The monitors of a daemon's machines."""
    return _named(daemon, lambda words: words[0].endswith(b"qemu-system-x86_64"))


def _named(daemon: Daemon, wanted: Callable[[list[bytes]], bool]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            cgroup = (entry / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words[0] and wanted(words) and f":{daemon.config.cgroup_root}/" in cgroup:
            found.append(int(entry.name))
    return found
